"""Whether a run's prepared and feature files are there, made as its settings say, and unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding, intents_of, uses_intents, uses_item_texts
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.data.folders import INTENTS, ITEMS, PREPARED, dataset_folder, intents_folder
from recbole_llm4sbr.data.item_columns import check_features
from recbole_llm4sbr.data.manifest import Manifest, of_views


@dataclass(frozen=True)
class RunFiles:
    """The manifests of all files that a run reads.

    Attributes:
        prepared: of the session files.
        items: of `.itememb`; None for a run that reads no item vectors.
        intents: of `.sessemb`; None for a run that reads no intents.
    """

    prepared: Manifest
    items: Manifest | None = None
    intents: Manifest | None = None


def check_run_files(settings: Mapping[str, Any]) -> RunFiles:
    """The manifests of the files that a run reads.

    Raises:
        UserError: something is missing, was made with other settings, or has changed since.
    """
    prepared = check_prepared(settings)
    settings = settled(settings, prepared)
    check_topk(settings, prepared.counts["catalogue"])
    check_features(settings, dataset_folder(settings) / f"{settings['dataset']}.item")
    if not uses_item_texts(settings):
        return RunFiles(prepared)
    items = check_items(settings, prepared)
    return RunFiles(prepared, items, check_intents(settings, prepared, items) if uses_intents(settings) else None)


def settled(settings: Mapping[str, Any], prepared: Manifest) -> Settings:
    """The settings with `repeatable: auto` replaced by what the training part says."""
    if settings["repeatable"] != "auto":
        return Settings(settings)  # a damaged manifest has no counts
    return Settings(settings) | {"repeatable": PreparedCounts.from_json(prepared.counts).settled(settings["repeatable"])}


def run_checksums(settings: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of the files that a run reads, by name, and of its views of the intents, as their manifests say; nothing is checked."""
    folder = dataset_folder(settings)
    paths = [folder / PREPARED]
    paths += [folder / ITEMS] if uses_item_texts(settings) else []
    found = {name: each for path in paths if (made := Manifest.read(path)) is not None for name, each in made.files.items()}
    made = Manifest.read(intents_folder(folder, settings) / INTENTS) if uses_intents(settings) else None
    if made is not None:  # a view that was added since is none of the run's
        found |= {
            f"{settings['dataset']}.sessemb, view {view}": made.views[view] for view in settings["views"] if view in made.views
        }
    return found


def check_prepared(settings: Mapping[str, Any]) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        UserError: nothing is prepared there, it was made with other settings, or a file has changed since.
    """
    folder = dataset_folder(settings)
    manifest = Manifest.read(folder / PREPARED)
    if manifest is None:
        raise UserError(
            f"{str(folder)!r} holds no prepared dataset; run `recbole-llm4sbr prepare --dataset={settings['dataset']}` first"
        )
    if changed := manifest.differences(deciding(settings, "prepared"), {}):
        raise UserError(
            f"{str(folder)!r} was prepared otherwise: {'; '.join(changed)}; run `prepare` with --rebuild=true, or use those settings"
        )
    manifest.check_files()
    return manifest


def check_topk(settings: Mapping[str, Any], catalogue: int) -> None:
    """Refuse a cut-off beyond the catalogue.

    Raises:
        UserError: names the cut-offs and the number of items.
    """
    if max(settings["topk"]) > catalogue:
        raise UserError(f"topk={settings['topk']}: only {catalogue:,} items can be ranked; lower --topk and --valid_metric")


def check_items(settings: Mapping[str, Any], prepared: Manifest) -> Manifest:
    """The manifest of a dataset's `.itememb`.

    Raises:
        UserError: there is none, it was made for other settings or session files, or it has changed since.
    """
    folder = dataset_folder(settings)
    manifest = Manifest.read(folder / ITEMS)
    if manifest is None:
        raise UserError(
            f"{str(folder)!r} holds no .itememb file; run `recbole-llm4sbr infer --dataset={settings['dataset']}` first, with "
            f"--intent_source=none when no LLM is wanted"
        )
    if changed := item_differences(manifest, settings, prepared):
        raise UserError(
            f"the .itememb in {str(folder)!r} was made otherwise: {'; '.join(changed)}; run `infer` with --rebuild=true"
        )
    manifest.check_files()
    return manifest


def check_intents(settings: Mapping[str, Any], prepared: Manifest, items: Manifest) -> Manifest:
    """The manifest of the feature files of a run's source of intents.

    Raises:
        UserError: there are none, they were made for other settings, session files or item vectors, a file has changed since, or fewer
            than `intent_k` items are stored per intent.
    """
    folder = intents_folder(dataset_folder(settings), settings)
    manifest = Manifest.read(folder / INTENTS)
    if manifest is None:
        raise UserError(
            f"{str(folder)!r} holds no feature files; run `recbole-llm4sbr infer --dataset={settings['dataset']} "
            f"--intent_source={intents_of(settings)}` first"
        )
    if changed := intent_differences(manifest, settings, prepared, items):
        raise UserError(
            f"the feature files in {str(folder)!r} were made otherwise: {'; '.join(changed)}; run `infer` with --rebuild=true"
        )
    manifest.check_files()
    if settings["intent_k"] > manifest.counts["k_max"]:
        raise UserError(
            f"intent_k={settings['intent_k']} is larger than the {manifest.counts['k_max']} items that are stored per intent"
        )
    return manifest


def item_differences(
    manifest: Manifest, settings: Mapping[str, Any], prepared: Manifest, models: Mapping[str, str] | None = None
) -> list[str]:
    """In what item vectors were made otherwise than the settings say."""
    return manifest.differences(deciding(settings, "items"), {"prepared": prepared.files}, models)


def intent_differences(
    manifest: Manifest,
    settings: Mapping[str, Any],
    prepared: Manifest,
    items: Manifest | None,
    models: Mapping[str, str] | None = None,
) -> list[str]:
    """In what intents were made otherwise than the settings say; further views in them do no harm."""
    wanted = deciding(settled(settings, prepared), "items", "intents")
    made = replace(manifest, settings=of_views(manifest.settings, wanted["views"]))
    inputs = {"prepared": prepared.files} | ({"items": items.files} if items else {})
    return made.differences(wanted, inputs, models)
