"""RecBole's Config, filled from our settings: properties found in any install, nothing read from sys.argv, no `eval`."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import check_intent_k, uses_intents
from recbole_llm4sbr.base.files import check_folder
from recbole_llm4sbr.base.recbole import Config
from recbole_llm4sbr.base.recbole_settings import SESSION_COLUMNS, SESSION_FILES
from recbole_llm4sbr.base.settings import inherited_defaults, recbole_defaults
from recbole_llm4sbr.data.folders import part_files
from recbole_llm4sbr.model import SessionRecommender, check_buildable, check_stock, model_class
from recbole_llm4sbr.model.registry import is_switched
from recbole_llm4sbr.training.gpus import gpus, named_gpus

_OF_MANY = ("local_rank", "world_size", "offset")  # settings of one of several training processes


class SessionConfig(Config):  # type: ignore[misc]
    """The Config of a training run on prepared session files.

    Args:
        settings: what `settings.load_settings` returned. RecBole's own defaults stand below them.

    Raises:
        UserError: an unknown model, or one that cannot be wrapped although `llm4sbr` is true; a GPU that is not there.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        model = model_class(settings["model"])
        check_buildable(model, settings)
        folder = Path(settings["atomic_path"]) / settings["dataset"]
        self._gpus = gpus(settings)
        try:
            given = inherited_defaults(model) | dict(settings) | file_settings(settings)
            given["repeatable"] = True  # RecBole takes no other for sequential models
            loss = given.get("loss_type") or recbole_defaults(settings["model"]).get("loss_type")
            if loss == "BPR" and not given.get("train_neg_sample_args"):
                given["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}  # as RecBole has it
            super().__init__(model=model, dataset=settings["dataset"], config_dict=given)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise UserError(f"RecBole refuses these settings: {error}") from None
        self.final_config_dict["repeatable"] = settings["repeatable"]
        self.final_config_dict["data_path"] = str(folder)  # RecBole would append the dataset, and bend ml-100k's
        # travels in the checkpoint: what it takes to build this run again, on one device
        given = {key: settings[key] for key in settings if key not in _OF_MANY} | {"nproc": 1}
        if named_gpus(settings):  # a number on this machine; that there shall be none, "", holds on any
            del given["gpu_id"]
        self.final_config_dict["given"] = given

    def __str__(self) -> str:
        """RecBole's text of all settings, without what stands in checkpoints alone."""
        shown = copy.copy(self)
        hidden = ("given", "trained_on")
        shown.final_config_dict = {key: value for key, value in self.final_config_dict.items() if key not in hidden}
        return str(Config.__str__(shown))

    def compatibility_settings(self) -> None:
        """Nothing: `base.recbole` has done what is needed."""

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        return config_dict or {}

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _init_device(self) -> None:
        config = self.final_config_dict
        config["single_spec"] = "local_rank" not in config
        rank = config.setdefault("local_rank", 0)
        config["device"] = torch.device("cuda", self._gpus[rank]) if self._gpus else torch.device("cpu")


def file_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """RecBole settings under which it reads our session files, whatever else is given."""
    columns = {**(settings.get("load_col") or {}), "inter": SESSION_COLUMNS}
    if settings["cold_items"]:  # some stand in no session
        columns.setdefault("item", ["item_id"])
    return SESSION_FILES | {
        "benchmark_filename": part_files(settings["train_targets"], settings["eval_targets"]),
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "normalize_all": bool(settings.get("normalize_all")),  # RecBole's own file of ml-100k says true
        "load_col": columns,
    }


def check_runnable(settings: Mapping[str, Any]) -> None:
    """Refuse before long work: an unknown model, one that cannot be wrapped or scored so, a model that ranks by intents without any."""
    model = model_class(settings["model"])
    config = SessionConfig(settings)  # what RecBole says of it
    if hasattr(model, "check_settings"):
        model.check_settings(config)
    check_stock(model, config)
    if isinstance(config["reg_weight"], list) and config["weight_decay"]:
        raise UserError(
            f"{settings['model']} has weights of its own for penalties, reg_weight={config['reg_weight']}, beside which RecBole knows no "
            f"weight_decay; add --weight_decay=0"
        )
    changed = settings["llm4sbr"] or is_switched(settings) or issubclass(model, SessionRecommender)
    if config["loss_type"] == "BPR" and changed:
        raise UserError(
            f"loss_type=BPR: {settings['model']} is trained by cross-entropy over the catalogue here; only RecBole's own plain models, "
            f"without switches, are trained against sampled items; leave loss_type out"
        )
    if settings["eval_every"] and settings["nproc"] > 1:
        raise UserError(
            f"eval_every={settings['eval_every']} is for one process: with nproc={settings['nproc']} each would train on all rows; leave "
            f"one of them out"
        )
    check_folder(settings["checkpoint_dir"], "checkpoint_dir")
    for name in ("log", "log_tensorboard"):  # RecBole's, in the working folder
        check_folder(name, "the folder of logs")
    if settings["similarity"] == "cosine" and getattr(model, "dot_only", False):
        raise UserError(
            f"{settings['model']} cannot score by similarity=cosine: its session embedding differs per item; use dot"
        )
    if uses_intents(settings):
        check_intent_k(settings)
    if settings["model"] == "LLMInfer" and settings["intent_source"] == "none":
        raise UserError("LLMInfer ranks by intents, and intent_source='none' gives it none; choose llm or session_text")
