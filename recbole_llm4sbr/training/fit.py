"""Training one model with RecBole's Trainer, and the ranks of its test rows."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy
import numpy.typing as npt
import torch

from recbole_llm4sbr.base.metrics import is_per_session, session_metric
from recbole_llm4sbr.base.recbole import init_seed
from recbole_llm4sbr.base.results import Budget, ClicksBucket, Fitted
from recbole_llm4sbr.base.screen import RECBOLE
from recbole_llm4sbr.model import SessionIntents, build_model
from recbole_llm4sbr.model.cold_items import trained_part
from recbole_llm4sbr.model.training_graphs import training_sessions
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.resuming import Past, TrainingState
from recbole_llm4sbr.training.trainer import session_trainer

log = getLogger(__name__)

HEAD = 0.2  # share of the catalogue, by clicks in the training part, that counts as its head
# Buckets of test rows by the training clicks of the target: the least and the most of each.
BUCKETS = {"no click": (0, 0), "1 to 9 clicks": (1, 9), "10 to 99 clicks": (10, 99), "100 clicks or more": (100, numpy.inf)}


@dataclass(frozen=True)
class TestRows:
    """What became of the test rows, arrays of [R]; `ranks/<key>.npz` of a grid holds them by name.

    Attributes:
        session: id of the session.
        rank: of its target, from 1 on; 0 beyond the largest `topk`.
        length: clicks before the target.
        clicks: of the target in the training part.
        head: whether the target is among the share `HEAD` of the training part's items that it clicks most.
        intent: whether the model reads intents and has all of this session's.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    session: npt.NDArray[numpy.str_]
    rank: npt.NDArray[numpy.int32]
    length: npt.NDArray[numpy.int32]
    clicks: npt.NDArray[numpy.int32]
    head: npt.NDArray[numpy.bool_]
    intent: npt.NDArray[numpy.bool_]


def fit(
    config: SessionConfig,
    train_data: Any,
    valid_data: Any,
    saved: bool,
    on_epoch: Callable[[int, float], None] | None = None,
    state: TrainingState | None = None,
) -> tuple[Any, Fitted]:
    """Build the model and train it with RecBole's Trainer; the test part is not seen.

    Args:
        config: of the run.
        train_data, valid_data: RecBole's dataloaders.
        saved: whether checkpoints are written.
        on_epoch: called with the epoch and its validation score.
        state: where the state between epochs is kept; training goes on from the one that is there.

    Returns:
        The trainer, and what training found: validation, seconds, losses and the number of parameters.
    """
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = build_model(config, train_data.dataset).to(config["device"])
    getLogger(RECBOLE).info(model)
    trainer = session_trainer(config, model)
    past = state.restore(trainer, train_data) if state else Past({}, 0.0)
    scores, started = past.scores, time.perf_counter() - past.seconds

    def remember(epoch: int, score: float) -> None:
        scores[epoch] = float(score)
        if state:
            state.keep(trainer, train_data, epoch, Past(scores, time.perf_counter() - started))
        if on_epoch:
            on_epoch(epoch, float(score))

    best_score, best_valid = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=shows_progress(config), callback_fn=remember
    )
    seconds = time.perf_counter() - started
    trainer.finish()  # type: ignore[attr-defined]
    bigger = config["valid_metric_bigger"]
    fitted = Fitted(
        best_valid_score=float(best_score),
        valid_score_bigger=bigger,
        best_valid_result={key: float(value) for key, value in (best_valid or {}).items()},
        valid_metric=config["valid_metric"],
        # of equal scores the last, which is the one that RecBole keeps
        best_epoch=(max if bigger else min)(reversed(scores), key=lambda epoch: scores[epoch]) if scores else None,
        epochs=len(trainer.epoch_seconds),
        valid_scores=list(scores.values()),
        train_losses=[float(loss) for loss in trainer.train_loss_dict.values()],
        seconds_training=round(seconds, 3),
        seconds_per_epoch=[round(each, 4) for each in trainer.epoch_seconds],
        parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
    )
    budget = Budget(config["epochs"], config["eval_step"])
    if config["local_rank"] == 0 and budget.ended(fitted.best_epoch, fitted.parameters):  # one of several processes says it
        log.warning("%s: %s", config["model"], budget.advice())
    return trainer, fitted


def shows_progress(config: SessionConfig) -> bool:
    """Whether progress bars are wanted, and someone looks."""
    return bool(config["show_progress"]) and sys.stderr.isatty()


def test_rows(
    session: torch.Tensor, rank: torch.Tensor, config: SessionConfig, model: torch.nn.Module, trained: Any, tested: Any
) -> TestRows:
    """What the comparison of models needs of every test row, joined by session id.

    Args:
        session: RecBole's session id of each row.
        rank: of its target, 0 beyond the largest `topk`.
        config: RecBole's config.
        model: the tested model.
        trained, tested: RecBole's datasets of the training and the test part.
    """
    feat = tested.inter_feat
    place = {int(number): row for row, number in enumerate(feat[tested.uid_field])}
    order = torch.tensor([place[int(number)] for number in session])
    clicks = numpy.bincount(numpy.concatenate(training_sessions(config, trained)), minlength=tested.item_num)
    head = numpy.zeros(tested.item_num, bool)
    head[numpy.argsort(-clicks[1:], kind="stable")[: round(HEAD * (trained_part(tested).item_num - 1))] + 1] = True
    target = feat[tested.iid_field][order].numpy()
    intents = next((module for module in model.modules() if isinstance(module, SessionIntents)), None)
    known = intents.known(session.to(intents.nearest.device)).cpu() if intents else torch.zeros(len(session))
    return TestRows(
        session=numpy.asarray(tested.field2id_token[tested.uid_field][session.numpy()], dtype=str),
        rank=rank.numpy().astype(numpy.int32),
        length=feat[tested.item_list_length_field][order].numpy().astype(numpy.int32),
        clicks=clicks[target].astype(numpy.int32),
        head=head[target],
        intent=known.numpy().astype(bool),
    )


def look_at_test(
    trainer: Any, config: SessionConfig, trained: Any, tested: Any, on_test: Callable[[TestRows], None] | None
) -> list[ClicksBucket]:
    """What became of the rows of the test that a trainer was through with last.

    Args:
        trainer: has all rows, also where several processes share them.
        config: RecBole's config.
        trained, tested: RecBole's datasets of the training and the test part.
        on_test: called with the rows.

    Returns:
        The test by the training clicks of the target, where cold items are ranked; else nothing.
    """
    wanted = on_test is not None or config["cold_items"]
    if not wanted or (found := trainer.ranks()) is None:
        return []
    sessions, ranks = found
    rows = test_rows(sessions, ranks, config, trainer.model, trained, tested)
    if on_test is not None:
        on_test(rows)
    names = [f"{metric}@{cutoff}".lower() for metric in config["metrics"] for cutoff in config["topk"]]
    return by_clicks(rows, [name for name in names if is_per_session(name)]) if config["cold_items"] else []


def by_clicks(rows: TestRows, metrics: Sequence[str]) -> list[ClicksBucket]:
    """The test by the training clicks of the target, without buckets that no row is in.

    Args:
        rows: of the test.
        metrics: names at cut-offs, as hit@20, that have a value for each row.
    """
    found = []
    for name, (least, most) in BUCKETS.items():
        ranks = rows.rank[(rows.clicks >= least) & (rows.clicks <= most)]
        if len(ranks):
            values = {metric: round(float(session_metric(ranks, metric).mean()), 6) for metric in metrics}
            found.append(ClicksBucket(name, len(ranks), values))
    return found
