"""RecBole's trainers with checkpoints that can be shared: plain types only, written whole, loaded without unpickling code."""

import time
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import write_whole
from recbole_llm4sbr.base.recbole import Trainer, get_trainer
from recbole_llm4sbr.base.screen import RECBOLE
from recbole_llm4sbr.training.epochs import EpochLines
from recbole_llm4sbr.training.evaluation import SessionCollector, SessionEvaluator

log = getLogger(__name__)

_UNFINISHED = ".unfinished.pth"  # ends the name of a checkpoint while its model trains


def session_trainer(config: Any, model: torch.nn.Module) -> Trainer:
    """RecBole's trainer for the model, with safe checkpoints, the seconds of each training epoch in `epoch_seconds`, and `ranks`."""
    base: type[Trainer] = get_trainer(config["MODEL_TYPE"], config["model"])
    trainer: Trainer = type(base.__name__, (_SessionTrainer, base), {})(config, model)
    return trainer


class _SessionTrainer:
    """Mixin over any RecBole trainer: plain-type checkpoints (RecBole pickles its Config, which torch >= 2.6 rightly refuses to load),
    a step-wise learning rate, a line for each epoch, and what `evaluate` found of each row."""

    def __init__(self, config: Any, model: torch.nn.Module) -> None:
        alone = config["single_spec"]
        config["single_spec"] = True  # RecBole would ask for GPUs to share the work
        super().__init__(config, model)  # type: ignore[call-arg]
        config["single_spec"] = alone
        if not alone:
            devices = [config["device"]] if config["device"].type == "cuda" else None
            self.distributed_model = DistributedDataParallel(
                SyncBatchNorm.convert_sync_batchnorm(model),  # type: ignore[no-untyped-call]
                devices,
            )
        self.saved_model_file = str(Path(config["checkpoint_dir"]) / f"{config['model']}{_UNFINISHED}")
        self.epoch_seconds: list[float] = []
        self._lines = EpochLines(config, getattr(model, "loss_names", ("loss",)))
        self.eval_collector = SessionCollector(config)
        self.evaluator = SessionEvaluator(config)

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's; Adam in its fused form, which goes over the parameters once and not ten times."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)  # type: ignore[misc]
        kind = type(optimizer)
        if kind not in (torch.optim.Adam, torch.optim.AdamW):
            return optimizer
        given = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in optimizer.param_groups]
        return kind(given, fused=True)

    def finish(self) -> None:
        """Training ended: give the best epoch's checkpoint its name. One of an interrupted run keeps another, by which none takes it."""
        found = Path(self.saved_model_file)
        if not found.name.endswith(_UNFINISHED):  # one that RecBole's `resume_checkpoint` named
            return
        self.saved_model_file = str(found).removesuffix(_UNFINISHED) + ".pth"
        if self.config["local_rank"] == 0 and found.is_file():  # type: ignore[attr-defined]
            found.replace(self.saved_model_file)

    def ranks(self) -> tuple[Tensor, Tensor] | None:
        """Of the last `evaluate`: each row's session id, and its target's rank, 0 beyond the largest `topk`; None without a ranking."""
        return self.eval_collector.ranks

    def evaluate(self, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
        """RecBole's; several processes share the work, and each has the metrics of all rows."""
        self.eval_collector.count = eval_data.sample_size
        return super().evaluate(eval_data, *args, **kwargs)  # type: ignore[misc]

    def _map_reduce(self, result: Any, num_sample: int) -> Any:
        """The metrics as they are: RecBole's averages over processes count the rows that its sampler repeats."""
        return result

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, history, *positive = batched_data
        config = self.config  # type: ignore[attr-defined]
        if config["repeatable"] is False:  # RecBole leaves out of the ranking what it is handed as history
            clicks = interaction[config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]]
            rows, places = clicks.nonzero(as_tuple=True)
            history = (rows, clicks[rows, places])
        return super()._full_sort_batch_eval((interaction, history, *positive))  # type: ignore[misc]

    def _check_nan(self, loss: Tensor) -> None:
        """End training with a next step where a loss is no number.

        Raises:
            UserError: it is nan.
        """
        if torch.isnan(loss):
            raise UserError(
                "the loss is nan, so that nothing is learned any more; lower --learning_rate, or set --clip_grad_norm"
            )

    def _train_epoch(self, train_data: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        if every := self.config["learning_rate_step"]:  # type: ignore[attr-defined]
            for group in self.optimizer.param_groups:  # type: ignore[attr-defined]
                decays = epoch // every
                group["lr"] = self.config["learning_rate"] * self.config["learning_rate_decay"] ** decays  # type: ignore[attr-defined]
        train_data.round = epoch
        started = time.perf_counter()
        losses = super()._train_epoch(train_data, epoch, *args, **kwargs)  # type: ignore[misc]
        self.epoch_seconds.append(time.perf_counter() - started)
        self._lines.trained(epoch, self.epoch_seconds[-1], losses, len(train_data))
        every = self.eval_step  # type: ignore[attr-defined]
        if every <= 0 or (epoch + 1) % every:  # not validated
            self._lines.say()
        return losses

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        score, result = super()._valid_epoch(*args, **kwargs)  # type: ignore[misc]
        before = self.best_valid_score  # type: ignore[attr-defined]
        # of equal scores RecBole takes the last
        best = score >= before if self.config["valid_metric_bigger"] else score <= before  # type: ignore[attr-defined]
        self._lines.say(float(score), bool(best))
        return score, result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        config = self.config  # type: ignore[attr-defined]
        if not config["single_spec"] and config["local_rank"] != 0:
            return
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        model = self.model  # type: ignore[attr-defined]
        state = {
            "config": plain(config.final_config_dict),
            "epoch": epoch,
            "cur_step": int(self.cur_step),  # type: ignore[attr-defined]
            "best_valid_score": float(self.best_valid_score),  # type: ignore[attr-defined]
            "state_dict": model.state_dict(),
            "other_parameter": other_parameters(model),
            "optimizer": self.optimizer.state_dict(),  # type: ignore[attr-defined]
        }
        with write_whole(path, "wb") as handle:
            torch.save(state, handle)
        if verbose:
            getLogger(RECBOLE).info("Saving current: %s", path)


def other_parameters(model: Any) -> dict[str, Any]:
    """What a model of RecBole keeps beside its parameters, without the modules that SASRecF and its like name: `state_dict` has these."""
    return {name: each for name, each in (model.other_parameter() or {}).items() if not isinstance(each, torch.nn.Module)}


def plain(value: Any) -> Any:
    """Scalars, lists and dicts as they are; anything else as its text."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def read_checkpoint(path: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint; no code in it is ever run.

    Args:
        path: of the file, or a pattern as `saved/SRGNN-mine-*/SRGNN.pth`, which means the newest file of that form.
        device: where its tensors go.

    Raises:
        UserError: the file is missing or is not a checkpoint of this package.
    """
    if "*" in str(path) and not Path(path).is_file():
        anchor = Path(path).anchor
        found = list(Path(anchor).glob(str(Path(path).relative_to(anchor))))
        if not found:
            raise UserError(f"no checkpoint has the form {str(path)!r}; `train` names the file that it wrote")
        path = max(found, key=lambda each: each.stat().st_mtime_ns)
        log.info("checkpoint %s", path)
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {str(path)!r}") from None
    except Exception as error:
        raise UserError(f"{str(path)!r} is not a checkpoint of this package ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or not {"config", "state_dict"} <= set(checkpoint):
        raise UserError(f"{str(path)!r} is not a checkpoint of this package (no config in it)")
    return checkpoint
