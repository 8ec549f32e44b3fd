"""What LLM4SBR, and the mask of `repeatable: false`, add to a training step: seconds and peak memory, in one run.

    python benchmarks/step.py [--model SRGNN] [--json FILE]

Each kind is trained in a process of its own on the same synthetic sessions; they take turns, and the median step counts. The mask's ratio
is the median over the turns of one kind's step with it to the same kind's step without it right before.
"""

import argparse
import json
import multiprocessing as mp
import resource
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch

MASKED = ", masked"  # what the name of a kind that trains under `repeatable: false` ends with
KINDS = ("plain", "plain, masked", "enhanced", "enhanced, masked")


class Dataset:
    """As much of RecBole's dataset as a model reads."""

    uid_field, iid_field = "session_id", "item_id"

    def __init__(self, items: int, sessions: int) -> None:
        self.item_num, self._sizes = items, {"item_id": items, "session_id": sessions}

    def num(self, field: str) -> int:
        return self._sizes[field]


def make(kind: str, options: argparse.Namespace) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """A model and its batches; both kinds get the same batches."""
    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.model import AdaptedRecommender, LLM4SBRWrapper, SessionIntents, SessionRecommender, model_class
    from recbole_llm4sbr.training.config import SessionConfig

    given = {"MAX_ITEM_LIST_LENGTH": options.length, "repeatable": not kind.endswith(MASKED)}
    settings = load_settings(options.model, "synthetic", overrides=given)
    config = SessionConfig(settings)
    torch.manual_seed(0)
    dataset: Any = Dataset(options.items, options.sessions)
    model = model_class(options.model)(config, dataset)
    generator = torch.Generator().manual_seed(1)
    if kind.startswith("enhanced"):
        shape = (options.sessions, 2, settings["intent_k"])
        intents = SessionIntents(
            torch.randn(options.items, options.dim, generator=generator),
            torch.randint(1, options.items, shape, generator=generator),
            torch.rand(shape, generator=generator),
        )
        backbone = model if isinstance(model, SessionRecommender) else AdaptedRecommender(config, dataset, model)
        model = LLM4SBRWrapper(config, dataset, backbone, intents)
    generator = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(8):
        length = torch.randint(1, options.length + 1, (options.batch,), generator=generator)
        clicks = torch.randint(1, options.items, (options.batch, options.length), generator=generator)
        batches.append(
            {
                "session_id": torch.randint(1, options.sessions, (options.batch,), generator=generator),
                "item_id_list": clicks * (torch.arange(options.length) < length.unsqueeze(1)),
                "item_length": length,
                "item_id": torch.randint(1, options.items, (options.batch,), generator=generator),
            }
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), [{key: value.to(device) for key, value in batch.items()} for batch in batches]


def worker(kind: str, options: argparse.Namespace, pipe: Any) -> None:
    """Train when told to; answer with the seconds of each step, at the end with peak memory in MB."""
    torch.set_num_threads(options.threads)
    model, batches = make(kind, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)  # as the trainer
    while (steps := pipe.recv()) is not None:
        seconds = []
        for step in range(steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            losses = model.calculate_loss(batches[step % len(batches)])
            (sum(losses) if isinstance(losses, tuple) else losses).backward()
            optimizer.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        pipe.send(seconds)
    if torch.cuda.is_available():
        pipe.send(torch.cuda.max_memory_allocated() / 2**20)
    else:
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SRGNN")
    for name, default in {"batch": 100, "items": 12000, "length": 50, "dim": 384, "sessions": 100000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=8, help="training steps per turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    context = mp.get_context("spawn")
    kinds = {}
    for kind in KINDS:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(kind, options, theirs), daemon=True)
        process.start()
        kinds[kind] = SimpleNamespace(pipe=ours, process=process, seconds=[], turns=[])
    for turn in range(options.rounds + 1):  # the first turn warms up
        for kind in kinds.values():
            kind.pipe.send(options.steps)
            seconds = kind.pipe.recv()
            if turn:
                kind.seconds += seconds
                kind.turns.append(statistics.median(seconds))
    result: dict[str, Any] = {"setting": vars(options), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    for name, kind in kinds.items():
        kind.pipe.send(None)
        result[name] = {
            "step_ms": round(1000 * statistics.median(kind.seconds), 2),
            "peak_memory_mb": round(kind.pipe.recv(), 1),
        }
        kind.process.join()
    for figure in ("step_ms", "peak_memory_mb"):
        result[f"{figure}_ratio"] = round(result["enhanced"][figure] / result["plain"][figure], 3)
    for name in ("plain", "enhanced"):
        pairs = zip(kinds[name + MASKED].turns, kinds[name].turns)
        result[f"mask_ratio_{name}"] = round(statistics.median(masked / bare for masked, bare in pairs), 3)
    print(f"{options.model}, {result['device']}, batch {options.batch}, {options.items} items, length up to {options.length}")
    for name in kinds:
        print(f"  {name:16} {result[name]['step_ms']:8.2f} ms per step   {result[name]['peak_memory_mb']:8.1f} MB peak")
    print(f"  enhanced / plain {result['step_ms_ratio']:8.3f}               {result['peak_memory_mb_ratio']:8.3f}")
    print(f"  with the mask / without: plain {result['mask_ratio_plain']:.3f}, enhanced {result['mask_ratio_enhanced']:.3f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(result, handle, indent=2)


if __name__ == "__main__":
    main()
