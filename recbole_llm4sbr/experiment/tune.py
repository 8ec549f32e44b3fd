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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from recbole_llm4sbr.base.cluster import connect
from recbole_llm4sbr.experiment.compare import duration, machine
from recbole_llm4sbr.training.config import SessionConfig, check_runnable
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import make_folder, read_json, write_json, write_whole
from recbole_llm4sbr.intent import NO_MODELS
from recbole_llm4sbr.model import IntentFiles
from recbole_llm4sbr.quick_start import fit, load_data, make_features, peak_memory_mb, train
from recbole_llm4sbr.base.settings import BEFORE_TRAINING, load_settings, read_yaml, uses_intents, uses_item_texts
from recbole_llm4sbr.experiment.shared_data import SharedData, dataloaders, share
from recbole_llm4sbr.experiment.space import Dimension, read_space

log = logging.getLogger(__name__)

_FILES_BY = ("llm4sbr", "intent_source", "control_of", "views", "item_init")  # settings that ask for feature files
EXPERIMENT = "ray"  # Ray Tune's own folder in --out


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
) -> dict[str, Any]:
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

    Returns:
        What `search.json` holds: trials, and `best` with its setting, validation and test.

    Raises:
        UserError: a mistake in the space or the settings, another search in the folder, no Ray there, or no trial that ended well.
    """
    settings = load_settings(config_files=config_files, overrides=given)
    dimensions = {
        key: dimension.of_whole_numbers() if isinstance(settings.get(key), int) else dimension
        for key, dimension in read_space(space, how == "grid").items()
    }
    if str(settings["ray_address"] or "").startswith("ray://"):
        raise UserError(
            "tune must run on a node of the cluster, or it could not go on after a kill; use --ray_address=auto there"
        )
    _check(settings, dimensions, given, config_files)
    out = make_folder(out)
    asked: dict[str, Any] = {
        "settings": _asked(settings),
        "space": {key: [each.kind, *each.values] for key, each in dimensions.items()},
    }
    asked |= {"trials": None if how == "grid" else trials, "how": how, "scheduler": scheduler}
    asked = json.loads(json.dumps(asked, default=str))
    found = _earlier(out, asked)
    if found.get("best"):
        log.info("tune: %s holds this search already", out)
        return found
    manifest = prepare(settings)
    _make_files(settings, dimensions)
    if settings["dry_run"]:
        return {}
    connect(settings["ray_address"], num_cpus=os.cpu_count())
    bigger = bool(SessionConfig(settings)["valid_metric_bigger"])
    if how == "optuna":
        _optuna(0)  # said before the data are loaded
    write_json(out / "asked.json", asked)
    outcome = _run(settings, dimensions, out, trials, how, scheduler, cpus, gpus, bigger)
    good = [trial for trial in outcome if trial["score"] is not None]
    if not good:
        reason = next((trial["error"] for trial in outcome if trial["error"]), "none reported a score")
        raise UserError(
            f"none of {len(outcome)} trials ended with a score; the first reason: {reason}; see {str(out / EXPERIMENT)!r}"
        )
    best = (max if bigger else min)(good, key=lambda trial: trial["score"])
    found = {
        "dataset": settings["dataset"], "split": settings["split"], "model": settings["model"], "metric": settings["valid_metric"],
        "bigger": bigger, "command": command, "machine": machine(), "asked": asked, "counts": manifest["counts"], "trials": outcome,
    }  # fmt: skip
    _write_table(out / "trials.csv", outcome, list(dimensions))
    write_json(out / "search.json", found)
    path = out / "best.yaml"
    with write_whole(path) as handle:
        handle.write(_best_yaml(settings, given, config_files, best["setting"]))
    log.info("tune: training the best of %s trials again, to test it: %s", len(good), _said(best["setting"]))
    result = train(load_settings(config_files=[path]) | {"show_progress": settings["show_progress"]})
    found["best"] = {"setting": best["setting"], "trial": best["trial"], "score": best["score"], "result": result}
    write_json(out / "search.json", found)
    return found


def trial(setting: Mapping[str, Any], settings: Mapping[str, Any], shared: SharedData, threads: int) -> None:
    """One trial, in a worker of Ray: train, report the best validation so far after every epoch.

    Args:
        setting: what the search drew.
        settings: of every trial.
        shared: data and intents; in the memory of all workers of a machine.
        threads: of torch.
    """
    from ray import tune

    os.environ[NO_MODELS] = "in a trial of tune"
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    config = SessionConfig({**settings, **setting, "checkpoint_dir": ".", "show_progress": False, "state": "error"})
    train_data, valid_data = dataloaders(config, shared)
    bigger = config["valid_metric_bigger"]
    scores: list[float] = []

    def report(epoch: int, score: float) -> None:
        scores.append(score)
        tune.report({"score": (max if bigger else min)(scores), "valid_score": score, "epoch": epoch})

    _, result = fit(config, train_data, valid_data, saved=False, on_epoch=report)
    memory = {"private_mb": psutil.Process().memory_full_info().uss / 2**20, "peak_mb": peak_memory_mb(config["device"])}
    kept = ("best_epoch", "epochs", "seconds_training", "parameters", "best_valid_result", "valid_scores")
    tune.report({"score": result["best_valid_score"], **{key: result[key] for key in kept}, **memory})


def _check(
    settings: Mapping[str, Any], space: Mapping[str, Dimension], given: Mapping[str, Any], config_files: Sequence[str]
) -> None:
    """Refuse a space that cannot be searched, before anything runs."""
    for key, dimension in space.items():
        if key in BEFORE_TRAINING or key == "model":
            raise UserError(
                f"{key!r} is decided before training and cannot be searched; run `tune` once for each value, with --{key} and an "
                f"--atomic_path and --out of its own"
            )
        for value in dimension.examples:
            check_runnable(load_settings(config_files=config_files, overrides={**given, key: value}))
    check_runnable(settings)


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a search another one."""
    left_out = (
        "data_path",
        "atomic_path",
        "checkpoint_dir",
        "result_file",
        "rebuild",
        "dry_run",
        "show_progress",
        "ray_address",
    )
    return {key: value for key, value in settings.items() if key not in left_out}


def _earlier(out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder holds of this search.

    Raises:
        UserError: it holds another one.
    """
    path = out / "asked.json"
    if not path.is_file():
        return {}
    if (before := read_json(path)) != asked:
        parts = {**before, **before["settings"]}, {**asked, **asked["settings"]}
        changed = [key for key in {**parts[0], **parts[1]} if key != "settings" and parts[0].get(key) != parts[1].get(key)]
        raise UserError(
            f"{str(out)!r} holds another search ({', '.join(changed)} differ); choose another --out, or delete the folder"
        )
    return read_json(out / "search.json") if (out / "search.json").is_file() else {}


def _make_files(settings: Mapping[str, Any], space: Mapping[str, Dimension]) -> None:
    """Make the feature files that any trial needs."""
    axes = [[(key, value) for value in space[key].values] for key in _FILES_BY if key in space and space[key].kind == "choice"]
    for combination in itertools.product(*axes):
        make_features({**settings, **dict(combination)})


def _load(settings: Mapping[str, Any], space: Mapping[str, Dimension]) -> SharedData:
    """Data and feature files, read once."""
    _, dataset, (train_data, valid_data, _) = load_data({**settings, "show_progress": False, "state": "error"})
    if not uses_item_texts(settings):
        return share(train_data, valid_data, None)
    values = space["intent_k"].values if "intent_k" in space else (settings["intent_k"],)
    most = settings["intent_k_max"] if "intent_k" in space and space["intent_k"].kind != "choice" else max(values)
    views: list[str] = settings["views"]
    if "views" in space:
        views = list(dict.fromkeys(view for each in space["views"].values for view in each))
    config = SessionConfig(settings)
    if not uses_intents(settings):
        return share(train_data, valid_data, IntentFiles.read(config, dataset, [], 0))
    return share(train_data, valid_data, IntentFiles.read(config, dataset, views, int(most), with_answers=0 in values))


def _run(
    settings: Mapping[str, Any],
    space: Mapping[str, Dimension],
    out: Path,
    trials: int,
    how: str,
    scheduler: str,
    cpus: float,
    gpus: float | None,
    bigger: bool,
) -> list[dict[str, Any]]:
    """Run or go on with the search; every trial's setting, score and error."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ray would end the search as if it were complete
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # what a kill may cost; Ray's own choice is up to minutes
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    gpus = gpus if gpus is not None else (1 if resources.get("GPU") else 0)
    if cpus > resources.get("CPU", 0) or gpus > resources.get("GPU", 0):
        raise UserError(
            f"a trial of {cpus} CPUs and {gpus} GPUs does not fit Ray's {resources.get('CPU', 0):.0f} CPUs and "
            f"{resources.get('GPU', 0):.0f} GPUs; lower --cpus_per_trial or --gpus_per_trial"
        )
    shared = _load(settings, space)
    log.info("tune: %.0f MB of data and intents, loaded once and shared by all trials", shared.megabytes)
    absolute = {key: str(Path(settings[key]).resolve()) for key in ("data_path", "atomic_path")}
    parameters = {"settings": {**settings, **absolute}, "shared": shared, "threads": max(1, int(cpus))}
    runs = tune.with_resources(tune.with_parameters(trial, **parameters), {"cpu": cpus, "gpu": gpus})
    folder = str((out / EXPERIMENT).resolve())
    grid = how == "grid"
    drawn = {key: dimension.of_tune(grid) for key, dimension in space.items()}
    total = trials
    if grid:
        total = 1
        for dimension in space.values():
            total *= len(dimension.values)
    watch = _progress(total, settings["valid_metric"])
    if tune.Tuner.can_restore(folder):
        log.info("tune: going on with the search in %s", folder)
        tuner = tune.Tuner.restore(folder, runs, resume_unfinished=True, restart_errored=True, param_space=drawn)
        tuner._local_tuner.get_run_config().callbacks = [watch]
    else:
        seed = settings.get("seed", 2020)
        asha = ASHAScheduler(
            time_attr="training_iteration", max_t=settings["epochs"] + 1, grace_period=min(3, settings["epochs"])
        )
        tuner = tune.Tuner(
            runs,
            param_space=drawn,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max" if bigger else "min",
                num_samples=1 if grid else trials,
                reuse_actors=True,  # a fresh process costs seconds of imports
                scheduler=asha if scheduler == "asha" else FIFOScheduler(),
                search_alg=_optuna(seed) if how == "optuna" else BasicVariantGenerator(random_state=seed),
                trial_dirname_creator=lambda each: each.trial_id,
            ),
            run_config=tune.RunConfig(name=EXPERIMENT, storage_path=str(out.resolve()), verbose=0, callbacks=[watch]),
        )
    return [_outcome(result, list(space)) for result in tuner.fit()]


def _optuna(seed: int) -> Any:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError("search 'optuna' needs the package optuna: pip install 'recbole-llm4sbr[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=seed)


def _outcome(result: Any, keys: Sequence[str]) -> dict[str, Any]:
    """A trial's line for `search.json`."""
    metrics = result.metrics or {}
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    kept = ("best_epoch", "epochs", "seconds_training", "parameters", "best_valid_result", "private_mb", "peak_mb")
    return {
        "trial": Path(result.path).name,
        "setting": {key: result.config[key] for key in keys},
        "score": None if error else metrics.get("score"),
        "epochs_seen": metrics.get("training_iteration", 0),
        "error": error,
        **{key: metrics.get(key) for key in kept},
    }


def _progress(total: int, metric: str) -> Any:
    """A line for every trial that ends."""
    from ray import tune

    class Progress(tune.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.started, self.ended = time.perf_counter(), 0

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            score = (trial.last_result or {}).get("score")
            self._line(trials, trial, f"{metric} {score:.4f} on validation" if score is not None else "no score")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._line(trials, trial, f"failed ({trial.error_file or 'lost'})")

        def _line(self, trials: list[Any], trial: Any, text: str) -> None:
            self.ended += 1
            done = sum(each.is_finished() or each is trial for each in trials)
            left = (time.perf_counter() - self.started) / self.ended * max(total - done, 0)
            log.info("[%s/%s] %s: %s; %s left", done, total, _said(trial.config), text, duration(left))

    return Progress()


def _said(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in setting.items())


def _best_yaml(
    settings: Mapping[str, Any], given: Mapping[str, Any], config_files: Sequence[str], setting: Mapping[str, Any]
) -> str:
    """What was given, from files and the command line, with the best setting: `train --config_files=best.yaml` takes it."""
    merged: dict[str, Any] = {}
    for path in config_files:
        merged |= read_yaml(path)
    # what a name like LLM2SRGNN implies is written out
    named = {key: settings[key] for key in ("model", "dataset", "llm4sbr", "item_init")}
    merged |= {**given, **named, **setting}
    return (
        "# The best setting that `tune` found, by validation. Use: recbole-llm4sbr train --config_files=best.yaml\n"
        + yaml.safe_dump(merged, sort_keys=False)
    )


def _write_table(path: Path, trials: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """All trials as CSV."""
    columns = ("score", "epochs_seen", "best_epoch", "seconds_training", "parameters", "private_mb", "peak_mb", "error")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", *keys, *columns])
    for each in trials:
        writer.writerow([each["trial"], *(each["setting"][key] for key in keys), *(each[column] for column in columns)])
    with write_whole(path) as handle:
        handle.write(text.getvalue())
