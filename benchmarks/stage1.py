"""LLM prompts per second: a loop of one prompt at a time, as in the authors' code, and ours, in one run on the same prompts.

    python benchmarks/stage1.py [--sessions 16] [--llm smollm2-135m-instruct] [--json FILE]

The prompts are the first sessions of ml-100k, two views each. Short by default; figures grow steadier with more sessions.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def one_at_a_time(backend: Any, requests: list[Any]) -> list[str]:
    """`generate` on one prompt after the other with the same model, tokenizer and decoding; stops as ours does."""
    answers = []
    for request in requests:
        inputs = backend._tokenizer(backend._render(request), return_tensors="pt", add_special_tokens=False).to(backend.device)
        with torch.inference_mode():
            output = backend._model.generate(
                **inputs,
                max_new_tokens=backend.decoding["max_new_tokens"],
                do_sample=False,
                stopping_criteria=[backend._stop],
                pad_token_id=backend._tokenizer.pad_token_id,
            )
        answers.append(backend._tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--llm", default="smollm2-135m-instruct")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    from recbole_llm4sbr.data.atomic import dataset_folder, prepare, read_items, read_sessions
    from recbole_llm4sbr.intent.backends import make_backend
    from recbole_llm4sbr.intent.prompts import PromptTemplate, item_names
    from recbole_llm4sbr.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(dataset="ml-100k", overrides={"atomic_path": folder, "llm": options.llm})
        prepare(settings)
        items = read_items(dataset_folder(settings) / "ml-100k.item")
        names = dict(zip(items["item_id"], item_names(items, settings)))
        rows = read_sessions(Path(folder) / "ml-100k", "ml-100k", "train")
    template = PromptTemplate.load("movies")
    shown = [[names[item] for item in prefix] for prefix in rows.prefixes[: options.sessions]]
    requests = [template.build(session, view) for session in shown for view in ("long", "short")]
    backend = make_backend(settings)
    dict(backend.generate(requests[:2]))  # loads and warms up
    seconds, answers = {}, {}
    started = time.perf_counter()
    answers["one at a time"] = one_at_a_time(backend, requests)
    seconds["one at a time"] = time.perf_counter() - started
    started = time.perf_counter()
    got = dict(backend.generate(requests))
    seconds["ours"] = time.perf_counter() - started
    answers["ours"] = [got[position] for position in range(len(requests))]
    same = sum(a == b for a, b in zip(*answers.values()))
    result = {
        "llm": backend.identity,
        "device": str(backend.device),
        "prompts": len(requests),
        "prompts_per_second": {name: round(len(requests) / each, 3) for name, each in seconds.items()},
        "ratio": round(seconds["one at a time"] / seconds["ours"], 2),
        "same_answers": same,
    }
    for name, each in seconds.items():
        print(f"{name:14} {len(requests) / each:8.2f} prompts/s")
    print(f"ratio {result['ratio']:.2f}; {same} of {len(requests)} answers the same")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(result, handle, indent=2)


if __name__ == "__main__":
    main()
