"""`infer`: prepared sessions -> LLM intents -> `.itememb`, `.sessemb`, `.intentemb` (paper section 4.1; docs/feature-files.md)."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from recbole_llm4sbr.intent.answers import clean
from recbole_llm4sbr.intent.ask import ask
from recbole_llm4sbr.intent.backends import Request, make_backend
from recbole_llm4sbr.intent.encoder import Encoder, Vectors
from recbole_llm4sbr.intent.localize import localize
from recbole_llm4sbr.intent.prompts import PromptTemplate, item_names, item_texts

log = logging.getLogger(__name__)

MANIFEST = "infer.json"
STORE = "answers.sqlite"
RECENT = 3  # items of the `short` view under intent_source=session_text
_ALWAYS = ("intent_source", "views", "item_text", "article_last", "missing_item_text", "encoder", "intent_k_max", "faiss_index")
_OF_THE_LLM = ("prompt", "item_name", "item_name_length", "llm", "llm_backend", "llm_max_new_tokens", "max_sessions")


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
    # The encoder and the index are tried before the LLM is asked: a mistake there must not cost an hour of answers.
    encoder = Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"])
    item_vectors = encoder.encode(item_texts(items, settings))
    localize(item_vectors[:1], item_vectors, 1, settings["faiss_index"])
    parts = [read_sessions(folder, settings["dataset"], part) for part in PARTS]
    rows = SessionRows(
        *(list(chain.from_iterable(getattr(part, field.name) for part in parts)) for field in fields(SessionRows))
    )
    if settings["intent_source"] == "llm":
        names = dict(zip(items["item_id"], item_names(items, settings)))
        answers, counted = _answers(settings, folder, rows, names)
        distinct = sorted({answer for column in answers.values() for answer in column if answer})
        if not distinct:
            raise UserError(
                f"none of the {counted['prompts']:,} answers of {settings['llm']!r} names anything; try another --llm or --prompt"
            )
        vectors = encoder.encode(distinct)
        number = {answer: position for position, answer in enumerate(distinct)}
        intents = {view: np.array([number.get(answer, -1) for answer in column]) for view, column in answers.items()}
        counted["distinct_answers"] = len(distinct)
    else:
        vectors, intents = _session_text(rows, items["item_id"].tolist(), item_vectors, settings["views"])
        counted = {"prompts": 0, "distinct_prompts": 0, "calls": 0, "reused": 0, "shipped": 0}
    found, sims = localize(vectors, item_vectors, settings["intent_k_max"], settings["faiss_index"])
    counted |= {
        "sessions": len(rows.ids),
        "failed": int(sum((column < 0).sum() for column in intents.values())),
        "dim": encoder.dim,
        "k_max": found.shape[1],
    }
    (folder / MANIFEST).unlink(missing_ok=True)
    files = _write(settings, folder, rows.ids, items["item_id"].tolist(), item_vectors, vectors, intents, found, sims)
    manifest = {
        "made_by": "recbole_llm4sbr infer",
        "version": __version__,
        "settings": wanted,
        "encoder": encoder.identity,
        "prepared": prepared["files"],
        "counts": {key: value for key, value in counted.items() if key not in ("calls", "reused", "shipped")},
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)
    counted["seconds"] = round(time.perf_counter() - started, 1)
    log.info(
        "infer: %s sessions; %s LLM calls made, %s answers reused, of these %s shipped with the package; %s without an intent",
        *(f"{counted[key]:,}" for key in ("sessions", "calls", "reused", "shipped", "failed")),
    )
    return counted


def _write(
    settings: Mapping[str, Any],
    folder: Path,
    ids: Sequence[str],
    tokens: Sequence[str],
    item_vectors: Vectors,
    vectors: Vectors,
    intents: Mapping[str, npt.NDArray[np.int64]],
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
        template = PromptTemplate.load(settings["prompt"])
        template.check_views(settings["views"])
        example = [template.build(["1", "2"], view) for view in settings["views"]]
        deciding["prompt_example"] = [
            list(request) + [template.views[view].window] for view, request in zip(settings["views"], example)
        ]
    return deciding


def _answers(
    settings: Mapping[str, Any], folder: Path, rows: SessionRows, names: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The cleaned answer of every session row per view ("" where there is none), and counts."""
    template = PromptTemplate.load(settings["prompt"])
    asked = _spread(len(rows.ids), settings["max_sessions"])
    requests: list[Request] = []
    for row in asked:
        shown = [names[item] for item in rows.prefixes[row]]
        requests += [template.build(shown, view) for view in settings["views"]]
    given = ask(make_backend(settings), requests, folder.parent / STORE, template.name, settings["llm_refresh"])
    qualifiers = [view.qualifier for view in template.views.values()]
    cleaned = {key: clean(given.raw[key], qualifiers) for key in set(given.keys)}
    answers = {view: [""] * len(rows.ids) for view in settings["views"]}
    keys = iter(given.keys)
    for row in asked:
        for view in settings["views"]:
            answers[view][row] = cleaned[next(keys)]
    return answers, {
        "prompts": len(requests),
        "distinct_prompts": len(cleaned),
        "calls": given.calls,
        "reused": given.reused + given.shipped,
        "shipped": given.shipped,
    }


def _spread(total: int, most: int) -> list[int]:
    """Row numbers to ask about: all, or `most` of them at even distances, so that every part gets its share."""
    if not most or most >= total:
        return list(range(total))
    return [int((number + 0.5) * total / most) for number in range(most)]


def _session_text(
    rows: SessionRows, tokens: Sequence[str], item_vectors: Vectors, views: Sequence[str]
) -> tuple[Vectors, dict[str, npt.NDArray[np.int64]]]:
    """Intents without an LLM: unit mean vector of all items of the prefix, for the view `short` of its last three."""
    number = {token: position for position, token in enumerate(tokens)}
    vectors: list[Vectors] = []
    intents: dict[str, npt.NDArray[np.int64]] = {}
    for view in views:
        prefixes = [prefix[-RECENT:] if view == "short" else prefix for prefix in rows.prefixes]
        lengths = np.array([len(prefix) for prefix in prefixes])
        flat = np.array([number[token] for prefix in prefixes for token in prefix])
        starts = np.cumsum(lengths) - lengths
        means = np.concatenate(
            [
                np.add.reduceat(item_vectors[flat[starts[a] : starts[b - 1] + lengths[b - 1]]], starts[a:b] - starts[a])
                for a, b in _blocks(len(lengths), 10_000)
            ]
        )
        norms = np.linalg.norm(means, axis=1)
        intents[view] = np.where(norms > 0, np.arange(len(means)) + sum(map(len, vectors)), -1)
        vectors.append((means / np.maximum(norms, 1e-12)[:, None]).astype(np.float32))
    return np.concatenate(vectors), intents


def _blocks(length: int, size: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _vector_lines(head: str, ids: Sequence[str], vectors: Vectors) -> Iterable[str]:
    """Lines of an atomic file of one vector per id, six significant digits."""
    yield head + "\n"
    form = " ".join(["%.6g"] * vectors.shape[1])
    for token, vector in zip(ids, vectors.tolist()):
        yield f"{token}\t{form % tuple(vector)}\n"


def _session_lines(
    ids: Sequence[str], intents: Mapping[str, npt.NDArray[np.int64]], found: Sequence[Sequence[str]], sims: Vectors
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
