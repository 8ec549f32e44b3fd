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
from recbole_llm4sbr.features import Vectors, intents_folder, read_vectors, vector_lines
from recbole_llm4sbr.files import make_folder, read_json, sha256_file, write_json, write_whole
from recbole_llm4sbr.intent.answers import AnswerStore, clean
from recbole_llm4sbr.intent.ask import Questions, cost, estimate
from recbole_llm4sbr.intent.backends import make_backend
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.localize import localize
from recbole_llm4sbr.intent.prompts import PromptTemplate, SessionPrompts, item_names, item_texts, split_joint
from recbole_llm4sbr.settings import check_intent_k, intent_files

log = logging.getLogger(__name__)

MANIFEST = "infer.json"
ITEM_MANIFEST = "itememb.json"
STORE = "answers.sqlite"
FAILURES = "failures.jsonl"
RECENT = 3  # items of the `short` view under intent_source=session_text
_OF_ITEMS = ("item_text", "article_last", "missing_item_text", "encoder")
_ALWAYS = (*_OF_ITEMS, "views", "intent_k_max", "faiss_index")
_OF_THE_LLM = (
    "prompt", "item_name", "item_name_length", "llm", "llm_max_new_tokens", "llm_extra", "max_sessions", "intent_refresh",
    "views_in_one_call",
)  # fmt: skip
_OF_THE_RUN = ("calls", "reused", "shipped", "failures", "prompt_tokens", "answer_tokens", "llm_seconds", "cost")


def infer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the feature files of a prepared dataset, unless they are there, made with the same settings.

    Views that are missing in files made otherwise alike are added to them. The LLM's and `session_text`'s files stand beside each
    other; `.itememb` is shared.

    Args:
        settings: what `settings.load_settings` returned.

    Returns:
        Counts: sessions, prompts, distinct prompts and answers, calls made, answers reused (from the store and shipped), sessions
        without an intent.

    Raises:
        UserError: nothing is prepared, a template, view, model or column is wrong, or the files were made with other settings.
    """
    started = time.perf_counter()
    asking = intent_files(settings) == "llm"
    check_intent_k(settings)
    prepared = check_prepared(settings)
    folder = dataset_folder(settings)
    here = intents_folder(folder, settings)
    wanted = deciding(settings)
    if (here / MANIFEST).is_file() and not settings["llm_refresh"]:
        made = read_json(here / MANIFEST)
        changed = _changed(made, wanted, prepared)
        if not changed:
            manifest = check_inferred(settings)
            log.info("infer: %s sessions have their intents already; no LLM call", f"{manifest['counts']['sessions']:,}")
            return {**manifest["counts"], "calls": 0, "reused": manifest["counts"]["distinct_prompts"], "shipped": 0}
        more = [*made["settings"]["views"], *settings["views"]]
        wider = {**settings, "views": list(dict.fromkeys(more))}
        if not settings["views_in_one_call"] and not _changed(made | {"settings": deciding(wider)}, made["settings"], prepared):
            settings = wider  # the files keep their views and get new ones
        elif not settings["rebuild"]:
            raise UserError(
                f"the feature files in {str(here)!r} were made otherwise: {'; '.join(changed)}; "
                f"add --rebuild=true to make them anew (LLM answers are kept), or choose another --atomic_path"
            )
    rows = read_sessions(folder, settings["dataset"], *PARTS)
    if asking and settings["dry_run"]:
        store = AnswerStore(folder.parent / STORE)
        items = read_items(folder / f"{settings['dataset']}.item")
        print(estimate(_questions(settings, store, rows, items), _prices(settings)))
        return {}
    # The encoder and the index are tried before the LLM is asked: a mistake there must not cost an hour of answers.
    encoder = Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"]) if asking else None
    tokens, item_vectors = encode_items(settings, encoder)
    localize(item_vectors[:1], item_vectors, 1, settings["faiss_index"])
    if encoder:
        items = read_items(folder / f"{settings['dataset']}.item")
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
        "dim": item_vectors.shape[1],
        "k_max": found.shape[1],
    }
    make_folder(here)
    (here / MANIFEST).unlink(missing_ok=True)
    files = _write(settings, here, rows.ids, tokens, vectors if asking else None, intents, found, sims)
    manifest = {
        "made_by": "recbole_llm4sbr infer",
        "version": __version__,
        "settings": deciding(settings),
        "prepared": prepared["files"],
        "items": read_json(folder / ITEM_MANIFEST)["files"],
        "counts": {key: value for key, value in counted.items() if key not in _OF_THE_RUN},
        "files": files,
    }
    write_json(here / MANIFEST, manifest)
    counted["seconds"] = round(time.perf_counter() - started, 1)
    log.info(report(counted))
    return counted


def encode_items(settings: Mapping[str, Any], encoder: Encoder | None = None) -> tuple[list[str], Vectors]:
    """Write `.itememb`, unless it is there, made with the same settings; all that `item_init` and LLMSeqSim need, without an LLM.

    Args:
        settings: what `settings.load_settings` returned.
        encoder: the encoder of the settings, when it is loaded already.

    Returns:
        Item tokens and their vectors as the file has them, [M, D]; zeros for an item without a text.

    Raises:
        UserError: nothing is prepared, a column or the encoder is wrong, or the file was made with other settings.
    """
    prepared = check_prepared(settings)
    folder, wanted = dataset_folder(settings), {key: settings[key] for key in _OF_ITEMS}
    path = folder / f"{settings['dataset']}.itememb"
    changed = _changed_items(folder, wanted, prepared) if (folder / ITEM_MANIFEST).is_file() else ["it is missing"]
    if changed:
        if (folder / ITEM_MANIFEST).is_file() and not settings["rebuild"]:
            raise UserError(
                f"{str(path)!r} was made otherwise: {'; '.join(changed)}; add --rebuild=true to make it anew, or choose another "
                f"--atomic_path"
            )
        items = read_items(folder / f"{settings['dataset']}.item")
        texts = item_texts(items, settings)
        encoder = encoder or Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"])
        (folder / ITEM_MANIFEST).unlink(missing_ok=True)
        with write_whole(path) as handle:
            handle.writelines(vector_lines("iid:token\titem_emb:float_seq", items["item_id"].tolist(), encoder.encode(texts)))
        manifest = {
            "made_by": "recbole_llm4sbr infer",
            "version": __version__,
            "settings": wanted,
            "encoder": encoder.identity,
            "prepared": prepared["files"],
            "files": {path.name: sha256_file(path)},
        }
        write_json(folder / ITEM_MANIFEST, manifest)
    return read_vectors(path)


def check_items(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a dataset's `.itememb`.

    Raises:
        UserError: there is none, it was made for other settings or session files, or it has changed since.
    """
    folder = dataset_folder(settings)
    if not (folder / ITEM_MANIFEST).is_file():
        raise UserError(
            f"{str(folder)!r} holds no .itememb file; run `recbole-llm4sbr infer --dataset={settings['dataset']}` first, with "
            f"--intent_source=none when no LLM is wanted"
        )
    wanted = {key: settings[key] for key in _OF_ITEMS}
    if changed := _changed_items(folder, wanted, check_prepared(settings)):
        raise UserError(
            f"the .itememb in {str(folder)!r} was made otherwise: {'; '.join(changed)}; run `infer` with --rebuild=true"
        )
    manifest: dict[str, Any] = read_json(folder / ITEM_MANIFEST)
    check_files(folder, manifest)
    return manifest


def _changed_items(folder: Path, wanted: Mapping[str, Any], prepared: Mapping[str, Any]) -> list[str]:
    return _changed(read_json(folder / ITEM_MANIFEST), wanted, prepared)


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
    vectors: Vectors | None,
    intents: Mapping[str, npt.NDArray[np.int32]],
    found: npt.NDArray[np.int64],
    sims: Vectors,
) -> dict[str, str]:
    """Write `.sessemb` and, of an LLM, `.intentemb` (else every session has a vector of its own: too much for a text file)."""
    name = settings["dataset"]
    files = {f"{name}.sessemb": _session_lines(ids, intents, [[tokens[item] for item in row] for row in found.tolist()], sims)}
    if vectors is not None:
        numbers = [f"i{number}" for number in range(len(vectors))]
        files[f"{name}.intentemb"] = vector_lines("intent_id:token\tintent_emb:float_seq", numbers, vectors)
    for file, lines in files.items():
        with write_whole(folder / file) as handle:
            handle.writelines(lines)
    return {file: sha256_file(folder / file) for file in files}


def check_inferred(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a dataset's feature files.

    Raises:
        UserError: there are none, they were made for other settings or session files, or a file has changed since.
    """
    folder = intents_folder(dataset_folder(settings), settings)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{str(folder)!r} holds no feature files; run `recbole-llm4sbr infer --dataset={settings['dataset']} "
            f"--intent_source={intent_files(settings)}` first"
        )
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    changed = _changed(manifest, deciding(settings), check_prepared(settings))
    if not changed and check_items(settings)["files"] != manifest["items"]:
        changed.append("the .itememb is another one")
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
    """In what files were made otherwise than wanted; further views in them do no harm, unless they shared a question."""
    made = dict(manifest["settings"])
    if "views" in wanted and set(wanted["views"]) <= set(made.get("views", ())) and not wanted.get("views_in_one_call"):
        examples = dict(made.get("prompt_example") or {})
        made |= {"views": wanted["views"]}
        if "prompt_example" in wanted:
            made["prompt_example"] = {view: examples.get(view) for view in wanted["views"]}
    changed = [
        f"{key} was {made.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted({**made, **wanted})
        if made.get(key) != wanted.get(key)
    ]
    if manifest["prepared"] != prepared["files"]:
        changed.append("the session files are other ones")
    return changed


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the feature files depend on; the prompt template by its content."""
    asking = intent_files(settings) == "llm"
    deciding = {key: settings[key] for key in _ALWAYS + (_OF_THE_LLM if asking else ())}
    if asking:
        backend = settings["ray_backend"] if settings["llm_backend"] == "ray" else settings["llm_backend"]
        # local engines share their answers
        deciding["llm_backend"] = "local" if backend in ("transformers", "vllm") else backend
        template = PromptTemplate.load(settings["prompt"])
        template.check_views(settings["views"])
        deciding["prompt_example"] = {
            view: [*template.build(["1", "2"], view), template.views[view].window] for view in settings["views"]
        }
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
