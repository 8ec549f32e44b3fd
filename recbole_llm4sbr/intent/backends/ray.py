"""Backend `ray`: a local backend on many workers, actors of Ray on this machine or a cluster.

Each worker loads the model once and answers blocks of requests, two of which wait at it. A block is made when a worker can take it, so that
memory does not grow with the number of requests. When a worker or its node dies, its blocks go to others, and another worker is started
where there is room.
"""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from recbole_llm4sbr.base.cluster import connect
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import HeldBackend, Reply, Request, make_backend

log = logging.getLogger(__name__)

_BLOCK = 256  # requests per task: what a lost worker costs, twice
_WAITING = 2  # blocks at a worker
_DEATHS = 3  # of workers one after the other, for each of them, without an answer between
_LOOK = 10.0  # seconds without news after which is looked whether the cluster still has room

Block = Sequence[tuple[int, Request]]  # requests with their positions


class RayBackend:
    """Answers of `ray_backend` by several workers.

    Args:
        settings: ours; `ray_backend`, `ray_address`, `ray_workers`, `ray_cpus_per_worker` are read here, the rest by each worker.

    Raises:
        UserError: as the worker's backend raises.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {**settings, "llm_backend": settings["ray_backend"]}
        # Never loaded here; it knows the names and the tokenizer. What it is held to, workers are held to as well.
        self._inner = make_backend({**self._settings, "llm_titles": "any"})
        self._titles: Sequence[str] = ()
        self.identity = self._inner.identity

    @property
    def decoding(self) -> Mapping[str, Any]:
        """That of the worker's backend."""
        return self._inner.decoding

    def hold_to(self, titles: Sequence[str]) -> None:
        """Hold the workers to titles."""
        cast(HeldBackend, self._inner).hold_to(titles)
        self._titles = titles

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
            UserError: no Ray cluster at `ray_address`, more is asked for than the cluster has, or workers cannot start or keep dying.
        """
        blocks = _blocks(requests)
        first = list(islice(blocks, 1))
        if not first:
            return
        import ray

        connect(self._settings["ray_address"])
        resources = ray.cluster_resources()
        cpus, gpus = self._settings["ray_cpus_per_worker"], self._gpus(resources)
        most = _room(resources, cpus, gpus)
        workers = self._settings["ray_workers"] or most
        if workers > most or most < 1:
            raise UserError(
                f"ray_workers={workers} of {cpus} CPUs and {gpus} GPUs each do not fit a cluster of {resources.get('CPU', 0):.0f} CPUs "
                f"and {resources.get('GPU', 0):.0f} GPUs; lower --ray_workers or --ray_cpus_per_worker"
            )
        log.info("Ray: up to %d workers, each of %s CPUs and %s GPUs", workers, cpus, gpus)
        kind = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus)
        pool = _Pool(kind, (self._settings, self._titles), workers, (cpus, gpus), blocks, deque(first))
        try:
            yield from pool.answer()
        finally:
            pool.close()

    def _gpus(self, resources: Mapping[str, float]) -> int:
        """GPUs of each worker: as many as vLLM splits a model over; none where the cluster has none."""
        split = self._settings["vllm_tensor_parallel"] if self._settings["ray_backend"] == "vllm" else 1
        return split if resources.get("GPU") else 0


class _Worker:
    """One actor: a backend, loaded once."""

    def __init__(self, settings: Mapping[str, Any], titles: Sequence[str]) -> None:
        self._backend = make_backend(settings, titles)

    def ready(self) -> None:
        """Nothing: an answer to this says that the worker runs."""

    def answer(self, block: Block) -> list[Reply]:
        """The replies to a block, with the positions that it has."""
        replies = self._backend.generate([request for _, request in block])
        found = [reply._replace(position=block[reply.position][0], more=True) for reply in replies if reply]
        return [*found[:-1], *(last._replace(more=False) for last in found[-1:])]


@dataclass
class _Pool:
    """Workers, and the blocks that wait at them.

    Attributes:
        kind: Ray's class of the workers, with what each of them needs.
        given: settings and titles, for them.
        most: workers at once.
        needs: CPUs and GPUs of a worker.
        blocks: those that are not made yet.
        next: those that no worker has, of workers that died among them.
    """

    kind: Any
    given: tuple[Mapping[str, Any], Sequence[str]]
    most: int
    needs: tuple[int, int]
    blocks: Iterator[Block]
    next: "deque[Block]"
    starting: dict[Any, Any] = field(default_factory=dict)  # a worker by the reference that says when it runs
    running: list[Any] = field(default_factory=list)
    waiting: dict[Any, tuple[Any, Block]] = field(default_factory=dict)  # worker and block by the reference to its replies
    deaths: int = 0

    def answer(self) -> Iterator[Reply]:
        """The replies to all blocks."""
        import ray

        while True:
            self._hand_out()
            if not self.waiting and not self._at_hand(1):
                return
            ready, _ = ray.wait([*self.waiting, *self.starting], timeout=_LOOK)
            if not ready and not self.running:
                self._check_room()
            for reference in ready:
                try:
                    found = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    self._lost(reference, error)
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from None
                if reference in self.starting:
                    self.running.append(self.starting.pop(reference))
                else:
                    del self.waiting[reference]
                    self.deaths = 0
                    yield from (Reply(*reply) for reply in found)

    def _hand_out(self) -> None:
        """Give blocks to the workers that can take some, and start workers while there are blocks for them."""
        for worker in self.running:
            while sum(each is worker for each, _ in self.waiting.values()) < _WAITING and self._at_hand(1):
                block = self.next.popleft()
                self.waiting[worker.answer.remote(block)] = worker, block
        while len(self.running) + len(self.starting) < self.most and self._at_hand(len(self.starting) + 1):
            worker = self.kind.remote(*self.given)
            self.starting[worker.ready.remote()] = worker

    def _at_hand(self, count: int) -> bool:
        """Whether there are so many blocks that no worker has."""
        self.next.extend(islice(self.blocks, max(0, count - len(self.next))))
        return len(self.next) >= count

    def _lost(self, reference: Any, error: Exception) -> None:
        """Forget a worker that died; its blocks are given to others.

        Raises:
            UserError: it could not start at all, or workers keep dying.
        """
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        if reference in self.starting and "creation task" in str(error):
            raise UserError(f"a worker of Ray cannot start: {said[-1][:300]}") from None
        worker = self.starting.pop(reference, None) or self.waiting[reference][0]
        self.running = [each for each in self.running if each is not worker]
        mine = [each for each, (owner, _) in self.waiting.items() if owner is worker]
        lost = [self.waiting.pop(each)[1] for each in mine]
        self.next.extendleft(lost)
        self.deaths += 1
        log.warning("a worker of Ray died; its %s requests go to others", f"{sum(map(len, lost)):,}")
        if self.deaths >= _DEATHS * self.most:
            raise UserError(
                f"{self.deaths} workers of Ray died one after the other ({said[0][:200] if said else type(error).__name__}); "
                f"all answers that came are kept; is there enough memory for --ray_workers={self.most}?"
            )

    def _check_room(self) -> None:
        """Refuse to wait for a worker that cannot come.

        Raises:
            UserError: what is left of the cluster carries none.
        """
        import ray

        if _room(ray.cluster_resources(), *self.needs) < 1:
            raise UserError(
                "what is left of the Ray cluster carries no worker; all answers that came are kept: run again when it has nodes"
            )

    def close(self) -> None:
        """End all workers."""
        import ray

        for worker in [*self.running, *self.starting.values()]:
            ray.kill(worker)


def _blocks(requests: Iterable[Request]) -> Iterator[Block]:
    numbered = enumerate(requests)
    while block := list(islice(numbered, _BLOCK)):
        yield block


def _room(resources: Mapping[str, float], cpus: int, gpus: int) -> int:
    """How many workers a cluster carries."""
    return int(resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 0) // cpus)


def _cause(error: Any) -> Exception:
    """What went wrong in a worker: a mistake of the user's as such."""
    cause = getattr(error, "cause", None)
    return UserError(str(cause)) if isinstance(cause, UserError) else error
