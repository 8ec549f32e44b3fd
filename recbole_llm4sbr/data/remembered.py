"""What `prepare` and `infer` were told: later verbs take from the manifests of the files that are there what nobody gives anew.

A value that is given, on the command line or in a settings file that is named, is never replaced: where it differs from the manifest's,
the checks of `data.checks` say so as ever. What is taken is logged, and stands among the run's settings.
"""

import functools
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import engine, intents_of, template_content, uses_intents, uses_item_texts
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.schema import Artefact, schema
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.base.wording import printable, show_settings
from recbole_llm4sbr.data.folders import INTENTS, ITEMS, PREPARED, dataset_folder, intents_folder, llm_manifests
from recbole_llm4sbr.data.manifest import FORMAT, Manifest

log = logging.getLogger(__name__)


def of_prepared(settings: Settings, given: Collection[str]) -> dict[str, Any]:
    """What `prepare` was told: for `infer`.

    Args:
        settings: all settings, each checked alone.
        given: keys that the user gave now, which stay.

    Returns:
        Settings to take over, those that differ; none under `rebuild`, or where no files are.
    """
    return _recall(settings, given, {"prepared"})


def of_files(settings: Settings, given: Collection[str]) -> dict[str, Any]:
    """What `prepare` and `infer` were told: for verbs that may ask the LLM.

    The address of an endpoint is not taken over: files from elsewhere must not say where a key of the user's is sent.
    """
    return _recall(settings, {*given, "llm_url", "llm_extra"}, {"prepared", "items", "intents"})


def of_files_alone(settings: Settings, given: Collection[str]) -> dict[str, Any]:
    """What `prepare` and `infer` were told, all of it: for `train`, which asks no LLM."""
    return _recall(settings, given, {"prepared", "items", "intents"})


def _recall(settings: Settings, given: Collection[str], artefacts: Collection[Artefact]) -> dict[str, Any]:
    if settings["rebuild"]:
        return {}
    folder = dataset_folder(settings)
    paths = [folder / PREPARED]
    paths += [folder / ITEMS] if uses_item_texts(settings) else []
    paths += [_intents(folder, settings, given)] if uses_intents(settings) else []
    made: dict[str, Any] = {}
    for path in paths:
        manifest = Manifest.read(path)
        if manifest is not None and manifest.format == FORMAT:  # another one is refused by the checks
            made |= manifest.settings
    _check(made, folder)
    found = {key: value for key, value in made.items() if key not in {*given, "dataset"} and _decides(key, artefacts)}
    _take_back(found, settings, made)
    changed = {key: value for key, value in found.items() if value != settings.get(key)}
    if changed:
        _say(f"as the files in {str(folder)!r} were made: {printable(show_settings(changed))}")
    if most := changed.get("max_sessions"):
        _warn(
            f"the LLM was asked about {most:,} sessions only (max_sessions={most}): all others have no intent here; "
            f"`infer --max_sessions=0` asks about the rest"
        )
    return changed


def _intents(folder: Path, settings: Settings, given: Collection[str]) -> Path:
    """The manifest of the intents that are meant: the given LLM's, else those of the LLM that `infer` was last asked for."""
    of_llms = llm_manifests(folder)
    if intents_of(settings) != "llm" or not of_llms or {"llm", "llm_backend", "ray_backend", "llm_name"} & set(given):
        return intents_folder(folder, settings) / INTENTS
    if len(of_llms) > 1:
        others = ", ".join(sorted(path.parent.name for path in of_llms[:-1]))
        _say(
            f"{str(folder)!r} holds intents of several LLMs: those of {of_llms[-1].parent.name} are used, by --llm those of {others}"
        )
    return of_llms[-1]


def _check(made: Mapping[str, Any], folder: Path) -> None:
    """Refuse values that no setting can have.

    Raises:
        UserError: a manifest was damaged.
    """
    for key, value in made.items():
        own = isinstance(value, dict) if key == "prompt" else value in ("local", "openai", "echo")  # not as settings have them
        try:
            if key in ("prompt", "llm_backend") and not own:
                raise UserError(f"{key}={value!r}")
            if key in schema() and key not in ("prompt", "llm_backend"):
                schema()[key].check(value)
        except UserError as error:
            raise UserError(f"the manifests in {str(folder)!r} are damaged ({error}); run again with --rebuild=true") from None


def _decides(key: str, artefacts: Collection[Artefact]) -> bool:
    """Whether a setting decides one of the artefacts; not `repeatable`, which holds for runs without intents too."""
    if key not in schema():
        return False
    setting = schema()[key]
    return setting.decides in artefacts and (setting.also is None or setting.decides == "prepared")


def _take_back(found: dict[str, Any], settings: Settings, made: Mapping[str, Any]) -> None:
    """Replace what manifests hold in another form than settings: the prompt's content, an engine, views beyond those wanted."""
    if found.get("llm_backend") == engine(settings):
        del found["llm_backend"]
    elif found.get("llm_backend") == "local":
        found["llm_backend"] = "transformers"
    more = isinstance(found.get("views"), list) and set(settings["views"]) <= set(found["views"])
    if more and not made.get("views_in_one_call"):
        del found["views"]
    if "prompt" in found:
        content, views = found.pop("prompt"), made.get("views", [])
        for name in (settings["prompt"], *sorted(each.stem for each in (PROPERTIES / "prompt").glob("*.yaml"))):
            if template_content(name, views, made.get("intent_answers", 1) > 1 and not made.get("llm_beams")) == content:
                found["prompt"] = name
                break


@functools.cache
def _say(text: str) -> None:
    """Log a line, once a process."""
    log.info(text)


@functools.cache
def _warn(text: str) -> None:
    """Log a warning, once a process."""
    log.warning(text)
