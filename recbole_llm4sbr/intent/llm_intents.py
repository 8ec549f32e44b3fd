"""Intents of an LLM: what there is to ask about prepared sessions, asking it, and the vectors of the answers (paper eq. 1-3)."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import answers_as_json, check_beams, deciding, llm_name, titles_asked
from recbole_llm4sbr.base.files import check_folder, make_folder, read_json, write_json
from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.data.features import Vectors
from recbole_llm4sbr.data.folders import dataset_folder, intents_folder
from recbole_llm4sbr.data.manifest import Manifest, setting_differences
from recbole_llm4sbr.data.rows import SessionRows, beginnings, read_items
from recbole_llm4sbr.intent import batches
from recbole_llm4sbr.intent.backends import make_backend
from recbole_llm4sbr.intent.encoder import NamesOfItems, TextEncoder
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, PromptTemplate, SessionPrompts, item_names
from recbole_llm4sbr.intent.questions import Questions, cost, estimate
from recbole_llm4sbr.intent.request_files import write_questions
from recbole_llm4sbr.intent.store import Answer, AnswerStore
from recbole_llm4sbr.intent.titles import HeldReader, TitleReader

log = logging.getLogger(__name__)

STORE = "answers.sqlite"
FAILURES = "failures.jsonl"
REFRESH = "refresh.json"  # when a refresh began that has not ended yet


@dataclass(frozen=True)
class Intents:
    """The intents of all sessions before localization.

    Attributes:
        vectors: of the distinct intents, [N, D].
        rows: by view each session's row of `sets`, without them of `vectors`; -1 where there is no intent, [S].
        counts: of what was asked.
        names: what an LLM answered, in the order of `vectors`; empty where none did.
        sets: of intents of up to n titles: rows of `vectors`, -1 behind the last one of a set, [C, n]; None where each is a single one.
    """

    vectors: Vectors
    rows: dict[str, npt.NDArray[np.int32]]
    counts: IntentCounts
    names: Sequence[str] = ()
    sets: npt.NDArray[np.int32] | None = None


def ask_llm(
    settings: Mapping[str, Any],
    rows: SessionRows,
    encoder: TextEncoder,
    items: tuple[Sequence[str], Vectors],
    since: int | None = None,
) -> Intents:
    """Ask what is not answered yet, and give the names in the answers vectors.

    Args:
        settings: of the run.
        rows: prepared sessions.
        encoder: of the names.
        items: tokens and text vectors of the catalogue. Where an answer is held to their names, it stands for the item itself.
        since: of a refresh, as `refresh_since` says.

    Raises:
        UserError: calls fail as in `Questions.ask` or `ask_in_batches`, or no answer names anything.
        NotYet: what was asked in batches is not answered yet.
    """
    views, prices = settings["views"], _prices(settings)
    folder = dataset_folder(settings)
    store = AnswerStore(folder.parent / STORE)
    titles = _titles(settings)
    questions = _questions(settings, store, rows, titles, since)
    failures, rate = intents_folder(folder, settings) / FAILURES, settings["max_failure_rate"]
    check_folder(
        failures.parent, "the folder of intents"
    )  # made with the first file in it: an LLM that does not load leaves none
    if settings["llm_batch"]:
        asked = batches.ask_in_batches(questions, failures, rate, settings["llm_batch_wait"])
    else:
        batches.check_none_under_way(questions)
        asked = questions.ask(failures, rate, prices)
    names, by_view, sets, places, cut = _read_answers(settings, questions, rows, titles.values())
    store.close()
    if not names:
        advice = f"{cut:,} were cut: raise --llm_max_new_tokens, or " if cut else ""
        raise UserError(
            f"none of the {asked.prompts:,} answers of {llm_name(settings)!r} names anything; {advice}try another --llm or --prompt"
        )
    counts = IntentCounts(
        prompts=asked.prompts,
        distinct_prompts=asked.distinct,
        distinct_answers=len(names),
        calls=asked.calls,
        reused=asked.reused + asked.shipped + asked.elsewhere,
        shipped=asked.shipped,
        failures=asked.failures,
        prompt_tokens=asked.prompt_tokens,
        answer_tokens=asked.answer_tokens,
        llm_seconds=round(asked.seconds, 1),
        cost=round(cost(asked, prices) * (batches.PRICE if settings["llm_batch"] else 1.0), 4) if prices else None,
        cut=cut,
        not_asked=(len(rows.ids) - len(places)) * len(views),
    )
    return Intents(_name_encoder(settings, encoder, titles, items).encode(names), by_view, counts, names, sets)


def _name_encoder(
    settings: Mapping[str, Any], encoder: TextEncoder, titles: Mapping[str, str], items: tuple[Sequence[str], Vectors]
) -> TextEncoder:
    """What makes vectors of the names in answers; `titles` by token."""
    if settings["llm_titles"] == "any":
        return encoder
    tokens, vectors = items
    return NamesOfItems(encoder, [titles.get(token, "") for token in tokens], vectors)


@dataclass(frozen=True)
class Asked:
    """A question about a session, and what came back.

    Attributes:
        prompt: the two messages, and what was put into the LLM's mouth.
        raw: the answer as it came; None where there is none.
        names: found in it; none where it names nothing.
        cut: whether the answer was cut at the limit of tokens.
    """

    prompt: str
    raw: str | None
    names: Sequence[str]
    cut: bool = False


def asked_about(settings: Mapping[str, Any], rows: SessionRows, chosen: Sequence[int] | None = None) -> list[dict[str, Asked]]:
    """By row and view, what the LLM is asked, and what the store or the package has as its answer; no LLM is called.

    Args:
        settings: of the run that made the store.
        rows: sessions.
        chosen: rows that are meant; None: all.

    Raises:
        UserError: the template or a column of the items is wrong.
    """
    views, joint, whole = settings["views"], settings["views_in_one_call"], {**settings, "max_sessions": 0}
    template = PromptTemplate.load(settings["prompt"])
    template.check_views(views)
    titles = _titles(settings)
    rows = shown_clicks(settings, rows)
    rows = rows if chosen is None else rows.take(chosen)
    requests, reader = _requests(whole, template, rows, titles), _reader(settings, titles.values())
    answers: list[Answer | None] = [None] * len(requests)
    # an LLM that is not there any more has left its answers under a name that cannot be told
    with closing(AnswerStore(dataset_folder(settings).parent / STORE)) as store, suppress(UserError):
        questions = Questions(make_backend(settings, _held_to(settings)), requests, store, template.name)
        answers = [questions.answer(position) for position in range(len(requests))]
    found: list[dict[str, Asked]] = []
    for row in range(len(rows.ids)):
        found.append({})
        for column, view in enumerate(views):
            position = row if joint else row * len(views) + column
            answer, request = answers[position], requests[position]
            names = reader.read(*answer)[column if joint else 0] if answer else []
            prompt = "\n\n".join(filter(None, [request.system, request.user, request.answer_start]))
            found[-1][view] = Asked(prompt, answer.text if answer else None, names, answer is not None and answer.cut)
    return found


def known_answers(
    settings: Mapping[str, Any], rows: SessionRows, encoder: Callable[[], TextEncoder], names: Sequence[str], vectors: Vectors
) -> Intents | None:
    """Intents of the sessions whose very prompts are answered in the store or by the package; no LLM is called.

    Args:
        settings: of the run that made the store.
        rows: sessions.
        encoder: makes the encoder of the names; called only where there are some.
        names: what prompts call each item, in the order of `rows.tokens`.
        vectors: text vectors of the items, in the same order.

    Returns:
        None where no prompt is answered, or the LLM is not there any more, whose answers stand under a name that cannot be told then.

    Raises:
        UserError: the store is damaged, or the encoder is not there.
    """
    with closing(AnswerStore(dataset_folder(settings).parent / STORE)) as store:
        titles = dict(zip(rows.tokens, names))
        try:
            questions = _questions(settings, store, rows, titles)
        except UserError:
            return None
        found, by_view, sets, *_ = _read_answers(settings, questions, rows, names)
    if not found:
        return None
    encoded = _name_encoder(settings, encoder(), titles, (rows.tokens, vectors)).encode(found)
    return Intents(encoded, by_view, IntentCounts(), found, sets)


def _read_answers(
    settings: Mapping[str, Any], questions: Questions, rows: SessionRows, titles: Iterable[str]
) -> tuple[list[str], dict[str, npt.NDArray[np.int32]], npt.NDArray[np.int32] | None, list[int], int]:
    """Distinct names in the answers, `rows` and `sets` as in `Intents`, the rows that were asked about, and `IntentCounts.cut`.

    Args:
        settings: of the run.
        questions: about the rows, answered.
        rows: sessions.
        titles: of the catalogue, as prompts have them.
    """
    views, joint, answers = settings["views"], settings["views_in_one_call"], settings["intent_answers"]
    reader = _reader(settings, titles)

    def parse(answer: Answer) -> list[str]:
        return [name for names in reader.read(*answer) for name in [*names, *[""] * (answers - len(names))]]

    names, numbers, cut = questions.answers(parse, len(views) * answers if joint else answers)
    sets = None
    if answers > 1:
        sets, numbers = _distinct_sets(numbers, answers)
    places = _spread(len(rows.ids), settings["max_sessions"])
    by_row = numbers[questions.number].reshape(len(places), len(views))  # [asked rows, V]
    short = cut[questions.number].reshape(len(places), -1) & (by_row < 0)  # [asked rows, V]
    by_view = {view: np.full(len(rows.ids), -1, np.int32) for view in views}
    for column, view in enumerate(views):
        by_view[view][places] = by_row[:, column]
    return names, by_view, sets, places, int(short.sum())


def _distinct_sets(numbers: npt.NDArray[np.int32], answers: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The distinct rows of `answers` names each, [C, answers], and each row's place among them, -1 for one without a name.

    Args:
        numbers: names of questions about V views, -1 behind the last of a view, [Q, V * answers].
        answers: names per view.

    Returns:
        The sets in rising order, and by question and view its set, [Q, V].

    >>> [each.tolist() for each in _distinct_sets(np.array([[4, 7, -1, -1], [2, -1, 4, 7]], np.int32), 2)]
    [[[2, -1], [4, 7]], [[1, -1], [0, 1]]]
    """
    sets, which = np.unique(numbers.reshape(-1, answers), axis=0, return_inverse=True)
    empty = int(len(sets) > 0 and sets[0, 0] < 0)  # its names stand first, so that one without any is the smallest
    return sets[empty:], (which.reshape(len(numbers), -1) - empty).astype(np.int32)


def _reader(settings: Mapping[str, Any], titles: Iterable[str]) -> TitleReader | HeldReader:
    """What finds the names in the answers of a run."""
    if settings["llm_titles"] != "any":
        return HeldReader(settings["intent_answers"], list(titles))
    views = settings["views"] if settings["views_in_one_call"] else settings["views"][:1]
    qualifiers = [view.qualifier for view in PromptTemplate.load(settings["prompt"]).views.values()]
    return TitleReader(views, settings["intent_answers"], qualifiers, list(titles))


def describe_questions(settings: Mapping[str, Any], rows: SessionRows, path: Path, since: int | None = None) -> str:
    """What `ask_llm` would ask, in words, without a call: prompts, tokens, time, cost, examples.

    Args:
        settings: of the run.
        rows: prepared sessions.
        path: of the answer store.
        since: of a refresh, as `refresh_since` says.
    """
    store = AnswerStore(path)
    try:
        questions = _questions(settings, store, rows, _titles(settings), since)
        priced = batches.PRICE if settings["llm_backend"] == "openai" else None
        said = [estimate(questions, _prices(settings), batch_price=priced)]
        if count := batches.under_way(questions):
            said.insert(0, f"{count:,} of these questions are under way in batches; --llm_batch=true collects their answers")
        return "\n".join(said)
    finally:
        store.close()


def write_requests(settings: Mapping[str, Any], rows: SessionRows, path: str | Path) -> int:
    """Write what is not answered yet into a file of requests, for a runner of the user's; the store notes whose answers they will be.

    Args:
        settings: of the run.
        rows: prepared sessions.
        path: the file of JSON lines.

    Returns:
        The number of requests; questions that are under way in batches are left out.

    Raises:
        UserError: the backend is not `openai`, or the template or a column of the items is wrong.
    """
    with closing(AnswerStore(dataset_folder(settings).parent / STORE)) as store:
        return write_questions(_questions(settings, store, rows, _titles(settings)), path)


def refresh_since(settings: Mapping[str, Any], here: Path, prepared: Manifest, begin: bool = True) -> int | None:
    """Since when answers count as refreshed, in seconds since 1970; None where the LLM is not asked anew.

    The moment is kept until the files are written, so that a refresh that was killed asks only for what it has not got yet; it is not
    with `begin=False`, for a look ahead.
    """
    if not settings["llm_refresh"]:
        return None
    wanted = {"settings": deciding(settings, "items", "intents"), "prepared": prepared.files}
    if (here / REFRESH).is_file():
        begun = read_json(here / REFRESH)
        if not setting_differences(begun["settings"], wanted["settings"]) and begun["prepared"] == wanted["prepared"]:
            log.info("infer: going on with a refresh that was interrupted")
            return int(begun["since"])
    since = int(time.time()) + 1
    if not begin:
        return since
    write_json(make_folder(here) / REFRESH, {"since": since, **wanted})
    time.sleep(max(0.0, since - time.time()))  # the store knows whole seconds: no older answer may count as new
    return since


def _titles(settings: Mapping[str, Any]) -> dict[str, str]:
    """What prompts call each item of the catalogue, by its token."""
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    return dict(zip(items["item_id"], item_names(items, settings)))


def _questions(
    settings: Mapping[str, Any], store: AnswerStore, rows: SessionRows, titles: Mapping[str, str], since: int | None = None
) -> Questions:
    """What there is to ask about the rows; `titles` by token.

    Raises:
        UserError: the template, the model or a column of the items is not there, or beam search is asked of what cannot do it.
    """
    check_beams(settings)
    template = PromptTemplate.load(settings["prompt"])
    backend = make_backend(settings, _held_to(settings))
    return Questions(backend, _requests(settings, template, rows, titles), store, template.name, since)


def _requests(
    settings: Mapping[str, Any], template: PromptTemplate, rows: SessionRows, titles: Mapping[str, str]
) -> SessionPrompts:
    """The questions about the rows; `titles` by token."""
    rows = shown_clicks(settings, rows)
    return SessionPrompts(
        template,
        settings["views"],
        rows,
        [titles.get(token, "") for token in rows.tokens],  # padding has no name
        _spread(len(rows.ids), settings["max_sessions"]),
        settings["views_in_one_call"],
        titles_asked(settings),
        answers_as_json(settings),
        settings["llm_titles"] == "new",
    )


def shown_clicks(settings: Mapping[str, Any], rows: SessionRows) -> SessionRows:
    """The rows with the clicks that their intents are made of."""
    return beginnings(rows) if settings["intent_refresh"] == "powers" else rows


def _held_to(settings: Mapping[str, Any]) -> list[str]:
    """The titles that answers are held to, if they are: of the prepared items, whatever came after them."""
    return [] if settings["llm_titles"] == "any" else sorted(set(_titles(settings).values()) - {"", UNKNOWN_ITEM})


def _prices(settings: Mapping[str, Any]) -> tuple[float, float] | None:
    prices = settings["llm_prices"]
    return (float(prices[0]), float(prices[1])) if prices else None


def _spread(total: int, most: int) -> list[int]:
    """Row numbers to ask about: all, or `most` of them, spread so that every part gets its share; those of a smaller `most` are among them.

    Rows are taken in the order of van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, ... of a power of two.
    """
    if not most or most >= total:
        return list(range(total))
    rows, order = np.arange(total), np.zeros(total, np.int64)
    for bit in range((total - 1).bit_length()):  # the bits of each row's number, turned round
        order = 2 * order + (rows >> bit & 1)
    return sorted(np.argsort(order)[:most].tolist())
