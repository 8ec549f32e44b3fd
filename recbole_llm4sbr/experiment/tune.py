"""`tune`: a Ray Tune search over any settings of training (the paper's Figure 7 and more).

A trial is RecBole's own `Trainer.fit`. It reports validation after every epoch and never sees the test part; data and intents are loaded
once and shared by all trials; no trial may ask an LLM or encode a text. The best setting alone is trained again and tested, once.
"""

import csv
import io
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from recbole_llm4sbr.base.cluster import connect
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.files import check_folder, is_own, make_folder, mark_own, read_json, write_json, write_whole
from recbole_llm4sbr.base.grids import BestTrial, Search, Trial
from recbole_llm4sbr.base.names import report_name
from recbole_llm4sbr.base.outputs import SEARCH, check_output, report_files
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.base.results import Budget
from recbole_llm4sbr.base.schema import per_grid, read_yaml
from recbole_llm4sbr.base.settings import FEATURE_FILES_BY, Settings, load_settings, recipe_path
from recbole_llm4sbr.base.wording import as_options, show_settings
from recbole_llm4sbr.data.checks import RunFiles, settled
from recbole_llm4sbr.data.remembered import of_files
from recbole_llm4sbr.experiment.feature_files import dry_run_of_all, make_files_of_all
from recbole_llm4sbr.experiment.ray_search import EXPERIMENT, Plan, optuna_search, run_trials
from recbole_llm4sbr.experiment.space import Dimension, read_space
from recbole_llm4sbr.training.config import SessionConfig, check_runnable
from recbole_llm4sbr.training.environment import machine
from recbole_llm4sbr.training.gpus import check_dealt_out
from recbole_llm4sbr.training.keys import checksums_of
from recbole_llm4sbr.training.run import train

log = logging.getLogger(__name__)


def search(
    given: Mapping[str, Any],
    out: str | Path,
    space: str = "default",
    trials: int = 20,
    how: str = "random",
    scheduler: str = "asha",
    cpus: float = 1,
    gpus: float | None = None,
    config_files: Sequence[str] = (),
    command: str = "",
    overwrite: bool = False,
) -> Search | None:
    """Search, train the best setting again and test it; a search that was killed goes on.

    Args:
        given: settings of every trial; `ray_address` says on which cluster.
        out: folder of the search.
        space: a `.hyper` file, or the name of a shipped one.
        trials: how many; with `how="grid"` every combination is tried once.
        how: `random`, `grid` or `optuna`.
        scheduler: `asha` stops poor trials early, `none` lets each end by RecBole's early stopping.
        cpus, gpus: of one trial; fractions share a GPU. gpus None: one where the cluster has any.
        config_files: settings files of every trial.
        command: what was typed, for the report.
        overwrite: whether tables and pages that no search wrote may be replaced.

    Returns:
        What `search.json` holds; None for a dry run.

    Raises:
        UserError: a mistake in the space or the settings, another search or somebody else's files in the folder, no Ray there, or no trial
            that ended well.
    """
    settings = load_settings(config_files=config_files, overrides=given, recall=of_files)
    typed = load_settings(config_files=config_files, overrides=given)
    taken = {key: value for key, value in settings.items() if value != typed.get(key)}  # from the files that are there
    dimensions = {
        key: dimension.of_whole_numbers() if isinstance(settings.get(key), int) else dimension
        for key, dimension in read_space(space, how == "grid").items()
    }
    _check(settings, dimensions, given, config_files)
    if how == "optuna":
        optuna_search(0)  # a missing package is named before an LLM is asked or data are loaded
    check_folder(out, "--out")
    names = [report_name(settings["dataset"], settings["split"])]
    places = {Path(out) / name: output for name, output in SEARCH.items()} | report_files(out, names, Path(out) / "report.html")
    for path, output in places.items():
        check_output("out", path, output, [*config_files, space], overwrite)
    out = make_folder(out)
    if (out / EXPERIMENT).exists() and not is_own(out):
        raise UserError(
            f"{str(out / EXPERIMENT)!r} was not made by you at this place; Ray goes on from pickled files, which can run code of whoever "
            f"made them; delete it to search anew, or choose another --out"
        )
    needed = _runs_of_all_files(settings, dimensions)
    if settings["dry_run"]:
        for line in dry_run_of_all(needed):
            print(line)
        return None
    files = make_files_of_all(needed)
    settings = settled(settings, next(iter(files.values())).prepared)
    asked = _asked(settings, dimensions, needed, files) | {
        "trials": None if how == "grid" else trials, "how": how, "scheduler": scheduler,
    }  # fmt: skip
    found = _earlier(out, asked)
    if found is not None and found.best is not None:
        log.info("tune: %s holds this search already", out)
        return found
    connect(settings["ray_address"], num_cpus=os.cpu_count())
    bigger = bool(SessionConfig(settings)["valid_metric_bigger"])
    write_json(out / "asked.json", asked)
    mark_own(out)
    outcome = run_trials(settings, Plan(dimensions, trials, how, scheduler, cpus, gpus, bigger), out)
    best = _best_of(outcome, bigger, out)
    counts = PreparedCounts.from_json(next(iter(files.values())).prepared.counts)
    found = Search(
        settings["dataset"], settings["split"], settings["model"], settings["valid_metric"], bigger,
        command and command + as_options(taken), machine(), asked, counts,
        outcome,
    )  # fmt: skip
    _write_table(out / "trials.csv", outcome, list(dimensions))
    write_json(out / "search.json", found.to_json())
    path = out / "best.yaml"
    with write_whole(path) as handle:
        handle.write(_best_yaml(settings, {**taken, **given}, config_files, best.setting))
    log.info("tune: training the best of %s trials again, to test it: %s", len(outcome), show_settings(best.setting))
    result = train(load_settings(config_files=[path], recall=of_files) | {"show_progress": settings["show_progress"]})
    found = replace(found, best=BestTrial(best.setting, best.trial, float(best.score or 0.0), result))
    write_json(out / "search.json", found.to_json())
    runs = {"the best trial": best.unfinished, "its setting, trained again": result.unfinished}
    if unfinished := [name for name, is_unfinished in runs.items() if is_unfinished]:
        log.warning("tune: %s: %s", " and ".join(unfinished), Budget.of({**settings, **best.setting}).advice())
    return found


def _check(
    settings: Mapping[str, Any], space: Mapping[str, Dimension], given: Mapping[str, Any], config_files: Sequence[str]
) -> None:
    """Refuse a space that cannot be searched, before anything runs."""
    if str(settings["ray_address"] or "").startswith("ray://"):
        raise UserError(
            "tune must run on a node of the cluster, or it could not go on after a kill; use --ray_address=auto there"
        )
    check_dealt_out(settings)
    for key, dimension in space.items():
        if per_grid(key) or key == "model":
            raise UserError(
                f"{key!r} is decided before training and cannot be searched; run `tune` once for each value, with --{key} and an "
                f"--atomic_path and --out of its own"
            )
        for value in dimension.examples:
            check_runnable(load_settings(config_files=config_files, overrides={**given, key: value}, recall=of_files))
    check_runnable(settings)


def _runs_of_all_files(settings: Settings, space: Mapping[str, Dimension]) -> list[Settings]:
    """Settings of runs that together need every feature file that any trial needs."""
    axes = [
        [(key, value) for value in space[key].values]
        for key in FEATURE_FILES_BY
        if key in space and space[key].kind == "choice"
    ]
    most = {"intent_k": max(space["intent_k"].examples)} if "intent_k" in space else {}
    return [settings | most | dict(combination) for combination in itertools.product(*axes)]


def _asked(
    settings: Settings, space: Mapping[str, Dimension], runs: Sequence[Settings], files: Mapping[str, RunFiles]
) -> dict[str, Any]:
    """What makes a search another one: settings that decide anything, the space, and the files that trials read."""
    views = list(dict.fromkeys(view for run in runs for view in run["views"]))
    checksums = {source: checksums_of(made, views) for source, made in files.items()}
    asked = {
        "settings": deciding(settings, "prepared", "items", "intents", "training"),
        "space": {key: [each.kind, *each.values] for key, each in space.items()},
        "files": checksums,
    }
    found: dict[str, Any] = json.loads(json.dumps(asked, default=str))
    return found


def _earlier(out: Path, asked: Mapping[str, Any]) -> Search | None:
    """What the folder holds of this search.

    Raises:
        UserError: it holds another one.
    """
    path = out / "asked.json"
    if not path.is_file():
        return None
    if (before := read_json(path)) != asked:
        raise UserError(
            f"{str(out)!r} holds another search ({', '.join(_changed(before, asked))} differ); choose another --out, or delete the "
            f"folder"
        )
    return Search.from_json(read_json(out / "search.json")) if (out / "search.json").is_file() else None


def _changed(before: Any, asked: Mapping[str, Any]) -> list[str]:
    """Names of what two searches differ in."""
    if not isinstance(before, dict):
        return ["all"]
    parts = [{**each, **each.get("settings", {})} for each in (before, dict(asked))]
    keys = [key for key in {**parts[0], **parts[1]} if key != "settings" and parts[0].get(key) != parts[1].get(key)]
    return ["the prepared or feature files" if key == "files" else key for key in keys]


def _best_of(trials: Sequence[Trial], bigger: bool, out: Path) -> Trial:
    """The trial with the best score.

    Raises:
        UserError: none ended with a score.
    """
    scores = {number: each.score for number, each in enumerate(trials) if each.score is not None}
    if not scores:
        reason = next((each.error for each in trials if each.error), "none reported a score")
        raise UserError(
            f"none of {len(trials)} trials ended with a score; the first reason: {reason}; see {str(out / EXPERIMENT)!r}"
        )
    return trials[(max if bigger else min)(scores, key=lambda number: scores[number])]


def _best_yaml(
    settings: Mapping[str, Any], given: Mapping[str, Any], config_files: Sequence[str], setting: Mapping[str, Any]
) -> str:
    """What was given, and what files said, with the best setting: `train --config_files=best.yaml` takes it, also where no files are."""
    merged: dict[str, Any] = {}
    for path in config_files:
        merged |= read_yaml(recipe_path(path))
    # what a name like LLM2SRGNN implies is written out
    named = {key: settings[key] for key in ("model", "dataset", "llm4sbr", "item_init")}
    merged |= {**given, **named, **setting}
    return (
        "# The best setting that `tune` found, by validation. Use: recbole-llm4sbr train --config_files=best.yaml\n"
        + yaml.safe_dump(merged, sort_keys=False)
    )


def _write_table(path: Path, trials: Sequence[Trial], keys: Sequence[str]) -> None:
    """All trials as CSV."""
    columns = (
        "score", "epochs_seen", "best_epoch", "unfinished", "seconds_training", "parameters", "private_mb", "peak_mb", "error",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", *keys, *columns])
    for each in trials:
        writer.writerow([each.trial, *(each.setting[key] for key in keys), *(getattr(each, column) for column in columns)])
    with write_whole(path) as handle:
        handle.write(text.getvalue())
