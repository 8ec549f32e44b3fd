"""`infer`: prepared sessions -> LLM intents -> `.itememb`, `.sessemb`, `.intentemb` (paper section 4.1; docs/feature-files.md)."""

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import check_beams, check_intent_k, check_titles, deciding, engine, intents_of, titles_asked
from recbole_llm4sbr.base.records import IntentCounts, PreparedCounts
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.data.checks import check_prepared, intent_differences, settled
from recbole_llm4sbr.data.features import Localized, SessionLines, Vectors, read_vectors, text_cell, vector_lines
from recbole_llm4sbr.data.folders import INTENTS, ITEMS, asked_files, dataset_folder, intents_folder, part_file
from recbole_llm4sbr.data.manifest import Manifest, of_views
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import SessionRows, ranges, read_sessions
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.item_vectors import encode_items, model_identities
from recbole_llm4sbr.intent.llm_intents import REFRESH, STORE, Intents, ask_llm, describe_questions, refresh_since, shown_clicks
from recbole_llm4sbr.intent.localization import ItemIndex, Places
from recbole_llm4sbr.intent.pretrained import identify
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.quality import quality_of
from recbole_llm4sbr.intent.session_text import session_text
from recbole_llm4sbr.intent.tuned import check_tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inferred:
    """The feature files of a run.

    Attributes:
        items: manifest of `.itememb`.
        intents: manifest of `.sessemb`.
        counts: what was made, asked and reused.
    """

    items: Manifest
    intents: Manifest
    counts: IntentCounts


def infer(settings: Mapping[str, Any], prepared: Manifest | None = None) -> Inferred:
    """Write the feature files of a prepared dataset, unless they are there, made with the same settings.

    Views that are missing in files made otherwise alike are added to them, and with a larger `max_sessions` the sessions that were not
    asked about. The files of each LLM and those of `session_text` stand beside each other; `.itememb` is shared. With `llm_refresh` the
    LLM is asked anew; a refresh that was killed goes on where it was.

    Args:
        settings: what `settings.load_settings` returned.
        prepared: the manifest of the session files, when it is checked already.

    Raises:
        UserError: nothing is prepared, a template, view, model or column is wrong, or the files were made with other settings.
    """
    started = time.perf_counter()
    prepared = _checked(settings, prepared)
    there, settings = _already_there(settled(settings, prepared), prepared)
    if there is not None:
        return there
    folder = dataset_folder(settings)
    here = intents_folder(folder, settings)
    asking = intents_of(settings) == "llm"
    rows = read_sessions(folder, settings["dataset"], *asked_files(settings), longest=settings["MAX_ITEM_LIST_LENGTH"])
    # The encoder and the index are tried before the LLM is asked: a mistake there must not cost an hour of answers.
    check_tuned(settings, prepared, ("encoder",))
    encoder = Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"]) if asking else None
    items = encode_items(settings, prepared, encoder)
    tokens, item_vectors = read_vectors(folder / f"{settings['dataset']}.itememb")
    index = ItemIndex(_of_training(item_vectors, tokens, settings, prepared), settings["faiss_index"])
    index.nearest(item_vectors[:1], 1)
    if encoder:
        since = refresh_since(settings, here, prepared)
        intents = ask_llm(settings, rows, encoder, (tokens, item_vectors), since)
    else:
        vectors, by_view = session_text(shown_clicks(settings, rows), tokens, item_vectors, settings["views"])
        intents = Intents(vectors, by_view, IntentCounts())
    found = localized(intents, rows, tokens, index, settings)
    without = int(sum((column < 0).sum() for column in found.places.values()))
    counts = replace(
        intents.counts,
        sessions=len(rows.ids),
        intents=len(rows.ids) * len(intents.rows) - without,
        no_intent=without - intents.counts.not_asked,
        dim=item_vectors.shape[1],
        k_max=found.items.shape[1],
        quality=quality_of(settings, prepared, intents, rows, tokens, found),
    )
    lines = SessionLines(rows.ids, intents.rows, tokens, found, intents.sets)
    manifest = Manifest(
        here / INTENTS,
        "infer",
        deciding(settings, "items", "intents"),
        {"prepared": prepared.files, "items": items.files},
        model_identities(settings, "encoder", "llm"),
        counts=counts.of_files(),
        views=lines.checksums(intents.names),
    ).write(_files(settings["dataset"], lines, intents.vectors if asking else None, intents.names))
    (here / REFRESH).unlink(missing_ok=True)
    counts = replace(counts, seconds=round(time.perf_counter() - started, 1))
    log.info(describe_counts(counts))
    return Inferred(items, manifest, counts)


def _of_training(vectors: Vectors, tokens: Sequence[str], settings: Mapping[str, Any], prepared: Manifest) -> Vectors:
    """Item vectors in which cold items have none: no intent stands for an item that training does not have."""
    counts = PreparedCounts.from_json(prepared.counts)
    if not counts.cold_items:
        return vectors
    trained = set(read_sessions(dataset_folder(settings), settings["dataset"], part_file("train", "last")).tokens)
    known = np.array([token in trained for token in tokens], bool)
    return np.where(known[:, None], vectors, np.float32(0))


def localized(
    intents: Intents, rows: SessionRows, tokens: Sequence[str], index: ItemIndex, settings: Mapping[str, Any]
) -> Localized:
    """The items nearest to each session's intents: of all items, or under `repeatable: false` of those outside the session.

    Args:
        intents: of the sessions.
        rows: the sessions.
        tokens: item tokens, in the order of the index.
        index: of the items' text vectors.
        settings: reads `intent_k_max` and `repeatable`.
    """
    k = settings["intent_k_max"]
    if settings["repeatable"]:
        if intents.sets is None:
            return Localized(*index.nearest(intents.vectors, k), intents.rows)
        return Localized(*index.nearest_to_sets(intents.vectors, intents.sets, k), intents.rows)
    clicks, starts = rows.clicks_in(tokens), rows.starts
    places: dict[str, npt.NDArray[np.int32]] = {}
    found: list[tuple[Places, Vectors]] = []
    for view, column in intents.rows.items():
        asked = np.flatnonzero(column >= 0)
        lengths = np.diff(starts)[asked]
        of_asked = clicks[ranges(starts[asked], lengths)]
        near, sims = index.nearest_outside(
            intents.vectors, column[asked].astype(np.int64), of_asked, np.r_[0, lengths.cumsum()], k, intents.sets
        )
        some = near[:, 0] >= 0
        places[view] = np.full(len(column), -1, np.int32)
        places[view][asked[some]] = np.arange(some.sum()) + sum(len(items) for items, _ in found)
        found.append((near[some], sims[some]))
    items, similarities = (np.concatenate(each) for each in zip(*found))
    return Localized(items, similarities, places)


def dry_run(settings: Mapping[str, Any]) -> str:
    """What `infer` would ask, in words, without a call. Files that were made otherwise are left as they are, and do not hinder it.

    Raises:
        UserError: a dataset, column, template, view or model that is not there.
    """
    if intents_of(settings) != "llm":
        return f"intent_source={settings['intent_source']} asks no LLM"
    PromptTemplate.load(settings["prompt"]).check_views(settings["views"])
    folder = dataset_folder(settings)
    with tempfile.TemporaryDirectory() as scratch:
        here, notes = settings, []
        try:
            prepared = prepare(settings)
        except UserError as error:
            here = Settings(settings) | {"atomic_path": scratch}
            prepared = prepare(here)
            notes = [f"{error}. Of files made anew:", ""]
        else:
            made = Manifest.read(intents_folder(folder, settings) / INTENTS)
            if made is not None and (changed := _hindrances(made, settled(settings, prepared), prepared)):
                notes = [
                    f"the feature files in {str(made.path.parent)!r} were made otherwise: {'; '.join(changed)}; infer makes them anew "
                    f"with --rebuild=true",
                    "",
                ]
        longest = settings["MAX_ITEM_LIST_LENGTH"]
        rows = read_sessions(dataset_folder(here), settings["dataset"], *asked_files(settings), longest=longest)
        since = refresh_since(settings, intents_folder(folder, settings), prepared, begin=False)
        return "\n".join([*notes, describe_questions(here, rows, folder.parent / STORE, since)])


def check_askable(settings: Mapping[str, Any]) -> None:
    """Refuse, before anything is made, settings under which no intents can be made; files that are there need no models.

    Raises:
        UserError: an encoder, LLM or template that is not there, a view that the template does not have, an index that faiss does not know.
    """
    import faiss

    check_intent_k(settings)
    folder = dataset_folder(settings)
    if not (folder / ITEMS).is_file():
        identify(settings["encoder"], "encoder")
    try:
        faiss.index_factory(8, settings["faiss_index"], faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise UserError(f"faiss_index={settings['faiss_index']!r} is no index that faiss can make; Flat is exact") from None
    if intents_of(settings) == "llm":
        check_titles(settings)
        if settings["llm_batch"] and engine(settings) != "openai":
            raise UserError(
                f"llm_batch=true needs llm_backend=openai, not {settings['llm_backend']!r}: local engines have no batches"
            )
        template = PromptTemplate.load(settings["prompt"])
        template.check_views(settings["views"])
        template.check_asked(titles_asked(settings), settings["views_in_one_call"])
        if engine(settings) == "local" and not (intents_folder(folder, settings) / INTENTS).is_file():
            identify(settings["llm"], "llm")
        if not (intents_folder(folder, settings) / INTENTS).is_file():
            check_beams(settings)


def _checked(settings: Mapping[str, Any], prepared: Manifest | None) -> Manifest:
    """Refuse wrong settings before anything is loaded; the manifest of the session files."""
    check_askable(settings)
    prepared = prepared or check_prepared(settings)
    if intents_of(settings) == "llm" and engine(settings) == "local":
        check_tuned(settings, prepared, ("llm",))
    return prepared


def _already_there(settings: Mapping[str, Any], prepared: Manifest) -> tuple[Inferred | None, Mapping[str, Any]]:
    """The files that are there and serve; else None, and the settings with all views that the files shall have.

    Raises:
        UserError: they were made otherwise, and shall not be made anew.
    """
    here = intents_folder(dataset_folder(settings), settings)
    made = Manifest.read(here / INTENTS)
    if made is None:
        return None, settings
    models = model_identities(settings, "encoder", "llm")
    changed = made.damage() or intent_differences(made, settings, prepared, None, models)
    wider = {**settings, "views": list(dict.fromkeys([*made.settings.get("views", ()), *settings["views"]]))}
    refresh = settings["llm_refresh"] and intents_of(settings) == "llm"
    if not changed and not refresh:
        items = encode_items(settings, prepared)
        if made.inputs["items"] == items.files:
            counts = IntentCounts.from_json(made.counts)
            with suppress(OSError):  # files that others own, and that may only be read, serve as well
                made.path.touch()  # the intents that `infer` was last asked for are those that later verbs read
            log.info("infer: %s sessions have their intents already; no LLM call", f"{counts.sessions:,}")
            return Inferred(items, made, replace(counts, reused=counts.distinct_prompts)), settings
        changed = ["the item vectors are others than those it was made from"]
    if not changed:
        return None, wider  # a refresh keeps the views that the files have
    changed = _hindrances(made, settings, prepared)
    if not changed:
        return None, wider  # the files keep their views and get new ones, or answers about more sessions
    if not settings["rebuild"]:
        raise UserError(
            f"the feature files in {str(here)!r} were made otherwise: {'; '.join(changed)}; "
            f"add --rebuild=true to make them anew (LLM answers are kept), or choose another --atomic_path"
        )
    return None, settings


def _hindrances(made: Manifest, settings: Mapping[str, Any], prepared: Manifest) -> list[str]:
    """What in a folder's intents, in words, keeps `infer` from leaving them there, and from adding views and sessions to them."""
    models = model_identities(settings, "encoder", "llm")
    views = made.settings.get("views", [])
    wider = list(dict.fromkeys([*views, *settings["views"]]))
    if damage := made.damage():
        return damage
    if settings["views_in_one_call"] and set(wider) != set(views):
        return intent_differences(made, settings, prepared, None, models)
    wanted = of_views(deciding({**settings, "views": wider}, "items", "intents"), views)
    grown = replace(made, settings=_grown(made.settings, settings["max_sessions"]))
    return grown.differences(wanted, {"prepared": prepared.files}, models)


def _grown(made: Mapping[str, Any], wanted: int) -> dict[str, Any]:
    """The settings of files with `max_sessions` as it is wanted, where that asks about more sessions: those asked before are among them."""
    before = made.get("max_sessions")
    grows = type(before) is int and before and (not wanted or wanted > before)
    return {**made, "max_sessions": wanted} if grows else dict(made)


def describe_counts(counts: IntentCounts) -> str:
    """The counts of a run of `infer`, in words."""
    text = f"infer: {counts.sessions:,} sessions, {counts.intents:,} intents, {counts.no_intent:,} missing"
    if counts.no_intent and counts.prompts:
        text += " (the answer names nothing, or the call failed)"
    if counts.cut:
        text += f", of these {counts.cut:,} with an answer that was cut (raise --llm_max_new_tokens)"
    if counts.not_asked:
        text += f", {counts.not_asked:,} not asked for (max_sessions)"
    text += f"; {counts.calls:,} LLM calls made, {counts.reused:,} answers reused, of these {counts.shipped:,} shipped"
    if counts.calls:
        text += (
            f"; {counts.failures:,} calls failed; {counts.prompt_tokens:,} prompt and {counts.answer_tokens:,} answer tokens in "
            f"{counts.llm_seconds:,.0f} s" + (f", cost {counts.cost:,.2f}" if counts.cost is not None else "")
        )
    return text


def _files(dataset: str, lines: SessionLines, vectors: Vectors | None, names: Sequence[str]) -> dict[str, Iterable[str]]:
    """`.sessemb` and, of an LLM, `.intentemb` (else every session has a vector of its own: too much for a text file)."""
    files: dict[str, Iterable[str]] = {f"{dataset}.sessemb": lines}
    if vectors is not None:
        numbers = [f"i{number}" for number in range(len(vectors))]
        cells = [f"{number}\t{text_cell(name)}" for number, name in zip(numbers, names, strict=True)]
        files[f"{dataset}.intentemb"] = vector_lines(
            "intent_id:token\tintent_text:token_seq\tintent_emb:float_seq", cells, vectors
        )
    return files
