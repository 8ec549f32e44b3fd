"""What a user imports: own data, the whole line as a function, loading a trained model again, and ensembles of several."""

from collections.abc import Iterable, Mapping
from typing import Any

from recbole_llm4sbr.base.facts import uses_intents, uses_item_texts
from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.checks import RunFiles, check_topk
from recbole_llm4sbr.data.importing import import_clicks
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.remembered import of_files
from recbole_llm4sbr.intent.infer import check_askable, infer
from recbole_llm4sbr.intent.item_vectors import encode_items
from recbole_llm4sbr.recommend.recommender import Recommender
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.ensemble import Ensemble, load_ensemble, run_ensemble
from recbole_llm4sbr.training.loading import Loaded, load_model
from recbole_llm4sbr.training.run import train

__all__ = [
    "Ensemble",
    "Loaded",
    "Recommender",
    "import_clicks",
    "load_ensemble",
    "load_model",
    "make_files",
    "run_ensemble",
    "run_recbole_llm4sbr",
    "train",
]


def run_recbole_llm4sbr(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Iterable[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Walk the whole line; every step whose result is already there, made with the same settings, is skipped.

    Args:
        model: a native backbone, a sequential model of RecBole, or `package.module:Class`, or such a class.
        dataset: name of a RecBole atomic dataset.
        config_file_list: YAML files of settings.
        config_dict: settings that win over the files.
        saved: whether checkpoints are written.

    Returns:
        RecBole's `best_valid_score`, `valid_score_bigger`, `best_valid_result`, `test_result`, and the other fields of
        `base.results.RunResult`.

    Raises:
        UserError: a mistake in the input, before long work starts.
    """
    settings = load_settings(model, dataset, config_file_list or (), config_dict, of_files)
    check_runnable(settings)
    files, counts = make_files(settings)
    return train(settings, files, counts, saved).to_json()


def make_files(settings: Mapping[str, Any]) -> tuple[RunFiles, IntentCounts | None]:
    """Write the session and feature files that a run needs, unless they are there.

    Returns:
        Their manifests, and the counts of `infer` where intents are needed.

    Raises:
        UserError: as `prepare` and `infer`.
    """
    if uses_item_texts(settings):
        check_askable(settings)
    prepared = prepare(settings)
    check_topk(settings, prepared.counts["catalogue"])
    if uses_intents(settings):
        inferred = infer(settings, prepared)
        return RunFiles(prepared, inferred.items, inferred.intents), inferred.counts
    return RunFiles(prepared, encode_items(settings, prepared) if uses_item_texts(settings) else None), None
