"""A search's trials with Ray Tune: run, or gone on with after a kill."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.grids import Trial
from recbole_llm4sbr.base.wording import duration, show_settings
from recbole_llm4sbr.experiment.space import Dimension
from recbole_llm4sbr.experiment.trial import load_shared, trial

log = logging.getLogger(__name__)

EXPERIMENT = "ray"  # Ray Tune's own folder in --out


@dataclass(frozen=True)
class Plan:
    """How a search goes.

    Attributes:
        space: what is searched, by setting.
        trials: how many; a grid has as many as combinations.
        how: `random`, `grid` or `optuna`.
        scheduler: `asha` or `none`.
        cpus, gpus: of one trial; gpus None: one where the cluster has any.
        bigger: whether a larger score is better.
    """

    space: Mapping[str, Dimension]
    trials: int
    how: str
    scheduler: str
    cpus: float
    gpus: float | None
    bigger: bool

    @property
    def total(self) -> int:
        """Trials in all."""
        return math.prod(len(each.values) for each in self.space.values()) if self.how == "grid" else self.trials


def run_trials(settings: Mapping[str, Any], plan: Plan, out: Path) -> list[Trial]:
    """Run or go on with the search in the folder `out`, with `settings` for every trial."""
    from ray import tune

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ray would end the search as if it were complete
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # what a kill may cost; Ray's own choice is up to minutes
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)
    gpus = _check_resources(plan.cpus, plan.gpus)
    shared = load_shared(settings, plan.space)
    log.info("tune: %.0f MB of data and intents, loaded once and shared by all trials", shared.megabytes)
    absolute = {key: str(Path(settings[key]).resolve()) for key in ("data_path", "atomic_path")}
    parameters = {"settings": {**settings, **absolute}, "shared": shared, "threads": max(1, int(plan.cpus))}
    runs = tune.with_resources(tune.with_parameters(trial, **parameters), {"cpu": plan.cpus, "gpu": gpus})
    drawn = {key: dimension.of_tune(plan.how == "grid") for key, dimension in plan.space.items()}
    watch = _progress_callback(plan.total, settings["valid_metric"])
    folder = str((out / EXPERIMENT).resolve())
    if tune.Tuner.can_restore(folder):
        log.info("tune: going on with the search in %s", folder)
        tuner = tune.Tuner.restore(folder, runs, resume_unfinished=True, restart_errored=True, param_space=drawn)
        tuner._local_tuner.get_run_config().callbacks = [watch]
    else:
        run_config = tune.RunConfig(name=EXPERIMENT, storage_path=str(out.resolve()), verbose=0, callbacks=[watch])
        tuner = tune.Tuner(runs, param_space=drawn, tune_config=_tune_config(settings, plan), run_config=run_config)
    return [_outcome(result, list(plan.space)).judged(settings) for result in tuner.fit()]


def _tune_config(settings: Mapping[str, Any], plan: Plan) -> Any:
    """Ray Tune's configuration of a new search."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    seed, epochs = settings.get("seed", 2020), settings["epochs"]
    asha = ASHAScheduler(time_attr="training_iteration", max_t=epochs + 1, grace_period=min(3, epochs))
    return tune.TuneConfig(
        metric="score",
        mode="max" if plan.bigger else "min",
        num_samples=1 if plan.how == "grid" else plan.trials,
        reuse_actors=True,  # a fresh process costs seconds of imports
        scheduler=asha if plan.scheduler == "asha" else FIFOScheduler(),
        search_alg=optuna_search(seed) if plan.how == "optuna" else BasicVariantGenerator(random_state=seed),
        trial_dirname_creator=lambda each: each.trial_id,
    )


def _check_resources(cpus: float, gpus: float | None) -> float:
    """The GPUs of a trial.

    Raises:
        UserError: a trial does not fit the cluster.
    """
    import ray

    resources = ray.cluster_resources()
    gpus = gpus if gpus is not None else (1 if resources.get("GPU") else 0)
    if cpus > resources.get("CPU", 0) or gpus > resources.get("GPU", 0):
        raise UserError(
            f"a trial of {cpus} CPUs and {gpus} GPUs does not fit Ray's {resources.get('CPU', 0):.0f} CPUs and "
            f"{resources.get('GPU', 0):.0f} GPUs; lower --cpus_per_trial or --gpus_per_trial"
        )
    return gpus


def optuna_search(seed: int) -> Any:
    """Optuna's sampler for Ray Tune.

    Raises:
        UserError: optuna is not installed.
    """
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise UserError("search 'optuna' needs the package optuna: pip install 'recbole-llm4sbr[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=seed)


def _outcome(result: Any, keys: Sequence[str]) -> Trial:
    """What a trial of Ray's came to."""
    metrics = result.metrics or {}
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    names = ("best_epoch", "epochs", "seconds_training", "parameters", "best_valid_result", "private_mb", "peak_mb")
    kept: dict[str, Any] = {name: metrics.get(name) for name in names}
    return Trial(
        Path(result.path).name,
        {key: result.config[key] for key in keys},
        None if error else metrics.get("score"),
        error,
        metrics.get("epochs") or metrics.get("training_iteration", 0),  # one that ends reports once more
        **kept,
    )


def _progress_callback(total: int, metric: str) -> Any:
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
            log.info("[%s/%s] %s: %s; %s left", done, total, show_settings(trial.config), text, duration(left))

    return Progress()
