"""Loading a trained model again, with the data that it was trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.model_names import canonical_model
from recbole_llm4sbr.base.schema import model_schema, schema
from recbole_llm4sbr.base.settings import Settings, check_keys, check_values, class_name
from recbole_llm4sbr.data.checks import check_run_files
from recbole_llm4sbr.model import SessionRecommender, build_model
from recbole_llm4sbr.model.cold_items import ColdItems
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.dataset import SessionDataset
from recbole_llm4sbr.training.run import load_data
from recbole_llm4sbr.training.trainer import read_checkpoint

NewItems = Callable[[Mapping[str, Any], Sequence[str]], ColdItems]

# decide what is measured, not what was trained
_OF_EVALUATION = ("metrics", "topk", "valid_metric", "metric_decimal_place", "eval_targets")
_KNOWN_PACKAGES = ("recbole", "recbole_llm4sbr")  # whose modules a checkpoint may name without asking


@dataclass(frozen=True)
class Loaded:
    """A trained model with what it was trained on: RecBole's config, dataset and dataloaders."""

    config: SessionConfig
    model: torch.nn.Module
    dataset: SessionDataset
    train_data: Any
    valid_data: Any
    test_data: Any


def load_model(
    checkpoint: str | Path, classes: Sequence[str] = (), new_items: NewItems | None = None, **changed: Any
) -> Loaded:
    """Load a checkpoint with its data, ready to score; it gives the scores it gave when it was saved.

    Args:
        checkpoint: the file that `train` named.
        classes: model classes outside RecBole and this package that may be imported, as `package.module:Class`; `model=...` does as well.
        new_items: finds, by the run's settings and the ids of the items that the checkpoint knows, items that the model shall read and
            rank beside them.
        changed: settings that differ now, for instance `atomic_path` when the files were moved; none that decides training but those
            of evaluation.

    Raises:
        UserError: not a checkpoint, an unknown or wrong setting, one that the model was trained with otherwise, a model class that was not
            asked for, or prepared or feature files other than those that the model was trained on.
    """
    state = read_checkpoint(checkpoint)
    saved = _of_now(state["config"]["given"])
    _check_trusted(saved["model"], [*classes, changed.get("model")], checkpoint)
    if changed.get("model"):
        changed["model"] = canonical_model(changed["model"])
    check_keys(changed, saved["model"])
    settings = saved | changed
    check_values(settings)
    _check_same_training(saved, changed, checkpoint)
    check_run_files(settings)
    config, dataset, (train_data, valid_data, test_data) = load_data(settings)
    _check_same_data(state["config"].get("trained_on"), config["trained_on"], checkpoint)
    model = build_model(config, train_data.dataset).to(config["device"])
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        where = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{str(checkpoint)!r} holds other parameters than its model has now, as some of earlier versions do ({where}); train again"
        ) from None
    model.load_other_parameter(state.get("other_parameter"))  # type: ignore[operator]
    if new_items is not None and isinstance(model, SessionRecommender):
        found = new_items(settings, config["trained_on"]["items"])
        if found.tokens:
            dataset.add_items(found)
            model.take_cold(torch.from_numpy(found.vectors))
    return Loaded(config, model.eval(), dataset, train_data, valid_data, test_data)


def _of_now(saved: Mapping[str, Any]) -> Settings:
    """The settings of a checkpoint, with those that came later and decide nothing at their defaults, as how vLLM is started, or `items`.

    Which they are does not depend on the prompt, whose file need not be there any more.
    """
    known = schema()
    later = Settings({key: each.default for key, each in known.items() if each.has_default})
    deciding_now = deciding(later | saved | {"prompt": known["prompt"].default}, "prepared", "items", "intents", "training")
    return Settings({key: value for key, value in later.items() if key not in deciding_now}) | saved


def _check_same_data(then: Any, now: dict[str, Any], checkpoint: str | Path) -> None:
    """Refuse data other than those of the training: weights are joined with items by their numbers.

    Raises:
        UserError: names the first file or item.
    """
    if not isinstance(then, dict):
        raise UserError(f"{str(checkpoint)!r} does not say what it was trained on, it is of an earlier version; train again")
    if then["items"] != now["items"]:
        strange = sorted(set(then["items"]) ^ set(now["items"]))
        which = (
            f"item {strange[0]!r} and {len(strange) - 1} others are in one only" if strange else "they stand in another order"
        )
        raise UserError(
            f"{str(checkpoint)!r} was trained on other items ({which}); train again, or name its files with atomic_path"
        )
    changed = [name for name, checksum in now["files"].items() if then["files"].get(name, checksum) != checksum]
    if changed:
        raise UserError(
            f"{str(checkpoint)!r} was trained on another {changed[0]}, the files were made anew since; train again, or name its files with "
            f"atomic_path"
        )


def _check_same_training(saved: Mapping[str, Any], changed: Mapping[str, Any], checkpoint: str | Path) -> None:
    """Refuse settings under which the weights would belong to another model, and checkpoints that lack some.

    Raises:
        UserError: names the setting.
    """
    known = schema() | model_schema(class_name(saved["model"]))
    if missing := [key for key, setting in known.items() if setting.has_default and key not in saved]:
        raise UserError(f"{str(checkpoint)!r} is of an earlier version, which had no {missing[0]}; train again")
    for key, value in changed.items():
        setting = known.get(key)
        decides = setting is None or "training" in (setting.decides, setting.also)
        if decides and key not in _OF_EVALUATION and saved.get(key, value) != value:
            raise UserError(
                f"{str(checkpoint)!r} was trained with {key}={saved[key]!r}, which {key}={value!r} cannot change now; train again"
            )


def _check_trusted(named: str, asked: Sequence[str | None], checkpoint: str | Path) -> None:
    """Refuse to import a module that only the checkpoint names: importing runs its code.

    Raises:
        UserError: names the module and how to allow it.
    """
    module, colon, _ = named.partition(":")
    if not colon or module.split(".")[0] in _KNOWN_PACKAGES or named in asked:
        return
    raise UserError(
        f"{str(checkpoint)!r} names the model class {named!r}, whose module would be imported and run; if you trust it, say so: "
        f"--model={named}, or in Python load_model(..., model={named!r}) and classes=[{named!r}] elsewhere"
    )
