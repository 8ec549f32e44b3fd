"""`infer`: prepared sessions -> LLM intents -> `.itememb`, `.sessemb`, `.intentemb` (paper section 4.1; docs/feature-files.md)."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.data.atomic import (
    SessionRows,
    check_files,
    check_prepared,
    dataset_folder,
    read_items,
    read_sessions,
)
from recbole_llm4sbr.data.sessions import PARTS
from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import read_json, sha256_file, write_json, write_whole
from recbole_llm4sbr.intent.answers import AnswerStore, clean
from recbole_llm4sbr.intent.ask import Questions, cost, estimate
from recbole_llm4sbr.intent.backends import make_backend
from recbole_llm4sbr.intent.encoder import Encoder, Vectors
from recbole_llm4sbr.intent.localize import localize
from recbole_llm4sbr.intent.prompts import PromptTemplate, SessionPrompts, item_names, item_texts, split_joint

log = logging.getLogger(__name__)

MANIFEST = "infer.json"
STORE = "answers.sqlite"
FAILURES = "failures.jsonl"
RECENT = 3  # items of the `short` view under intent_source=session_text
_ALWAYS = ("intent_source", "views", "item_text", "article_last", "missing_item_text", "encoder", "intent_k_max", "faiss_index")
_OF_THE_LLM = (
    "prompt", "item_name", "item_name_length", "llm", "llm_max_new_tokens", "llm_extra", "max_sessions", "intent_refresh",
    "views_in_one_call",
)  # fmt: skip
_OF_THE_RUN = ("calls", "reused", "shipped", "failures", "prompt_tokens", "answer_tokens", "llm_seconds", "cost")


def infer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the feature files of a prepared dataset, unless they are there, made with the same settings.

    Args:
        settings: what `settings.load_settings` returned.

    Returns:
        Counts: sessions, prompts, distinct prompts and answers, calls made, answers reused (from the store and shipped), sessions
        without an intent.

    Raises:
        UserError: nothing is prepared, a template, view, model or column is wrong, or the files were made with other settings.
    """
    started = time.perf_counter()
    if settings["intent_k"] == 0 and settings["intent_source"] != "llm":
        raise UserError(
            f"intent_k=0 needs an LLM's answers, which intent_source={settings['intent_source']!r} does not have; raise it"
        )
    prepared = check_prepared(settings)
    folder = dataset_folder(settings)
    wanted = _deciding(settings)
    if (folder / MANIFEST).is_file() and not settings["llm_refresh"]:
        changed = _changed(read_json(folder / MANIFEST), wanted, prepared)
        if not changed:
            manifest = check_inferred(settings)
            log.info("infer: %s sessions have their intents already; no LLM call", f"{manifest['counts']['sessions']:,}")
            return {**manifest["counts"], "calls": 0, "reused": manifest["counts"]["distinct_prompts"], "shipped": 0}
        if not settings["rebuild"]:
            raise UserError(
                f"the feature files in {str(folder)!r} were made otherwise: {'; '.join(changed)}; "
                f"add --rebuild=true to make them anew (LLM answers are kept), or choose another --atomic_path"
            )
    items = read_items(folder / f"{settings['dataset']}.item")
    rows = read_sessions(folder, settings["dataset"], *PARTS)
    asking = settings["intent_source"] == "llm"
    if asking and settings["dry_run"]:
        store = AnswerStore(folder.parent / STORE)
        print(estimate(_questions(settings, store, rows, items), _prices(settings)))
        return {}
    # The encoder and the index are tried before the LLM is asked: a mistake there must not cost an hour of answers.
    encoder = Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"])
    item_vectors = encoder.encode(item_texts(items, settings))
    localize(item_vectors[:1], item_vectors, 1, settings["faiss_index"])
    tokens = items["item_id"].tolist()
    if asking:
        texts, intents, counted = _answers(settings, folder, rows, items)
        vectors = encoder.encode(texts)
        counted["distinct_answers"] = len(texts)
    else:
        vectors, intents = _session_text(rows, tokens, item_vectors, settings["views"])
        counted = {"prompts": 0, "distinct_prompts": 0, "calls": 0, "reused": 0, "shipped": 0, "not_asked": 0}
    found, sims = localize(vectors, item_vectors, settings["intent_k_max"], settings["faiss_index"])
    without = int(sum((column < 0).sum() for column in intents.values()))
    counted |= {
        "sessions": len(rows.ids),
        "intents": len(rows.ids) * len(intents) - without,
        "no_intent": without - counted["not_asked"],
        "dim": encoder.dim,
        "k_max": found.shape[1],
    }
    (folder / MANIFEST).unlink(missing_ok=True)
    files = _write(settings, folder, rows.ids, tokens, item_vectors, vectors, intents, found, sims)
    manifest = {
        "made_by": "recbole_llm4sbr infer",
        "version": __version__,
        "settings": wanted,
        "encoder": encoder.identity,
        "prepared": prepared["files"],
        "counts": {key: value for key, value in counted.items() if key not in _OF_THE_RUN},
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    counted["seconds"] = round(time.perf_counter() - started, 1)
    log.info(report(counted))
    return counted


def report(counted: Mapping[str, Any]) -> str:
    """The counts of a run of `infer`, in words."""
    text = f"infer: {counted['sessions']:,} sessions, {counted['intents']:,} intents, {counted['no_intent']:,} missing"
    if counted["no_intent"]:
        text += " (the answer names nothing, or the call failed)"
    if counted["not_asked"]:
        text += f", {counted['not_asked']:,} not asked for (max_sessions)"
    text += (
        f"; {counted['calls']:,} LLM calls made, {counted['reused']:,} answers reused, of these {counted['shipped']:,} shipped"
    )
    if counted["calls"]:
        text += (
            f"; {counted['failures']:,} calls failed; {counted['prompt_tokens']:,} prompt and "
            f"{counted['answer_tokens']:,} answer tokens in "
            f"{counted['llm_seconds']:,.0f} s" + (f", cost {counted['cost']:,.2f}" if counted["cost"] is not None else "")
        )
    return text


def _write(
    settings: Mapping[str, Any],
    folder: Path,
    ids: Sequence[str],
    tokens: Sequence[str],
    item_vectors: Vectors,
    vectors: Vectors,
    intents: Mapping[str, npt.NDArray[np.int32]],
    found: npt.NDArray[np.int64],
    sims: Vectors,
) -> dict[str, str]:
    """Write the feature files; their names and checksums."""
    name = settings["dataset"]
    files = {
        f"{name}.itememb": _vector_lines("iid:token\titem_emb:float_seq", tokens, item_vectors),
        f"{name}.sessemb": _session_lines(ids, intents, [[tokens[item] for item in row] for row in found.tolist()], sims),
    }
    if settings["intent_source"] == "llm":  # without an LLM every session has a vector of its own: too much for a text file
        numbers = [f"i{number}" for number in range(len(vectors))]
        files[f"{name}.intentemb"] = _vector_lines("intent_id:token\tintent_emb:float_seq", numbers, vectors)
    for file, lines in files.items():
        with write_whole(folder / file) as handle:
            handle.writelines(lines)
    return {file: sha256_file(folder / file) for file in files}


def check_inferred(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a dataset's feature files.

    Raises:
        UserError: there are none, they were made for other settings or session files, or a file has changed since.
    """
    folder = dataset_folder(settings)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{str(folder)!r} holds no feature files; run `recbole-llm4sbr infer --dataset={settings['dataset']}` first"
        )
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    changed = _changed(manifest, _deciding(settings), check_prepared(settings))
    if changed:
        raise UserError(
            f"the feature files in {str(folder)!r} were made otherwise: {'; '.join(changed)}; run `infer` with --rebuild=true"
        )
    check_files(folder, manifest)
    if settings["intent_k"] > manifest["counts"]["k_max"]:
        raise UserError(
            f"intent_k={settings['intent_k']} is larger than the {manifest['counts']['k_max']} items that are stored per intent"
        )
    return manifest


def _changed(manifest: Mapping[str, Any], wanted: Mapping[str, Any], prepared: Mapping[str, Any]) -> list[str]:
    made = manifest["settings"]
    changed = [
        f"{key} was {made.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted(made | wanted)
        if made.get(key) != wanted.get(key)
    ]
    if manifest["prepared"] != prepared["files"]:
        changed.append("the session files are other ones")
    return changed


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the feature files depend on; the prompt template by its content."""
    keys = _ALWAYS + (_OF_THE_LLM if settings["intent_source"] == "llm" else ())
    deciding = {key: settings[key] for key in keys}
    if settings["intent_source"] == "llm":
        backend = settings["ray_backend"] if settings["llm_backend"] == "ray" else settings["llm_backend"]
        deciding["llm_backend"] = (
            "local" if backend in ("transformers", "vllm") else backend
        )  # local engines share their answers
        template = PromptTemplate.load(settings["prompt"])
        template.check_views(settings["views"])
        example = [template.build(["1", "2"], view) for view in settings["views"]]
        deciding["prompt_example"] = [
            list(request) + [template.views[view].window] for view, request in zip(settings["views"], example)
        ]
    return deciding


def _questions(settings: Mapping[str, Any], store: AnswerStore, rows: SessionRows, items: pd.DataFrame) -> Questions:
    """What there is to ask about the rows."""
    template = PromptTemplate.load(settings["prompt"])
    names = dict(zip(items["item_id"], item_names(items, settings)))
    requests = SessionPrompts(
        template,
        settings["views"],
        rows,
        [names[token] for token in rows.tokens],
        _spread(len(rows.ids), settings["max_sessions"]),
        settings["intent_refresh"] == "powers",
        settings["views_in_one_call"],
    )
    return Questions(make_backend(settings), requests, store, template.name, settings["llm_refresh"])


def _answers(
    settings: Mapping[str, Any], folder: Path, rows: SessionRows, items: pd.DataFrame
) -> tuple[list[str], dict[str, npt.NDArray[np.int32]], dict[str, Any]]:
    """Distinct names in the answers, the place there of every row's name by view (-1: none), and counts."""
    views, prices = settings["views"], _prices(settings)
    store = AnswerStore(folder.parent / STORE)
    questions = _questions(settings, store, rows, items)
    counts = questions.ask(folder / FAILURES, settings["max_failure_rate"], prices)
    qualifiers = [view.qualifier for view in PromptTemplate.load(settings["prompt"]).views.values()]

    def parse(raw: str) -> list[str]:
        return [clean(part, qualifiers) for part in (split_joint(raw, views) if settings["views_in_one_call"] else [raw])]

    names, numbers = questions.answers(parse, len(views) if settings["views_in_one_call"] else 1)
    store.close()
    if not names:
        raise UserError(
            f"none of the {counts.prompts:,} answers of {settings['llm']!r} names anything; try another --llm or --prompt"
        )
    asked = _spread(len(rows.ids), settings["max_sessions"])
    intents = {view: np.full(len(rows.ids), -1, np.int32) for view in views}
    by_row = numbers[questions.number].reshape(len(asked), len(views))
    for column, view in enumerate(views):
        intents[view][asked] = by_row[:, column]
    return (
        names,
        intents,
        {
            "prompts": counts.prompts,
            "distinct_prompts": counts.distinct,
            "calls": counts.calls,
            "reused": counts.reused + counts.shipped + counts.elsewhere,
            "shipped": counts.shipped,
            "failures": counts.failures,
            "prompt_tokens": counts.prompt_tokens,
            "answer_tokens": counts.answer_tokens,
            "llm_seconds": round(counts.seconds, 1),
            "cost": round(cost(counts, prices), 4) if prices else None,
            "not_asked": (len(rows.ids) - len(asked)) * len(views),
        },
    )


def _prices(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    prices = settings["llm_prices"]
    return (float(prices[0]), float(prices[1])) if prices else None


def _spread(total: int, most: int) -> list[int]:
    """Row numbers to ask about: all, or `most` of them at even distances, so that every part gets its share."""
    if not most or most >= total:
        return list(range(total))
    return [int((number + 0.5) * total / most) for number in range(most)]


def _session_text(
    rows: SessionRows, tokens: Sequence[str], item_vectors: Vectors, views: Sequence[str]
) -> tuple[Vectors, dict[str, npt.NDArray[np.int32]]]:
    """Intents without an LLM: unit mean vector of all items of the prefix, for the view `short` of its last three."""
    place = {token: position for position, token in enumerate(tokens)}
    items = np.array([place[token] for token in rows.tokens])[rows.clicks]
    vectors: list[Vectors] = []
    intents: dict[str, npt.NDArray[np.int32]] = {}
    ends, lengths = rows.starts[1:], np.diff(rows.starts)
    for view in views:
        size = np.minimum(lengths, RECENT) if view == "short" else lengths
        means = np.concatenate(
            [_sums(item_vectors, items, ends[a:b] - size[a:b], size[a:b]) for a, b in _blocks(len(size), 10_000)]
        )
        norms = np.linalg.norm(means, axis=1)
        intents[view] = np.where(norms > 0, np.arange(len(means)) + sum(map(len, vectors)), -1).astype(np.int32)
        vectors.append((means / np.maximum(norms, 1e-12)[:, None]).astype(np.float32))
    return np.concatenate(vectors), intents


def _sums(item_vectors: Vectors, items: npt.NDArray[np.int64], starts: Any, sizes: Any) -> Vectors:
    """Sum of the vectors of `sizes` items from `starts` on, row by row."""
    offsets = np.cumsum(sizes) - sizes
    flat = np.repeat(starts - offsets, sizes) + np.arange(sizes.sum())
    sums: Vectors = np.add.reduceat(item_vectors[items[flat]], offsets)
    return sums


def _blocks(length: int, size: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _vector_lines(head: str, ids: Sequence[str], vectors: Vectors) -> Iterable[str]:
    """Lines of an atomic file of one vector per id, six significant digits."""
    yield head + "\n"
    form = " ".join(["%.6g"] * vectors.shape[1])
    for token, vector in zip(ids, vectors.tolist()):
        yield f"{token}\t{form % tuple(vector)}\n"


def _session_lines(
    ids: Sequence[str], intents: Mapping[str, npt.NDArray[np.int32]], found: Sequence[Sequence[str]], sims: Vectors
) -> Iterable[str]:
    """Lines of `.sessemb`: per view the nearest items, their similarities (four decimals) and the intent's id; empty without one."""
    yield (
        "\t".join(["sid:token", *(f"{view}_items:token_seq\t{view}_sims:float_seq\t{view}_intent:token" for view in intents)])
        + "\n"
    )
    form = " ".join(["%.4f"] * (sims.shape[1] if len(sims) else 0))
    cells = [
        f"{' '.join(items)}\t{form % tuple(row)}\ti{number}" for number, (items, row) in enumerate(zip(found, sims.tolist()))
    ]
    cells.append("\t\t")  # for the intent -1
    for row, token in enumerate(ids):
        yield "\t".join([token, *(cells[column[row]] for column in intents.values())]) + "\n"
