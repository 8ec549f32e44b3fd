"""The one argument parser: a verb declares its options, everything else of the form `--key=value` is a setting."""

import difflib
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.names import split_names
from recbole_llm4sbr.base.schema import describe_settings, schema
from recbole_llm4sbr.base.settings import parse_value, recbole_keys, recipe_path

Kind = Literal["text", "names", "whole", "number", "value", "flag"]


@dataclass(frozen=True)
class Option:
    """An option of a verb.

    Attributes:
        name: as typed behind `--`.
        help: for people.
        default: what it is when it is not given.
        kind: `text` as it stands, `names` with commas between them, a `whole` or any `number`, `value` read as YAML, `flag` (true or
            false), which needs no value.
        choices: all values that are allowed; empty for any.
        least: of a number.
    """

    name: str
    help: str
    default: Any = None
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    least: float | None = None

    def read(self, text: str) -> Any:
        """The value in `text`.

        Raises:
            UserError: it is of another kind, none of the choices, empty or too small.
        """
        value: Any = text if self.kind == "text" else parse_value(text)
        if self.kind == "names":
            value = names_in(value if isinstance(value, list) else text, self.name)
        for each in value if self.kind == "names" else [value]:
            if self.choices and each not in self.choices:
                near = difflib.get_close_matches(str(each), self.choices, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(f"--{self.name}={each!r} is unknown{hint}; choose one of {', '.join(self.choices)}")
        if self.kind == "flag" and not isinstance(value, bool):
            raise UserError(f"--{self.name}={text!r} must be true or false; --{self.name} alone is true")
        if self.kind in ("whole", "number"):
            least = -math.inf if self.least is None else self.least
            if type(value) not in ((int,) if self.kind == "whole" else (int, float)) or not least <= value < math.inf:
                what = "a whole number" if self.kind == "whole" else "a number"
                raise UserError(
                    f"--{self.name}={text!r} must be {what}" + (f" of at least {least:g}" if self.least is not None else "")
                )
        return value


OVERWRITE = Option(
    "overwrite",
    "replace a file that this package did not write; never one that the command reads, a link, a device, or the record of a folder",
    False,
    "flag",
)


def names_in(value: Any, option: str) -> list[str]:
    """The names in `a,b` or in a list of names.

    Raises:
        UserError: names the option; there is no name, or an empty one.

    >>> names_in("SRGNN, NARM", "models"), names_in(["ml-100k"], "datasets"), names_in("plain,ensemble(plain,cosine)", "variants")
    (['SRGNN', 'NARM'], ['ml-100k'], ['plain', 'ensemble(plain,cosine)'])
    """
    names = [str(each).strip() for each in (value if isinstance(value, list) else split_names(str(value)))]
    if not names or not all(names):
        raise UserError(f"--{option}={value!r} must be names with commas between them")
    return names


@dataclass(frozen=True)
class Arguments:
    """What was typed behind a verb.

    Attributes:
        verb: its name; "" for the whole line.
        words: positional arguments.
        options: values of the verb's options by name, defaults included.
        settings: settings that were typed.
        config_files: settings files, later ones win.
        command: the whole command, for reports.
    """

    verb: str
    words: list[str]
    options: dict[str, Any]
    settings: dict[str, Any]
    config_files: list[str]
    command: str


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: "" for the whole line.
        about: one line for the list of verbs.
        usage: how it is called, and what it does; `--help` begins with it.
        run: returns the exit code.
        options: of its own.
        words: what its positional arguments are; "" when it has none.
        takes_settings: whether `--key=value` may be any setting.
        takes_files: whether its settings may come from files; verbs that go on with a checkpoint have them from there.
        shows: beginnings of the titles in `properties/overall.yaml` whose settings its `--help` lists.
        more: what `--help` ends with.
    """

    name: str
    about: str
    usage: str
    run: Callable[[Arguments], int]
    options: tuple[Option, ...] = ()
    words: str = ""
    takes_settings: bool = True
    takes_files: bool = True
    shows: tuple[str, ...] = ()
    more: Callable[[], str] = field(default=str)

    def help(self) -> str:
        """What `--help` prints."""
        lines = [self.usage.rstrip(), "\noptions"]
        for option in self.options:
            default = "" if option.default in (None, False, "") else f"  (default: {_typed(option.default)})"
            lines.append(f"  --{option.name:15} {option.help}{default}")
        if self.takes_settings:
            if self.takes_files:
                lines.append(
                    f"  --{'config_files':15} settings from files or shipped recipes, as paper,mine.yaml; the command line wins"
                )
            lines.append(f"  --{'key=value':15} any setting of this package or of RecBole; `recbole-llm4sbr --help` lists ours")
        sections = [each.strip() for each in describe_settings().split("\n\n")] if self.shows else []
        lines += [f"\n{section}" for section in sections if section.startswith(self.shows)]
        return "\n".join(lines) + (f"\n\n{more}" if (more := self.more()) else "")


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def parse_arguments(verb: Verb, arguments: Sequence[str]) -> Arguments:
    """Sort what was typed behind a verb into words, options, settings files and settings (values read as YAML).

    Raises:
        UserError: a key without a value or given twice with different ones, a misspelt option, a word that is not understood.
    """
    options = {option.name: option for option in verb.options}
    texts, words = _split(verb, arguments, options)
    values: dict[str, Any] = {option.name: option.default for option in verb.options}
    settings: dict[str, Any] = {}
    for key, text in texts.items():
        if key in options:
            values[key] = options[key].read(text)
        elif not verb.takes_settings:
            raise UserError(f"`{verb.name}` has no option --{key}" + _nearest(key, options, "; `--help` lists its options"))
        else:
            settings[key] = parse_value(text, key)
    files = settings.pop("config_files", None)
    if files and not verb.takes_files:
        raise UserError(f"`{verb.name}` takes its settings from checkpoints; name what differs now as --key=value")
    config_files = [str(recipe_path(name)) for name in names_in(files, "config_files")] if files else []
    for key in settings:
        # An unknown setting is refused later, by `load_settings`; here only what looks like an option of the verb.
        if key not in schema() and key not in recbole_keys("") and (hint := _nearest(key, options, "", 0.8)):
            raise UserError(f"`{verb.name}` has no option --{key}{hint}")
    command = shlex.join(["recbole-llm4sbr", *filter(None, [verb.name]), *arguments])
    return Arguments(verb.name, words, values, settings, config_files, command)


def _split(verb: Verb, arguments: Sequence[str], options: dict[str, Option]) -> tuple[dict[str, str], list[str]]:
    """Values by key as typed, and positional words."""
    rest, texts, words = list(arguments), dict[str, str](), list[str]()
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") and verb.words:
            words.append(word)
            continue
        if not word.startswith("--") or word == "--":
            raise UserError(f"argument {word!r} is not understood; settings are given as --key=value")
        key, equals, text = word[2:].partition("=")
        if not equals and key in options and options[key].kind == "flag":
            text = "true"
        elif not equals:
            if rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            elif key in schema() and schema()[key].types == (bool,):
                text = "true"
            else:
                raise UserError(f"--{key} needs a value, as --{key}=value")
        if texts.setdefault(key, text) != text and parse_value(texts[key], key) != parse_value(text, key):
            raise UserError(f"--{key} is given twice, as {texts[key]!r} and {text!r}")
    return texts, words


def _nearest(key: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The end of a message that names the nearest of `names`; `otherwise` where none is near."""
    near = difflib.get_close_matches(key, list(names), n=1, cutoff=cutoff)
    return f"; did you mean --{near[0]}?" if near else otherwise
