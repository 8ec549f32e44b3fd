"""Sessions per second of tuning an LLM: as peft and torch do it by themselves, and ours, measure by measure, in one run.

    python benchmarks/tuning.py [--dataset ml-100k] [--llm smollm2-135m-instruct] [--steps 3] [--threads 2]

Every kind makes the same steps over the same sessions; they take turns, and the median counts. Needs peft.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.finetune import llm, packing
from recbole_llm4sbr.finetune.examples import training_pairs
from recbole_llm4sbr.intent.backends.transformers import compute_dtype
from recbole_llm4sbr.intent.pretrained import resolve

BATCH = 16  # sessions of a step
LIST, ALL = "+ the session's list is learned too", "the same with all weights, no adapters"


def make(kind: str, settings: Any, examples: list[packing.Example], device: torch.device) -> llm.TunableLLM:
    """The model of a kind; `peft` has peft's own layers and torch's fused attention."""
    model, tokenizer = resolve(settings["llm"], "llm").load_causal_lm(compute_dtype(device), device)
    weight = 1.0 if kind in (LIST, ALL) else 0.0
    rank = 0 if kind == ALL else 16
    tuned = llm.TunableLLM(model, tokenizer, examples, rank, 4096, weight, share=kind != "peft, each view by itself")
    if kind.startswith("peft"):
        for module in tuned.model.modules():
            module.__dict__.pop("forward", None)
        model.set_attn_implementation("sdpa")
    return tuned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--llm", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        given = {"atomic_path": folder, "data_path": options.data_path, "llm": options.llm}
        settings = load_settings(dataset=options.dataset, overrides=given)
        prepare(settings)
        examples = list(packing.questions(settings, training_pairs(settings, BATCH * (options.steps + 1), 8, 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds = ("peft, each view by itself", "peft", "+ adapters summed in, plain attention", LIST, ALL)
    models = {kind: make(kind, settings, examples, device) for kind in kinds}
    optimizers = {kind: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for kind, model in models.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for step in range(options.steps + 1):
        for kind, model in models.items():
            views = len(model.lengths) // len(models["peft"].lengths)  # rows of a session
            started = time.perf_counter()
            model.step(range(step * BATCH * views, (step + 1) * BATCH * views))
            optimizers[kind].step()
            optimizers[kind].zero_grad()
            if step:  # the first one warms up
                seconds[kind].append(time.perf_counter() - started)
    print(f"{options.llm}, {device}, {options.threads} threads; {BATCH} sessions a step, {options.steps} steps")
    first = BATCH / statistics.median(seconds[kinds[0]])
    before = first
    for kind in kinds:
        rate = BATCH / statistics.median(seconds[kind])
        print(f"{kind:38} {rate:6.2f} sessions/s   x {rate / before:5.2f}   in all x {rate / first:5.2f}", flush=True)
        before = rate


if __name__ == "__main__":
    main()
