"""LLM prompts per second: a loop of one prompt at a time, as in the authors' code, and ours, measure by measure, in one run.

    python benchmarks/stage1.py [--targets last] [--sessions 32] [--dataset ml-100k] [--llm smollm2-135m-instruct] [--vllm] [--json FILE]

All lines answer the same prompts with the same model in the same number type: two views of each row of the first sessions;
`--targets all` makes every prefix of them a row, as the paper's protocol for Beauty does. Short by default; figures grow steadier
with more sessions. With `--vllm` the same by vLLM too, where it is installed (benchmarks/vllm_environment.py); with `--beams 5` at the end
the five likeliest titles of each prompt in place of one (`llm_beams`), and the five likeliest of the catalogue that its session does not
have (`llm_titles=new`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.folders import dataset_folder, part_file
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items, read_sessions, session_of
from recbole_llm4sbr.intent.backends import LLMBackend, Reply, Request
from recbole_llm4sbr.intent.backends.chat import Group, render, tokenize
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.prompts import PromptTemplate, SessionPrompts, item_names


class ArrivalOrder(TransformersBackend):
    """Batches in the order in which prompts come, padded to the longest."""

    def _answer_block(self, block: Sequence[Request]) -> Iterator[Reply]:
        self.load()
        tokens = tokenize(self._tokenizer, block)
        waiting = [Group([], [position], [0]) for position in range(len(tokens))]
        rest = {id(each): len(tokens[each.members[0]]) for each in waiting}
        while waiting:
            count = self._fitting(waiting, rest)
            batch, waiting = waiting[:count], waiting[count:]
            yield from self._answer(batch, tokens, block)


def one_at_a_time(backend: TransformersBackend, requests: Sequence[Request], stop: bool) -> list[str]:
    """`generate` on one prompt after the other."""
    answers = []
    for request in requests:
        text = render(backend._tokenizer, request)
        inputs = backend._tokenizer(text, return_tensors="pt", add_special_tokens=False).to(backend.device)
        start = inputs.input_ids.shape[1]
        with torch.inference_mode():
            output = backend._model.generate(
                **inputs,
                max_new_tokens=backend.decoding["max_new_tokens"],
                do_sample=False,
                stopping_criteria=[backend.stop(1, start)] if stop else None,
                pad_token_id=backend._tokenizer.pad_token_id,
            )
        answers.append(backend._tokenizer.decode(output[0, start:], skip_special_tokens=True))
    return answers


def collected(backend: LLMBackend, requests: Sequence[Request]) -> list[str]:
    got = {reply.position: reply.answer for reply in backend.generate(requests)}
    return [got[position] for position in range(len(requests))]


def distinct_once(backend: TransformersBackend, requests: Sequence[Request]) -> list[str]:
    """Ours as `infer` uses it: equal prompts are sent once."""
    distinct = list(dict.fromkeys(requests))
    return list(map(dict(zip(distinct, collected(backend, distinct))).__getitem__, requests))


def load_requests(options: argparse.Namespace) -> tuple[list[Request], list[str]]:
    """Two views of each row of the first sessions, and the titles of the catalogue."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"atomic_path": folder, "data_path": options.data_path}
        settings = load_settings(dataset=options.dataset, overrides=given)
        prepare(settings)
        items = read_items(dataset_folder(settings) / f"{options.dataset}.item")
        names = dict(zip(items["item_id"], item_names(items, settings)))
        rows = read_sessions(dataset_folder(settings), options.dataset, part_file("train", options.targets))
    sessions = [session_of(name) for name in rows.ids]
    wanted = set(list(dict.fromkeys(sessions))[: options.sessions])
    asked = [row for row, session in enumerate(sessions) if session in wanted]
    template = PromptTemplate.load(settings["prompt"])
    prompts = SessionPrompts(template, ["long", "short"], rows, [names[token] for token in rows.tokens], asked, new=True)
    return list(prompts), sorted(set(names.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", choices=("last", "all"), default="last")
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--llm", default="smollm2-135m-instruct")
    parser.add_argument("--batch_tokens", type=int, default=0)
    parser.add_argument("--vllm", action="store_true", help="also ask vLLM, in the same number type")
    parser.add_argument("--beams", type=int, default=0, help="also read so many titles of each prompt by beam search")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    requests, titles = load_requests(options)
    ours = TransformersBackend(options.llm, 16, options.batch_tokens)
    ours.load()
    arrival, alone = (
        ArrivalOrder(options.llm, 16, options.batch_tokens),
        TransformersBackend(options.llm, 16, options.batch_tokens, share=False),
    )
    for other in (arrival, alone):
        other.__dict__.update({key: value for key, value in ours.__dict__.items() if key != "_share"})
    collected(ours, requests[:8])  # warms up
    measures: list[tuple[str, Callable[[], list[str]]]] = [
        ("one at a time, to the token limit", lambda: one_at_a_time(ours, requests, stop=False)),
        ("+ stops where the answer ends", lambda: one_at_a_time(ours, requests, stop=True)),
        ("+ batches, in order of arrival", lambda: collected(arrival, requests)),
        ("+ sorted by length", lambda: collected(alone, requests)),
        ("+ shared beginnings computed once", lambda: collected(ours, requests)),
        ("+ equal prompts sent once", lambda: distinct_once(ours, requests)),
    ]
    dtype = str(next(ours._model.parameters()).dtype).removeprefix("torch.")
    if options.vllm:
        from recbole_llm4sbr.intent.backends.vllm import VLLMBackend

        engine = VLLMBackend(options.llm, 16, {"dtype": dtype, "max_model_len": 2048, "gpu_memory_utilization": 0.3})
        collected(engine, requests[:8])
        measures.append(("vLLM", lambda: collected(engine, requests)))
    if options.beams:
        for name, held in (("titles of each", None), ("new titles of the catalogue", titles)):
            wide = TransformersBackend(options.llm, 16, options.batch_tokens, beams=options.beams)
            own = ("_beams", "decoding", "_trees")
            wide.__dict__.update({key: value for key, value in ours.__dict__.items() if key not in own})
            if held:
                wide.hold_to(held)
            measures.append(
                (f"the {options.beams} likeliest {name}", lambda wide=wide: collected(wide, list(dict.fromkeys(requests))))
            )
    tokens = ours.count_tokens(requests) / len(requests)
    print(f"{options.llm}, {ours.device}, {dtype}; {len(requests)} prompts of {tokens:.0f} tokens, targets {options.targets}")
    lines: list[dict[str, Any]] = []
    expected: list[str] = []
    for name, run in measures:
        started = time.perf_counter()
        answers = run()
        seconds = time.perf_counter() - started
        expected = answers if name.startswith("+ stops") else expected
        same = sum(a == b for a, b in zip(answers, expected)) if expected and "likeliest" not in name else None
        lines.append({"measure": name, "prompts_per_second": round(len(requests) / seconds, 2), "same_answers": same})
        gain = lines[-1]["prompts_per_second"] / lines[max(len(lines) - 2, 0)]["prompts_per_second"]
        ratio = lines[-1]["prompts_per_second"] / lines[0]["prompts_per_second"]
        lines[-1] |= {"gain": round(gain, 2), "ratio": round(ratio, 2)}
        note = "" if same is None else f"; {same} answers as one at a time"
        print(f"{name:36} {len(requests) / seconds:8.2f} prompts/s   x {gain:5.2f}   in all x {ratio:6.2f}{note}", flush=True)
    if options.json:
        result = {"llm": ours.identity, "device": str(ours.device), "dtype": dtype, "threads": torch.get_num_threads()}
        result |= {
            "prompts": len(requests),
            "tokens_per_prompt": round(tokens, 1),
            "targets": options.targets,
            "measures": lines,
        }
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(result, handle, indent=2)


if __name__ == "__main__":
    main()
