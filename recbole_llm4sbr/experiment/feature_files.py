"""The feature files that many runs need together: one set for each source of intents, with all views that any run reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import Settings, intents_of, uses_intents, uses_item_texts
from recbole_llm4sbr.data.checks import RunFiles
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import dry_run
from recbole_llm4sbr.quick_start import make_files
from recbole_llm4sbr.training.config import check_runnable


def make_files_of_all(runs: Sequence[Mapping[str, Any]]) -> dict[str, RunFiles]:
    """Make the files that runs on one dataset need.

    Args:
        runs: settings of each; those that cannot run are left out.

    Returns:
        Manifests by source: `llm`, `session_text`, `items` (item vectors alone) and `plain` (session files alone).

    Raises:
        UserError: as `make_files`.
    """
    made = {source: make_files(settings)[0] for source, settings in _by_source(runs)}
    return made or {"plain": RunFiles(prepare(next(iter(runs))))}


def dry_run_of_all(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What the LLM would be asked for the runs, in words."""
    for _, settings in _by_source(runs):
        if uses_intents(settings):
            yield dry_run(settings, prepare(settings))


def files_for(settings: Mapping[str, Any], made: Mapping[str, RunFiles]) -> RunFiles:
    """What a run reads of the files that were made."""
    return made.get(source_of(settings), next(iter(made.values())))


def source_of(settings: Mapping[str, Any]) -> str:
    """Which files a run reads, as `make_files_of_all` names them."""
    if uses_intents(settings):
        return intents_of(settings)
    return "items" if uses_item_texts(settings) else "plain"


def _by_source(runs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Settings]]:
    """Settings to make files with, for each source; those that need texts first, since prepare checks their columns."""
    found: dict[str, Settings] = {}
    for settings in runs:
        try:
            check_runnable(settings)
        except UserError:
            continue  # will be recorded as a run that cannot be
        source = source_of(settings)
        first = found.setdefault(source, Settings({**settings, "views": settings["views"]}))
        if uses_intents(settings):
            first["views"] = list(dict.fromkeys([*first["views"], *settings["views"]]))
            first["intent_k"] = max(first["intent_k"], settings["intent_k"])
    yield from sorted(found.items(), key=lambda each: not uses_item_texts(each[1]))
