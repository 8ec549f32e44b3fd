"""Backend `ray`: a local backend on many workers, a pool of Ray Data actors, on this machine or a cluster.

Each actor loads the model once and answers blocks of requests; a lost actor is started again by Ray and its block answered again.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recbole_llm4sbr.base.cluster import connect
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Reply, Request, make_backend

log = logging.getLogger(__name__)

_BLOCK = 256  # requests per task: what a lost worker costs


class RayBackend:
    """Answers of `ray_backend` by several workers.

    Args:
        settings: ours; `ray_backend`, `ray_address`, `ray_workers`, `ray_cpus_per_worker` are read here, the rest by each worker.

    Raises:
        UserError: as the worker's backend raises.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {**settings, "llm_backend": settings["ray_backend"]}
        self._inner = make_backend(self._settings)  # never loaded here; it knows the names and the tokenizer
        self.identity, self.decoding = self._inner.identity, self._inner.decoding

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "RayBackend":
        """As the settings say."""
        return cls(settings)

    def count_tokens(self, requests: Iterable[Request]) -> int | None:
        """As the worker's backend counts."""
        return self._inner.count_tokens(requests)

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer all requests; yields block by block as workers finish.

        Raises:
            UserError: no Ray cluster at `ray_address`, or more is asked for than the cluster has.
        """
        rows = [{"position": position, **request._asdict()} for position, request in enumerate(requests)]
        if not rows:
            return
        import ray

        connect(self._settings["ray_address"])
        resources = ray.cluster_resources()
        each = self._settings["vllm_tensor_parallel"] if self._settings["ray_backend"] == "vllm" else 1
        gpus = each if resources.get("GPU") else 0
        cpus = self._settings["ray_cpus_per_worker"]
        most = int(resources["GPU"] // gpus if gpus else resources["CPU"] // cpus)
        workers = min(self._settings["ray_workers"] or most, -(-len(rows) // _BLOCK))
        if workers > most or most < 1:
            raise UserError(
                f"ray_workers={workers} of {cpus} CPUs and {gpus} GPUs each do not fit a cluster of {resources.get('CPU', 0):.0f} CPUs "
                f"and {resources.get('GPU', 0):.0f} GPUs; lower --ray_workers or --ray_cpus_per_worker"
            )
        log.info("Ray: %d workers, each of %s CPUs and %s GPUs", workers, cpus, gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        answered = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _BLOCK)).map_batches(
            _Worker,
            fn_constructor_args=(self._settings,),
            batch_size=_BLOCK,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for batch in answered.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            columns = (batch[field].tolist() for field in Reply._fields)
            yield from (Reply(*row) for row in zip(*columns, strict=True))


class _Worker:
    """One actor: a backend, loaded once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._backend = make_backend(settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        requests = [Request(*row) for row in zip(*(batch[field].tolist() for field in Request._fields), strict=True)]
        positions = batch["position"].tolist()
        replies = [reply._replace(position=positions[reply.position], more=True) for reply in self._backend.generate(requests)]
        replies[-1] = replies[-1]._replace(more=False)
        return {field: [getattr(reply, field) for reply in replies] for field in Reply._fields}
