"""The feature files that many runs need together: one set for each source of intents, with all views that any run reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import engine, intents_name, llm_name, uses_intents, uses_item_texts
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.data.checks import RunFiles
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import dry_run
from recbole_llm4sbr.quick_start import make_files
from recbole_llm4sbr.training.config import check_runnable

_ITEMS, _PLAIN = ".items", ".plain"  # not the name of any LLM's folder


def make_files_of_all(runs: Sequence[Mapping[str, Any]]) -> dict[str, RunFiles]:
    """Make the files that runs on one dataset need.

    Args:
        runs: settings of each; those that cannot run are left out.

    Returns:
        Manifests by source, for `files_for`.

    Raises:
        UserError: as `make_files`, or two LLMs have one folder.
    """
    made = {source: make_files(settings)[0] for source, settings in _by_source(runs)}
    return made or {_PLAIN: RunFiles(prepare(next(iter(runs))))}


def dry_run_of_all(runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What the LLM would be asked for the runs, in words."""
    for _, settings in _by_source(runs):
        if uses_intents(settings):
            yield dry_run(settings)


def files_for(settings: Mapping[str, Any], made: Mapping[str, RunFiles]) -> RunFiles:
    """What a run reads of the files that were made."""
    return made.get(source_of(settings), next(iter(made.values())))


def source_of(settings: Mapping[str, Any]) -> str:
    """Which files a run reads: the name of its intents' folder, or that it reads item vectors alone or session files alone."""
    if uses_intents(settings):
        return intents_name(settings)
    return _ITEMS if uses_item_texts(settings) else _PLAIN


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
            if _asked(first) != _asked(settings):
                raise UserError(
                    f"the intents of {' and '.join(map(repr, (_asked(first), _asked(settings))))} would stand in one folder, {source!r}; "
                    f"compare them in two runs, each with an --atomic_path of its own"
                )
            first["views"] = list(dict.fromkeys([*first["views"], *settings["views"]]))
            first["intent_k"] = max(first["intent_k"], settings["intent_k"])
    yield from sorted(found.items(), key=lambda each: not uses_item_texts(each[1]))


def _asked(settings: Mapping[str, Any]) -> str:
    """The LLM and what answers for it."""
    return f"{llm_name(settings)} by {engine(settings)}"
