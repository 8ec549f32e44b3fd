"""Settings of a run: properties/ < the dataset's own file < config files < command line, checked once at the door.

Neither torch nor RecBole is imported.
"""

import difflib
import functools
import importlib.util
import logging
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES, read_json
from recbole_llm4sbr.base.model_names import LLM2SEQ, canonical_model
from recbole_llm4sbr.base.names import FINETUNED
from recbole_llm4sbr.base.recbole_settings import check_recbole_settings
from recbole_llm4sbr.base.schema import (
    check_plain,
    load_yaml,
    model_defaults,
    model_schema,
    read_yaml,
    schema,
)

log = logging.getLogger(__name__)

# Keys of RecBole that none of its property files mentions.
_RECBOLE_EXTRA = {"loss_type", "selected_features", "pooling_mode", "user_inter_num_interval"}
# Settings that say whether a run reads intents or item vectors, and which.
FEATURE_FILES_BY = ("llm4sbr", "intent_source", "control_of", "views", "items", "item_init")


class Settings(dict[str, Any]):
    """Every setting of a run by name. `settings | {...}` gives changed ones, unchecked."""

    def __or__(self, changed: Mapping[str, Any]) -> "Settings":  # type: ignore[override]
        """A copy in which `changed` wins."""
        return Settings({**self, **changed})


def parse_value(text: str, key: str = "") -> Any:
    """Read a command-line value as YAML: `1e-3`, `[1, 2]`, `true`, `~`; the value of a text setting of ours stays as it is.

    >>> parse_value("1e-3"), parse_value("[1, 2]"), parse_value("7", key="llm"), parse_value("null", key="time_column")
    (0.001, [1, 2], '7', None)
    """
    setting = schema().get(key)
    if setting is not None and str in setting.types and not text:
        return ""
    if setting is not None and isinstance(setting.default, str) and not any(isinstance(each, bool) for each in setting.choices):
        if setting.nullable and text in ("null", "~"):
            return None
        if list not in setting.types or not text.startswith("["):
            return text
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def load_settings(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Iterable[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    recall: Callable[["Settings", Collection[str]], Mapping[str, Any]] | None = None,
) -> Settings:
    """Merge and check all settings: ours < the model's < the dataset's < `dataset_file` < `config_files` < `overrides`.

    Args:
        model: name of a model, in any case and with or without hyphens, `package.module:Class`, or a class; may also stand in a file or
            in `overrides`. The settings have the name as the class has it.
        dataset: name of a dataset, likewise.
        config_files: YAML files or names of shipped recipes, later ones win.
        overrides: settings that win over all files (the command line).
        recall: gives, of all settings and the keys that were given, settings to replace that were not (`data.remembered`).

    Returns:
        Every setting of ours with its value, and whatever was given of RecBole's.

    Raises:
        UserError: a missing dataset, an unknown key (the nearest known one is named), a wrong type or choice.
    """
    external: dict[str, Any] = {}
    of_files: dict[Path, dict[str, Any]] = {}
    for path in config_files:
        external.update(_both_targets(of_files.setdefault(recipe_path(path), read_yaml(recipe_path(path)))))
    external.update(_both_targets(overrides or {}))
    external.update({key: value for key, value in (("model", model), ("dataset", dataset)) if value is not None})
    external.setdefault("model", schema()["model"].default)
    if not external.get("dataset"):
        raise UserError("no dataset was named; add --dataset=NAME (for instance ml-100k, which comes with RecBole)")
    if isinstance(kind := external["model"], type):  # RecBole's Config takes a class too
        external["model"] = f"{kind.__module__}:{kind.__qualname__}"
    for key in ("model", "dataset"):
        external[key] = str(external[key])
    external["model"] = canonical_model(external["model"])
    external |= _implied(external)
    name = class_name(external["model"])
    settings = Settings({key: each.default for key, each in schema().items() if each.has_default})
    settings.update(model_defaults(name))
    path = PROPERTIES / "dataset" / f"{external['dataset']}.yaml"
    if path.is_file():
        settings.update(read_yaml(path))
    settings.update(_both_targets(dataset_file(external)))
    check_recbole_settings(external, recbole_defaults(name), own_model=":" in external["model"])
    for path, found in of_files.items():
        try:
            check_keys(found, external["model"])
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from None
    check_keys(set(external).difference(*of_files.values()), external["model"])
    settings.update(external)
    settings["session_targets"] = None  # it is in the two that it sets
    settings.update(_as_tuned(settings, external))
    if recall is not None:
        _check_each(settings)
        settings.update(recall(settings, frozenset(external)))
    check_values(settings)
    return settings


_ASKED = ("llm_beams", "llm_titles", "intent_answers", "intent_k_max")  # what the folder of a tuned LLM may say
# What the settings file in a dataset's folder may say besides what decides the prepared files.
_OF_ITEMS = (
    "item_name", "item_text", "article_last", "missing_item_text", "prompt", "repeatable", "session_targets", "train_targets",
    "eval_targets",
)  # fmt: skip


def dataset_file(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in `<data_path>/<dataset>/<dataset>.yaml`, which `import` writes; none where there is no such file.

    Data come from elsewhere, so the file may say what the data are and nothing more: no address, no model and no folder.

    Args:
        given: settings that were given; `data_path` may be among them, `dataset` is.

    Raises:
        UserError: the file is no YAML, or sets something else.
    """
    known = schema()
    dataset, root = given["dataset"], given.get("data_path", known["data_path"].default)
    known["dataset"].check(dataset)
    known["data_path"].check(root)
    path = Path(root) / dataset / f"{dataset}.yaml"
    if not path.is_file():
        return {}
    found = read_yaml(path)
    allowed = [key for key, each in known.items() if each.decides == "prepared" and key != "dataset"] + [*_OF_ITEMS]
    for key, value in found.items():
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; give it on the command line or in a file of --config_files"
            raise UserError(f"{str(path)!r} sets {key!r}, but a dataset's own file says only what the data are{hint}")
        try:
            known[key].check(value)
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from None
    return found


def recipe_path(name: str | Path) -> Path:
    """The file of settings that is meant: a shipped recipe by its name, or a path.

    Raises:
        UserError: neither.

    >>> recipe_path("paper").name, recipe_path("mine/paper.yaml").as_posix()
    ('paper.yaml', 'mine/paper.yaml')
    """
    shipped = PROPERTIES / "recipe" / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if not Path(name).suffix and not Path(name).is_file():
        recipes = ", ".join(sorted(each.stem for each in (PROPERTIES / "recipe").glob("*.yaml")))
        raise UserError(f"config_files={str(name)!r} is neither a file nor a shipped recipe ({recipes})")
    return Path(name)


def class_name(model: str) -> str:
    """The class in a model's name: itself, or what stands behind `package.module:`."""
    return model.rpartition(":")[2]


def _both_targets(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given in one place, with the two settings that `session_targets` there sets, unless they are given there too."""
    both = given.get("session_targets")
    schema()["session_targets"].check(both)
    return {**({"train_targets": both, "eval_targets": both} if both is not None else {}), **given}


def _implied(external: Mapping[str, Any]) -> dict[str, Any]:
    """What a name like LLM2SRGNN stands for: the plain SRGNN whose item table starts from text.

    Raises:
        UserError: a given setting contradicts it.
    """
    model = external["model"]
    if not model.startswith(LLM2SEQ) or len(model) == len(LLM2SEQ):
        return {}
    implied = {"llm4sbr": False, "item_init": "pca"}
    for key, value in implied.items():
        if external.get(key, value) != value:
            raise UserError(f"{model} is a plain model on a table of texts: {key}={external[key]!r} contradicts it")
    return {"model": model[len(LLM2SEQ) :], **implied}


def answering_backend(settings: Any) -> str:
    """What computes the LLM's answers: `llm_backend`, or the `ray_backend` that `ray` runs on its workers."""
    return str(settings["ray_backend"] if settings["llm_backend"] == "ray" else settings["llm_backend"])


def _as_tuned(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """How an LLM that `finetune` made is asked, as its folder says, where nothing else was given: by beam search for several titles.

    Args:
        settings: all of them.
        given: those that do not come from defaults.
    """
    several = given.get("llm_beams", given.get("intent_answers") != 1)
    if answering_backend(settings) != "transformers" or not several or settings["views_in_one_call"]:
        return {}
    manifest = Path(str(settings["llm"])).expanduser() / FINETUNED
    made = read_json(manifest) if manifest.is_file() else {}
    asked = made.get("asked") if isinstance(made, dict) else None
    if not isinstance(asked, dict):
        return {}
    return {key: asked[key] for key in _ASKED if key in asked and key not in given}


def recbole_keys(model: str) -> set[str]:
    """Names of RecBole's settings: its general property files and the one of `model`."""
    return set(recbole_defaults(class_name(model)))


@functools.cache
def recbole_defaults(model: str) -> dict[str, Any]:
    """RecBole's settings with their defaults, as `recbole_keys`; None where RecBole has none."""
    model = class_name(model)
    spec = importlib.util.find_spec("recbole")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("RecBole is not installed; run `pip install recbole==1.2.0`")
    root = Path(spec.submodule_search_locations[0]) / "properties"
    files = ("overall.yaml", "dataset/sample.yaml", "quick_start_config/sequential.yaml", f"model/{model}.yaml")
    found: dict[str, Any] = dict.fromkeys(_RECBOLE_EXTRA)
    for path in (root / file for file in files):
        if path.is_file():
            found |= read_yaml(path)
    return found


def inherited_defaults(model: type) -> dict[str, Any]:
    """The defaults of the settings of a model that a class of the user's own extends; none for a model that has its own."""
    general = recbole_defaults("")
    for base in model.__mro__:
        own = recbole_defaults(base.__name__)
        found = {key: value for key, value in own.items() if key not in general or general[key] != value}
        found |= model_defaults(base.__name__)
        if found:
            return {} if base is model else found
    return {}


def check_keys(keys: Iterable[str], model: str) -> None:
    """Refuse settings that neither this package nor RecBole knows; a model class of the user's own may have settings of its own.

    Raises:
        UserError: names the nearest known setting.
    """
    name = class_name(model)
    known = set(schema()) | set(model_defaults(name)) | recbole_keys(name)
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
        if ":" in model and not difflib.get_close_matches(str(key), known, n=1, cutoff=0.85):
            log.warning("setting %r is not known to RecBole or to this package; it is passed on to your model", key)
            continue
        raise UserError(f"setting {key!r} does not exist; " + (f"did you mean {near[0]!r}?" if near else "--help lists all"))


def check_values(settings: Mapping[str, Any]) -> None:
    """Refuse wrong types, choices, ranges and combinations.

    Raises:
        UserError: names the setting, the value and what is allowed.
    """
    _check_each(settings)
    ratio = settings["split_ratio"]
    if abs(sum(ratio) - 1) > 1e-6 or min(ratio) <= 0:
        raise UserError(f"split_ratio={ratio!r} must be three positive shares that sum to 1")
    for key in ("item_name", "item_text"):
        format_columns(key, settings[key])
    clips = settings.get("clip_grad_norm")
    if clips is not None and not isinstance(clips.get("max_norm"), int | float):
        raise UserError(f"clip_grad_norm={clips!r} needs the number max_norm, as {{max_norm: 5}}")
    _check_metrics(settings)
    views = settings["views"]
    if len(set(views)) != len(views):
        raise UserError(f"views={views!r} names one twice")
    if settings["intent_k"] > settings["intent_k_max"]:
        raise UserError(
            f"intent_k={settings['intent_k']} is larger than the {settings['intent_k_max']} nearest items that are stored; "
            f"lower it, or raise --intent_k_max and run again with --rebuild=true"
        )


def _check_each(settings: Mapping[str, Any]) -> None:
    """Refuse wrong types, choices and ranges of single settings.

    Raises:
        UserError: names the setting, the value and what is allowed.
    """
    if {"@", "?"} & set(str(settings["llm_url"] or "")):  # what follows is said with the value
        raise UserError("llm_url holds a password or a query; put the key into the environment variable OPENAI_API_KEY")
    known = schema() | model_schema(class_name(settings["model"]))
    for key, setting in known.items():
        if key in settings:
            setting.check(settings[key])
    recboles = recbole_defaults(settings["model"])
    for key, value in settings.items():
        if key not in known:
            check_plain(key, value)
            _check_like(key, value, recboles.get(key))


def _check_like(key: str, value: Any, default: Any) -> None:
    """Refuse, for a setting that RecBole alone knows, a value of another kind than its default; RecBole may not look at it.

    Raises:
        UserError: names the setting, the value and RecBole's default.
    """
    kinds: tuple[type, ...] = (int, float) if type(default) in (int, float) else (type(default),)
    if value is None or type(default) not in (bool, int, float) or type(value) in kinds:
        return
    raise UserError(f"{key}={value!r} must be of the kind of RecBole's default, {default!r}")


def _check_metrics(settings: Mapping[str, Any]) -> None:
    """Refuse a `valid_metric` that is not computed.

    Raises:
        UserError: names it and what is.
    """
    name, at, cutoff = settings["valid_metric"].partition("@")
    computed = [each.casefold() for each in settings["metrics"]]
    if settings.get("eval_step", 1) > settings["epochs"]:
        raise UserError(
            f"eval_step={settings['eval_step']} is larger than epochs={settings['epochs']}, so that no epoch is validated"
        )
    whole = name.casefold() == "gauc"  # the one without a cut-off
    if name.casefold() not in computed or (cutoff not in map(str, settings["topk"]) if not whole else at):
        raise UserError(
            f"valid_metric={settings['valid_metric']!r} is not computed; name one of metrics={settings['metrics']} at one of "
            f"topk={settings['topk']}, as {settings['metrics'][0]}@{settings['topk'][-1]}"
        )


def format_columns(key: str, text: str) -> list[str]:
    """The columns that stand in braces in `item_name` or `item_text`.

    Raises:
        UserError: braces that do not close, or that hold more than a column's name.

    >>> format_columns("item_text", "{title}, {brand}")
    ['title', 'brand']
    """
    try:
        fields = [(field, form, convert) for _, field, form, convert in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(f"{key}={text!r} is not a format ({error}); write it as '{{title}}, {{brand}}'") from None
    for field, form, convert in fields:
        if form or convert or not field or set(field) & set(".[]"):
            raise UserError(f"{key}={text!r}: braces hold a column's name and no more; write it as '{{title}}, {{brand}}'")
    return [field for field, _, _ in fields]
