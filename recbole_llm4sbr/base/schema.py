"""The schema of settings: each one's default, choices, range, help and what it decides, read from `properties/overall.yaml`.

A setting decides one kind of artefact, and with it all that is made of it: prepared session files -> item vectors -> intents -> training.
What decides nothing (`run`) only says how a run goes. Manifests, keys of grid cells, searches, reports and `--help` all ask here.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES

Artefact = Literal["prepared", "items", "intents", "training", "run"]
ARTEFACTS: tuple[Artefact, ...] = get_args(Artefact)
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "list": (list,), "dict": (dict,), "int": (int,), "bool": (bool,), "number": (float, int), "names": (str, list),
    "gpus": (str, int, list),
}  # fmt: skip
_PARTS = {"default", "decides", "also", "help", "type", "nullable", "choices", "at_least", "at_most", "form", "empty", "each", "each_of",
          "count", "keys", "when", "per_grid", "shown"}  # fmt: skip


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader that reads 1e-3 as a number, as RecBole's loader does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$|^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)$"),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    """Read YAML, where `1e-3` is a number.

    >>> load_yaml("{learning_rate: 1e-3, views: [long]}")
    {'learning_rate': 0.001, 'views': ['long']}
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings; an empty file is an empty dict.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        value = load_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{str(path)!r} must hold `key: value` lines, not {type(value).__name__}")
    return value or {}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: its name.
        decides: what is made anew when it changes.
        also: a later artefact that it decides even where nothing of the first kind is read.
        help: one line for people.
        section: title of its part of `--help`.
        default: None also where RecBole's own default stands.
        has_default: false where RecBole's own default stands.
        types: Python types of a value; empty for any.
        nullable: whether null is a value.
        choices: all values that are allowed; empty for any.
        at_least, at_most: the smallest and the largest number that is allowed, also in a list.
        form: a regular expression that the whole of a text matches.
        empty: whether an empty text or list is a value.
        each: Python types of a list's members; empty for any.
        each_of: all members that are allowed, in any case; empty for any.
        count: of a list's members; 0 for any.
        keys: all keys of a mapping that are allowed; empty for any.
        when: values of other settings, and of `facts`, under which it decides anything.
        per_grid: one value for all cells of a grid and all trials of a search.
        shown: reports name it.
        model: the model whose own setting it is; "" for a setting of all runs.
    """

    key: str
    decides: Artefact
    help: str
    section: str
    default: Any = None
    has_default: bool = True
    types: tuple[type, ...] = ()
    nullable: bool = False
    choices: tuple[Any, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    form: str = ""
    empty: bool = False
    each: tuple[type, ...] = ()
    each_of: tuple[str, ...] = ()
    count: int = 0
    keys: tuple[str, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    per_grid: bool = False
    shown: bool = False
    model: str = ""
    also: Artefact | None = None

    def check(self, value: Any) -> None:
        """Refuse a value of another type, form or range, or outside the choices.

        Raises:
            UserError: names the setting, the value and what is allowed.
        """
        check_plain(self.key, value)
        if value is None and self.nullable:
            return
        if self.choices:
            if not any(value == choice and type(value) is type(choice) for choice in self.choices):  # 1 is not true
                near = difflib.get_close_matches(str(value), list(map(str, self.choices)), n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"{self.key}={value!r} is not a choice{hint}; choose one of {', '.join(map(str, self.choices))}"
                )
            return
        if not _is_one(value, self.types):
            names = " or ".join(kind.__name__ for kind in self.types)
            example = "" if self.default is None else f", for instance {self.default!r}"
            raise UserError(f"{self.key}={value!r} must be of type {names}{example}")
        if isinstance(value, str | list) and not value and not self.empty:
            raise UserError(f"{self.key}={value!r} is empty; leave it out for its default, {self.default!r}")
        if isinstance(value, str) and self.form and not re.fullmatch(self.form, value):
            raise UserError(f"{self.key}={value!r} has another form: {self.help}")
        if isinstance(value, dict) and self.keys and (unknown := [key for key in value if key not in self.keys]):
            raise UserError(f"{self.key}={value!r}: {unknown[0]!r} is not known there; it takes {', '.join(self.keys)}")
        if isinstance(value, list):
            self._check_members(value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float):
                self._check_range(value, number)

    def _check_members(self, value: list[Any]) -> None:
        if self.count and len(value) != self.count:
            raise UserError(f"{self.key}={value!r} must have {self.count} members, for instance {self.default or self.help!r}")
        allowed = [each.casefold() for each in self.each_of]
        for each in value:
            if not _is_one(each, self.each) or each == "":
                names = " or ".join(kind.__name__ for kind in self.each)
                raise UserError(f"{self.key}={value!r}: {each!r} must be of type {names}, for instance {self.default!r}")
            if allowed and str(each).casefold() not in allowed:
                raise UserError(f"{self.key}={value!r}: {each!r} is unknown; choose of {', '.join(self.each_of)}")

    def _check_range(self, value: Any, number: float) -> None:
        if self.at_least is not None and number < self.at_least:
            raise UserError(f"{self.key}={value!r} is too small; it must be at least {self.at_least:g}")
        if self.at_most is not None and number > self.at_most:
            raise UserError(f"{self.key}={value!r} is too large; it must be at most {self.at_most:g}")

    def describe(self) -> str:
        """Its help, with the choices where the help does not name them."""
        unnamed = any(str(choice) not in self.help for choice in self.choices)
        return self.help + (f" (one of {', '.join(map(str, self.choices))})" if unnamed else "")

    def active(self, lookup: Callable[[str], Any]) -> bool:
        """Whether it decides anything, given the other settings and facts."""
        return all(lookup(key) in values for key, values in self.when.items())


def _is_one(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; true and false are no numbers."""
    return not types or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))


def check_plain(key: str, value: Any) -> None:
    """Refuse what no setting can be: numbers that are not finite, keys that are no text, control characters, dates.

    Raises:
        UserError: names the setting and the value.
    """
    if isinstance(value, dict):
        if strange := [each for each in value if not isinstance(each, str)]:
            raise UserError(f"{key}={value!r}: the key {strange[0]!r} must be a text; put it into quotes")
        for each in value.values():
            check_plain(key, each)
    elif isinstance(value, list | tuple):
        for each in value:
            check_plain(key, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value!r} must be a finite number")
    elif isinstance(value, str) and any(ord(sign) < 32 for sign in value.replace("\n", " ").replace("\t", " ")):
        raise UserError(f"{key}={value!r} holds control characters; take them out")
    elif not isinstance(value, str | int | float | Path | None):
        raise UserError(f"{key}={value!r} is a {type(value).__name__}; put it into quotes if it is a text")


@functools.cache
def schema() -> dict[str, Setting]:
    """The settings of all runs, in the order of `--help`."""
    found: dict[str, Setting] = {}
    for part in read_yaml(PROPERTIES / "overall.yaml").values():
        for key, given in part["settings"].items():
            found[key] = _setting(key, given, part["about"])
    return found


@functools.cache
def model_schema(name: str) -> dict[str, Setting]:
    """The settings that only the model `name` has, declared in `properties/model/<name>.yaml`; they decide training."""
    path = PROPERTIES / "model" / f"{name}.yaml"
    entries = read_yaml(path).items() if path.is_file() else ()
    return {
        key: _setting(key, {"decides": "training", **given}, f"Settings of {name}", name)
        for key, given in entries
        if isinstance(given, dict) and "default" in given
    }


def model_defaults(name: str) -> dict[str, Any]:
    """What `properties/model/<name>.yaml` sets: defaults of the model's own settings, and other defaults for those of all runs."""
    path = PROPERTIES / "model" / f"{name}.yaml"
    own = model_schema(name)
    entries = read_yaml(path) if path.is_file() else {}
    return {key: own[key].default if key in own else value for key, value in entries.items()}


def models_with_settings() -> list[str]:
    """Names of the models that have a file in `properties/model`."""
    return sorted(path.stem for path in (PROPERTIES / "model").glob("*.yaml"))


def per_grid(key: str) -> bool:
    """Whether a setting has one value in a grid and a search, since it is decided before training."""
    return key in schema() and schema()[key].per_grid


def _setting(key: str, given: Mapping[str, Any], section: str, model: str = "") -> Setting:
    if unknown := sorted(set(given) - _PARTS):
        raise ValueError(f"the declaration of {key!r} has the unknown part {', '.join(unknown)}")
    if given.get("decides") not in ARTEFACTS:
        raise ValueError(f"{key!r} must say what it decides, one of {', '.join(ARTEFACTS)}, not {given.get('decides')!r}")
    if not given.get("help"):
        raise ValueError(f"{key!r} has no help")
    default, decides = given.get("default"), given["decides"]
    return Setting(
        key=key,
        decides=decides,
        help=given["help"],
        section=section,
        default=default,
        has_default="default" in given,
        types=_TYPES[given["type"]] if "type" in given else _types_of(default),
        nullable=given.get("nullable", "default" in given and default is None),
        choices=tuple(given.get("choices", ())),
        at_least=given.get("at_least"),
        at_most=given.get("at_most"),
        form=given.get("form", ""),
        empty=given.get("empty", False),
        each=_TYPES[given["each"]] if "each" in given else (),
        each_of=tuple(given.get("each_of", ())),
        count=given.get("count", 0),
        keys=tuple(given.get("keys", ())),
        when={other: tuple(values) for other, values in given.get("when", {}).items()},
        per_grid=given.get("per_grid", decides in ("prepared", "items", "intents")),
        shown=given.get("shown", False),
        model=model,
        also=given.get("also"),
    )


def _types_of(default: Any) -> tuple[type, ...]:
    if isinstance(default, float):
        return (float, int)
    return () if default is None else (type(default),)


def describe_settings() -> str:
    """The settings with their defaults and help, as `--help` prints them."""
    lines: list[str] = []
    title = ""
    every = [*schema().values()] + [each for name in models_with_settings() for each in model_schema(name).values()]
    for setting in every:
        if setting.section != title:
            title = setting.section
            lines += ["", title]
        default = "" if setting.default is None else as_typed(setting.default)
        lines.append(f"  --{setting.key}={default}\n        {setting.describe()}")
    return "\n".join(lines)


def as_typed(value: Any) -> str:
    """A value as it would be typed.

    >>> as_typed(0.00001), as_typed(1e-12), as_typed([1, 2]), as_typed(True)
    ('0.00001', '1e-12', '[1, 2]', 'true')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0") if 1e-6 <= value < 1e-3 else f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text.removesuffix("...").strip()
