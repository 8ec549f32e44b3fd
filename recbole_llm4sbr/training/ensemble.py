"""Ensembles: trained models whose log-probabilities of the candidates are added (docs/comparison.md).

Members are trained apart, on the same files; each scores with its own intents. Weights are equal, given, or those under which the targets
of the validation part are most likely.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import tower_said
from recbole_llm4sbr.base.recbole import SequentialRecommender
from recbole_llm4sbr.base.records import IntentCounts, PreparedCounts
from recbole_llm4sbr.base.results import Budget, Member, RunResult
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.data.checks import check_run_files
from recbole_llm4sbr.model.candidates import exclude_clicked
from recbole_llm4sbr.training.environment import peak_memory_mb, versions
from recbole_llm4sbr.training.fit import look_at_test, shows_progress
from recbole_llm4sbr.training.loading import Loaded, NewItems, load_model
from recbole_llm4sbr.training.trainer import plain, read_checkpoint, session_trainer

log = logging.getLogger(__name__)

Weights = Literal["equal", "valid"] | Sequence[float]

_NEVER = -1e4  # the logarithm of a probability that is 0 in float32, but finite, so that 0 times it is 0
_ROWS = 256  # whose log-probabilities are summed at once
_STEPS, _ENOUGH = 30, 1e-7  # of Newton's method on the weights; a smaller gain in mean log-likelihood ends it
_NOTHING = 1e-6  # weights with a smaller sum make all candidates equally likely


class Ensemble(SequentialRecommender):  # type: ignore[misc]
    """The weighted sum of its members' log-probabilities. Of a candidate that a member does not know, as a cold item to a model without a
    text tower, the member says what the others say on average.

    Args:
        config: RecBole's config of the first member.
        dataset: RecBole's dataset.
        members: models with `full_sort_predict`, over the same items in the same order.
        weights: of the members; by default equal, with the sum 1.
    """

    weights: Tensor

    def __init__(self, config: Any, dataset: Any, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__(config, dataset)
        self.repeatable = config["repeatable"]
        self.members = nn.ModuleList(members)
        given = [1 / len(members)] * len(members) if weights is None else weights
        self.register_buffer("weights", torch.tensor(given, dtype=torch.float32))

    def log_probabilities(self, interaction: Any) -> Tensor:
        """Of each member over the candidates, -inf for what is none, [members, B, n_items]."""
        found = []
        for member in self.members:
            scores = member.full_sort_predict(interaction).view(len(interaction[self.ITEM_SEQ]), -1)  # type: ignore[operator]
            scores[:, 0] = -torch.inf  # padding, as RecBole's evaluator has it
            found.append((scores if self.repeatable else exclude_clicked(scores, interaction[self.ITEM_SEQ])).log_softmax(-1))
        return _of_the_others(torch.stack(found), list(self.members))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, [B, n_items]; -inf for what is no candidate."""
        return pooled(self.log_probabilities(interaction), self.weights)


def _of_the_others(logs: Tensor, members: Sequence[nn.Module]) -> Tensor:
    """Log-probabilities [members, B, n_items] where members that do not know the cold items say of them what those say that do."""
    cold = max((getattr(each, "n_cold", 0) for each in members), default=0)
    reading = [number for number, each in enumerate(members) if getattr(each, "reads_cold", True)]
    others = [number for number in range(len(members)) if number not in reading]
    if cold and reading and others:
        logs[others, :, -cold:] = logs[reading, :, -cold:].mean(0)
    return logs


def pooled(logs: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of log-probabilities [members, ...], -inf where all are, [...]; a member of weight 0 does not count."""
    candidates = logs.isfinite().any(0)
    summed = torch.tensordot(weights.to(logs.dtype), logs.nan_to_num(neginf=_NEVER), 1)
    return torch.where(candidates, summed, -torch.inf)


@torch.no_grad()
def fit_weights(ensemble: Ensemble, valid_data: Any, device: Any) -> list[float]:
    """The weights under which the targets of the validation part are most likely, none negative; their sum is 1.

    Where no weights make them likelier than if all candidates were equally likely, there are no best ones: equal weights, and a warning.

    The log-likelihood of a log-linear pool is concave in its weights (Genest & Zidek 1986), so that Newton's method finds its one best
    point; its gradient and curvature are means and covariances of the members' log-probabilities under the pool.

    Args:
        ensemble: its members are asked again at every step, so that no scores of the whole part are kept.
        valid_data: RecBole's dataloader of the validation part.
        device: of the models.
    """
    count = len(ensemble.members)
    weights = torch.full((count,), 1 / count, dtype=torch.float64, device=device)
    best, step, last = weights, torch.zeros_like(weights), -torch.inf
    for _ in range(_STEPS):
        likelihood, gradient, curvature = _likelihood(ensemble, valid_data, weights, device)
        if likelihood <= last:  # too far: half of the step
            step = step / 2
            if (step.abs().max() < 1e-4).item():
                break
        else:
            if likelihood - last < _ENOUGH:
                best = weights
                break
            best, last = weights, likelihood
            free = ((weights > 0) | (gradient > 0)).nonzero().squeeze(1)  # the others stay 0: they would fall further
            bent = curvature[free][:, free] + 1e-6 * torch.eye(len(free), device=device, dtype=torch.float64)
            step = torch.zeros_like(weights).index_copy(0, free, torch.linalg.solve(bent, gradient[free]))
        weights = (best + step).clamp(min=0)
    if (best.sum() < _NOTHING).item():
        log.warning(
            "weights=valid: under no weights are the validation targets likelier than by chance; equal weights are taken"
        )
        best = torch.ones_like(best)
    return [round(float(each), 4) for each in best / best.sum()]


def _likelihood(ensemble: Ensemble, valid_data: Any, weights: Tensor, device: Any) -> tuple[float, Tensor, Tensor]:
    """Mean log-probability of the targets under the pool, its gradient [members] and its negative second derivative."""
    count, rows = len(weights), 0
    total, gradient, curvature = 0.0, weights.new_zeros(count), weights.new_zeros(count, count)
    for interaction, _, row, target in valid_data:
        every = ensemble.log_probabilities(interaction.to(device))[:, row.to(device)]  # a row for each target
        for logs, at in zip(torch.split(every, _ROWS, 1), torch.split(target.to(device), _ROWS)):
            finite = logs.double().nan_to_num(neginf=_NEVER)  # [members, R, n_items]
            shares = pooled(logs.double(), weights).log_softmax(-1)
            found = shares.gather(1, at.unsqueeze(1)).squeeze(1)  # [R]
            known = found.isfinite()  # a target that is no candidate says nothing of the weights
            chance = shares.exp()
            mean = torch.einsum("rv,mrv->mr", chance, finite)
            own = finite.gather(2, at[None, :, None].expand(count, -1, 1)).squeeze(2)
            total += float(found[known].sum())
            gradient += (own - mean)[:, known].sum(1)
            finite -= mean.unsqueeze(2)
            curvature += torch.einsum("rv,mrv,nrv->mn", chance[known], finite[:, known], finite[:, known])
            rows += int(known.sum())
    rows = max(rows, 1)
    return total / rows, gradient / rows, curvature / rows


def load_ensemble(
    checkpoints: Sequence[str | Path], weights: Weights = "equal", classes: Sequence[str] = (), **changed: Any
) -> Loaded:
    """Load checkpoints as one model, ready to score.

    Args:
        checkpoints: files that `train` named, of models trained on the same session files.
        weights: `equal`, `valid` (found on the validation part), or a number for each checkpoint.
        classes: model classes outside RecBole and this package that may be imported, as `package.module:Class`.
        changed: settings that differ now, as for `load_model`.

    Returns:
        The ensemble with the config, dataset and dataloaders of the first member.

    Raises:
        UserError: no checkpoint, one that `load_model` refuses, models of other sessions, items or candidates, or wrong weights.
    """
    _check_weights(weights, len(checkpoints))
    members = load_members(checkpoints, classes, **changed)
    return replace(members[0], model=pool_members(members, weights))


def load_members(
    checkpoints: Sequence[str | Path], classes: Sequence[str] = (), new_items: NewItems | None = None, **changed: Any
) -> list[Loaded]:
    """Load checkpoints whose scores can be added.

    Args:
        checkpoints, classes, changed: as for `load_ensemble`.
        new_items: as for `load_model`.

    Raises:
        UserError: as `load_ensemble`.
    """
    if not checkpoints:
        raise UserError("an ensemble needs at least one checkpoint")
    members = [load_model(each, classes, new_items, **changed) for each in checkpoints]
    for path, member in zip(checkpoints[1:], members[1:]):
        _check_alike(checkpoints[0], members[0], path, member)
    return members


def pool_members(members: Sequence[Loaded], weights: Weights = "equal") -> Ensemble:
    """Members as one model.

    Args:
        members: what `load_members` returned.
        weights: as for `load_ensemble`.

    Raises:
        UserError: wrong weights.
    """
    given, first = _check_weights(weights, len(members)), members[0]
    ensemble: Ensemble = (
        Ensemble(first.config, first.dataset, [each.model for each in members], given).to(first.config["device"]).eval()
    )
    if weights == "valid":
        found = fit_weights(ensemble, first.valid_data, first.config["device"])
        ensemble.weights = torch.tensor(found, device=first.config["device"])
    return ensemble


def _check_weights(weights: Any, count: int) -> list[float] | None:
    """The weights as numbers, None where they are equal or found.

    Raises:
        UserError: they are neither.
    """
    if weights in ("equal", "valid"):
        return None
    if not isinstance(weights, list | tuple) or not all(type(each) in (int, float) for each in weights):
        raise UserError(f"weights={weights!r} are unknown; choose equal, valid, or a number for each checkpoint, as [0.3,0.7]")
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(f"weights={weights!r} must be a number from 0 on for each of the {count} checkpoints, not all 0")
    return [float(each) for each in weights]


def _check_alike(one: str | Path, first: Loaded, two: str | Path, other: Loaded) -> None:
    """Refuse a member whose scores cannot be added to the first one's.

    Raises:
        UserError: names the two checkpoints and what differs.
    """
    kinds = {
        "session files": [
            {name: each for name, each in loaded.config["trained_on"]["files"].items() if name.endswith(".inter")}
            for loaded in (first, other)
        ],
        "items": [loaded.config["trained_on"]["items"] for loaded in (first, other)],
        "repeatable": [loaded.config["repeatable"] for loaded in (first, other)],
    }
    for what, (here, there) in kinds.items():
        if here != there:
            said = f" ({here!r} and {there!r})" if not isinstance(here, dict | list) else ""
            raise UserError(
                f"{str(one)!r} and {str(two)!r} differ in their {what}{said}, so that their scores cannot be added; train them alike"
            )


def run_ensemble(
    checkpoints: Sequence[str | Path],
    weights: Weights = "equal",
    results: Sequence[RunResult] = (),
    names: Sequence[str] = (),
    on_test: Any = None,
    classes: Sequence[str] = (),
    **changed: Any,
) -> RunResult:
    """Validate and test an ensemble as a model is validated and tested, by RecBole's evaluator.

    Args:
        checkpoints, weights, classes, changed: as for `load_ensemble`.
        results: of the members' runs where they are known: they say what training cost.
        names: of the members, for the report.
        on_test: called with the test rows, as by `train`.

    Raises:
        UserError: as `load_ensemble`.
    """
    started = time.perf_counter()
    # RecBole's trainer makes its folder of checkpoints; the members' own may be on another machine
    loaded = load_ensemble(checkpoints, weights, classes, **{"checkpoint_dir": "saved", **changed})
    config, ensemble = loaded.config, cast(Ensemble, loaded.model)
    trainer = session_trainer(config, ensemble)
    trainer.eval_collector.data_collect(loaded.train_data)  # RecBole does it in `fit`
    progress = shows_progress(config)
    log.info(
        "ensemble of %s models on %s, weights %s",
        len(checkpoints),
        config["dataset"],
        [round(each, 4) for each in ensemble.weights.tolist()],
    )
    valid = trainer.evaluate(loaded.valid_data, load_best_model=False, show_progress=progress)
    test = trainer.evaluate(loaded.test_data, load_best_model=False, show_progress=progress)
    by_clicks = look_at_test(trainer, config, loaded.train_data.dataset, loaded.test_data.dataset, on_test)
    settings = config["given"]
    files = check_run_files(settings)
    asked = IntentCounts.from_json(files.intents.counts) if files.intents else None
    read = [_member(path) for path in checkpoints]
    members = [
        replace(member, name=name or member.name, weight=round(weight, 4))
        for member, name, weight in zip(read, names or [""] * len(read), ensemble.weights.tolist())
    ]
    return RunResult(
        best_valid_score=float(valid[config["valid_metric"].lower()]),
        valid_score_bigger=config["valid_metric_bigger"],
        best_valid_result={key: float(value) for key, value in valid.items()},
        valid_metric=config["valid_metric"],
        best_epoch=None,
        epochs=sum(each.epochs for each in results),
        valid_scores=[],
        train_losses=[],
        seconds_training=round(sum(each.seconds_training for each in results) + time.perf_counter() - started, 3),
        seconds_per_epoch=[],
        parameters=sum(each.numel() for each in ensemble.parameters() if each.requires_grad),
        test_result={key: float(value) for key, value in test.items()},
        peak_memory_mb=peak_memory_mb(config["device"]),
        checkpoint=None,
        by_clicks=by_clicks,
        prepare=PreparedCounts.from_json(files.prepared.counts),
        infer=replace(asked, reused=asked.distinct_prompts) if asked else None,
        settings=plain(dict(settings)),
        versions=versions(),
        members=members,
    )


def _member(checkpoint: str | Path) -> Member:
    """What a checkpoint says of itself: its model, whether and by which intents it is enhanced, whether its training was finished."""
    state = read_checkpoint(checkpoint)
    given = state["config"]["given"]
    model, seed = class_name(given["model"]), given.get("seed", 2020)
    name = f"LLM4SBR({model}), {given['intent_source']}" if given["llm4sbr"] else f"{model}, plain"
    name += tower_said({"items": "id", **given})  # earlier versions had no towers
    parameters = sum(each.numel() for each in state["state_dict"].values())
    return Member(f"{name}, seed {seed}", str(checkpoint), 1.0, Budget.of(given).ended(state.get("epoch"), parameters))
