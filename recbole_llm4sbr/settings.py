"""Settings: read from properties/ < config files < command line, checked once at the door (no torch, no RecBole import)."""

import difflib
import importlib.util
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import PROPERTIES

log = logging.getLogger(__name__)

CHOICES: dict[str, tuple[str, ...]] = {
    "session_rule": ("bucket", "gap", "user", "column"),
    "session_targets": ("last", "all"),
    "split": ("temporal", "paper"),
    "missing_item_text": ("error", "unknown"),
    "llm_backend": ("transformers", "vllm", "openai", "ray", "echo"),
    "ray_backend": ("transformers", "vllm", "echo"),
    "intent_refresh": ("every", "powers"),
    "intent_source": ("llm", "session_text", "shuffled", "random", "none"),
    "control_of": ("llm", "session_text"),
    "intent_weighting": ("similarity", "softmax"),
    "fusion": ("gate", "residual", "concat"),
    "item_init": ("random", "text", "pca"),
    "similarity": ("dot", "cosine"),
    "aggregate": ("mean", "last", "position"),
}
# Smallest allowed value of numeric settings.
AT_LEAST: dict[str, float] = {
    "session_gap": 1, "min_session_length": 2, "min_item_count": 1, "item_name_length": 8, "llm_max_new_tokens": 1,
    "llm_batch_tokens": 0, "llm_concurrency": 1, "llm_timeout": 1, "llm_retries": 0, "max_failure_rate": 0, "max_sessions": 0,
    "ray_workers": 0, "ray_cpus_per_worker": 1, "encoder_batch_size": 1, "intent_k_max": 1, "intent_k": 0, "intent_lambda": 0,
    "epochs": 1, "train_batch_size": 1, "eval_batch_size": 1, "embedding_size": 1, "hidden_size": 1,
    "MAX_ITEM_LIST_LENGTH": 1, "nproc": 1, "learning_rate": 0, "learning_rate_step": 0, "learning_rate_decay": 0, "weight_decay": 0,
    "temperature": 1e-6,
}  # fmt: skip
# What is decided before training begins, and so the same for all cells of a grid and all trials of a search.
BEFORE_TRAINING = {
    "dataset", "session_rule", "session_gap", "session_targets", "split", "split_ratio", "min_session_length", "min_item_count",
    "user_column", "item_column", "time_column", "session_column", "MAX_ITEM_LIST_LENGTH", "prompt", "item_name", "item_text",
    "article_last", "item_name_length", "missing_item_text", "intent_refresh", "views_in_one_call", "llm", "llm_backend", "llm_url",
    "llm_max_new_tokens", "llm_name", "llm_extra", "max_sessions", "encoder", "intent_k_max", "faiss_index", "nproc", "data_path",
    "atomic_path", "ray_backend", "seed",
}  # fmt: skip
# Keys of RecBole that none of its property files mentions.
_RECBOLE_EXTRA = {"model", "dataset", "config_files",
                  "loss_type", "selected_features", "pooling_mode", "user_inter_num_interval"}  # fmt: skip
_LLM2SEQ = "LLM2"  # LLM2SRGNN: the plain SRGNN whose item table starts from text (Boz et al. 2024)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader that reads 1e-3 as a number, as RecBole's loader does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$|^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)$"),
    list("-+0123456789."),
)


def parse_value(text: str, key: str = "") -> Any:
    """Read a command-line value as YAML: `1e-3`, `[1, 2]`, `true`, `~`; the value of a text setting of ours stays as it is."""
    if isinstance(read_yaml(PROPERTIES / "overall.yaml").get(key), str):
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings; an empty file is an empty dict.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read the config file {str(path)!r}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{str(path)!r} must hold `key: value` lines, not {type(value).__name__}")
    return value or {}


def load_settings(
    model: str | None = None,
    dataset: str | None = None,
    config_files: Iterable[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge and check all settings.

    Args:
        model: name of a model, or `package.module:Class`; may also stand in a file or in `overrides`.
        dataset: name of a dataset, likewise.
        config_files: YAML files, later ones win.
        overrides: settings that win over all files (the command line).

    Returns:
        Every setting of ours with its value, and whatever was given of RecBole's.

    Raises:
        UserError: a missing dataset, an unknown key (the nearest known one is named), a wrong type or choice.
    """
    external: dict[str, Any] = {}
    for path in config_files:
        external.update(read_yaml(path))
    external.update(overrides or {})
    external.update({key: value for key, value in (("model", model), ("dataset", dataset)) if value is not None})
    external.setdefault("model", "SRGNN")
    if not external.get("dataset"):
        raise UserError("no dataset was named; add --dataset=NAME (for instance ml-100k, which comes with RecBole)")
    for key in ("model", "dataset"):
        external[key] = str(external[key])
    if external["model"].startswith(_LLM2SEQ) and len(external["model"]) > len(_LLM2SEQ):
        implied = {"llm4sbr": False, "item_init": "pca"}
        for key, value in implied.items():
            if external.get(key, value) != value:
                raise UserError(
                    f"{external['model']} is a plain model on a table of texts: {key}={external[key]!r} contradicts it"
                )
        external |= {"model": external["model"][len(_LLM2SEQ) :], **implied}
    name = external["model"].rpartition(":")[2]
    defaults = read_yaml(PROPERTIES / "overall.yaml")
    settings = dict(defaults)
    for path in (PROPERTIES / "model" / f"{name}.yaml", PROPERTIES / "dataset" / f"{external['dataset']}.yaml"):
        if path.is_file():
            settings.update(read_yaml(path))
    known = set(settings) | recbole_keys(name)
    for key in external:
        if key not in known:
            _unknown_key(key, known, own_model=":" in external["model"])
    settings.update(external)
    _check_values(settings, defaults)
    return settings


def recbole_keys(model: str) -> set[str]:
    """Names of RecBole's settings: its general property files and the one of `model`."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("RecBole is not installed; run `pip install recbole==1.2.0`")
    root = Path(spec.submodule_search_locations[0]) / "properties"
    files = ("overall.yaml", "dataset/sample.yaml", "quick_start_config/sequential.yaml", f"model/{model}.yaml")
    keys = set(_RECBOLE_EXTRA)
    for path in (root / file for file in files):
        if path.is_file():
            keys |= set(read_yaml(path))
    return keys


def _unknown_key(key: str, known: set[str], own_model: bool) -> None:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if own_model and not difflib.get_close_matches(key, known, n=1, cutoff=0.85):
        log.warning("setting %r is not known to RecBole or to this package; it is passed on to your model", key)
        return
    raise UserError(f"setting {key!r} does not exist; " + (f"did you mean {near[0]!r}?" if near else "--help lists all"))


def _check_values(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, choices in CHOICES.items():
        if key in settings and settings[key] not in choices:
            near = difflib.get_close_matches(str(settings[key]), choices, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{key}={settings[key]!r} is not a choice{hint}; choose one of {', '.join(choices)}")
    for key, default in defaults.items():
        value = settings[key]
        wanted = _wanted_type(default)
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise UserError(f"{key}={value!r} must be of type {names}, for instance {default!r}")
        if key in AT_LEAST and value < AT_LEAST[key]:
            raise UserError(f"{key}={value!r} is too small; it must be at least {AT_LEAST[key]}")
    if len(settings["split_ratio"]) != 3 or abs(sum(settings["split_ratio"]) - 1) > 1e-6 or min(settings["split_ratio"]) <= 0:
        raise UserError(f"split_ratio={settings['split_ratio']!r} must be three positive shares that sum to 1")
    prices = settings["llm_prices"]
    if prices is not None and not (
        isinstance(prices, list) and [type(each) in (int, float) for each in prices] == [True, True]
    ):
        raise UserError(
            f"llm_prices={prices!r} must be two numbers, the prices of a million prompt and answer tokens, as [0.15, 0.6]"
        )
    if settings["llm_extra"] is not None and not isinstance(settings["llm_extra"], dict):
        raise UserError(f"llm_extra={settings['llm_extra']!r} must be fields of the request, as {{top_p: 0.9}}")
    views = settings["views"]
    if not views or len(set(views)) != len(views):
        raise UserError(f"views={views!r} must name at least one view, each once")
    if settings["intent_k"] > settings["intent_k_max"]:
        raise UserError(
            f"intent_k={settings['intent_k']} is larger than the {settings['intent_k_max']} nearest items that are stored; "
            f"lower it, or raise --intent_k_max and run again with --rebuild=true"
        )


def _wanted_type(default: Any) -> tuple[type, ...]:
    if isinstance(default, bool):
        return (bool,)
    if isinstance(default, float):
        return (float, int)
    return () if default is None else (type(default),)


def intent_files(settings: Mapping[str, Any]) -> str:
    """Whose feature files a run reads: `llm`, `session_text` or `none`; the controls `shuffled` and `random` change those of another."""
    source: str = settings["intent_source"]
    return settings["control_of"] if source in ("shuffled", "random") else source


def check_intent_k(settings: Mapping[str, Any]) -> None:
    """Refuse intents that are an answer's own vector where nobody answered.

    Raises:
        UserError: `intent_k=0` without an LLM.
    """
    if settings["intent_k"] == 0 and intent_files(settings) == "session_text":
        raise UserError("intent_k=0 needs an LLM's answers, which intents from session_text do not have; raise it")


def uses_intents(settings: Mapping[str, Any]) -> bool:
    """Whether training reads `.sessemb`."""
    return bool(settings["llm4sbr"] or settings["model"] == "LLMInfer") and settings["intent_source"] != "none"


def uses_item_texts(settings: Mapping[str, Any]) -> bool:
    """Whether training reads `.itememb`."""
    return uses_intents(settings) or settings["item_init"] != "random" or settings["model"] == "LLMSeqSim"


def describe() -> str:
    """The settings with their defaults and comments, as `--help` prints them."""
    lines = []
    for line in (PROPERTIES / "overall.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ---"):
            lines += ["", line.strip("# -")]
        elif match := re.match(r"^(\w+): (.*?)\s+# (.*)$", line):
            key, default, comment = match.groups()
            lines.append(f"  --{key}={'' if default == '~' else default}\n        {comment}")
    return "\n".join(lines)
