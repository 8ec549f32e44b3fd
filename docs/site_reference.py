"""The reference pages: settings as `properties/` declares them, verbs as the argument parser has them (`docs/site_hooks.py`)."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.schema import Setting, as_typed, model_defaults, model_schema, models_with_settings, schema
from recbole_llm4sbr.base.settings import recbole_defaults
from recbole_llm4sbr.cli.main import VERBS
from recbole_llm4sbr.cli.parsing import Option, Verb

_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list", dict: "mapping"}


def prose(text: str) -> str:
    """Markdown that shows a line of help as it is; what stands in backquotes is code.

    >>> prose("a <b> of `c_d` [e]")
    'a &#60;b&#62; of `c_d` &#91;e&#93;'
    """
    parts = text.split("`")
    return "`".join(
        part if place % 2 else re.sub(r"[&<>*_{}\[\]\\|]", lambda sign: f"&#{ord(sign[0])};", part)
        for place, part in enumerate(parts)
    )


def entry(name: str, anchor: str, about: str, facts: Iterable[str]) -> str:
    """A term and its description, with what is known of it in a line below."""
    return f"`{name}` {{ #{anchor} }}\n:   {prose(about)}\n\n    {' · '.join(facts)}\n    {{: .facts }}\n"


def settings() -> str:
    """All settings of all runs, a section each as in `--help`."""
    sections: dict[str, list[str]] = {}
    for each in schema().values():
        sections.setdefault(each.section, []).append(_setting(each))
    return "\n".join(f"## {prose(_heading(title))}\n\n" + "\n".join(found) for title, found in sections.items())


def _heading(title: str) -> str:
    """A section's title without the page that it names for readers of `--help`."""
    short = re.sub(r" \(docs/[\w-]+\.md\)", "", title).replace("->", "to")
    return short[0].upper() + short[1:]


def models() -> str:
    """The settings that single models have, and the defaults of other settings that they change."""
    parts = []
    for name in models_with_settings():
        own = model_schema(name)
        other = {key: value for key, value in model_defaults(name).items() if key not in own}
        parts.append(f"### {name}\n\n" + "\n".join(_setting(each) for each in own.values()))
        if other:
            parts.append("Other defaults: " + ", ".join(f"`{key}: {as_typed(value)}`" for key, value in other.items()) + ".\n")
    return "\n".join(parts)


def recipes() -> str:
    """The shipped recipes, whole."""
    paths = sorted((PROPERTIES / "recipe").glob("*.yaml"))
    return "\n".join(f"### {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```\n" for path in paths)


def _setting(setting: Setting) -> str:
    anchor = f"{setting.model}-{setting.key}" if setting.model else setting.key
    return entry(setting.key, anchor, setting.help, _facts(setting))


def _facts(setting: Setting) -> list[str]:
    """Default, kind, range, what it decides, and when."""
    facts = [_default(setting)]
    if setting.choices:
        facts.append("one of " + ", ".join(map(_code, setting.choices)))
    elif setting.types:
        facts.append("number" if float in setting.types else " or ".join(_KINDS[kind] for kind in setting.types))
    if setting.each_of:
        facts.append("of " + ", ".join(map(_code, setting.each_of)))
    if setting.keys:
        facts.append("with the keys " + ", ".join(map(_code, setting.keys)))
    low, high = (None if each is None else f"{each:g}" for each in (setting.at_least, setting.at_most))
    if low or high:
        facts.append(f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}")
    facts.append(f"decides {setting.decides}" + (f" and {setting.also}" if setting.also else ""))
    if setting.when:
        facts.append("only where " + " and ".join(_condition(key, values) for key, values in setting.when.items()))
    return facts


def _default(setting: Setting) -> str:
    recboles = recbole_defaults("").get(setting.key)
    if not setting.has_default and recboles is not None:
        return f"default {_code(recboles)}, RecBole's own"
    return "no default" if setting.default is None else f"default {_code(setting.default)}"


def _condition(key: str, values: Iterable[Any]) -> str:
    return f"`{key}` is " + " or ".join(map(_code, values))


def _code(value: Any) -> str:
    return f"`{as_typed(value)}`" if value not in ("", None) else "none"


def verbs() -> str:
    """Every verb: what it does, examples, its options."""
    return "\n".join(_verb(verb) for verb in VERBS.values())


def _verb(verb: Verb) -> str:
    parts = [f"## {verb.name or 'Without a verb'}"]
    parts += [_paragraph(each) for each in re.split(r"\n\s*\n", (verb.usage or verb.about).strip("\n"))]
    if verb.options:
        parts += ["**Options**", "\n".join(_option(verb, each) for each in verb.options)]
    if verb.takes_settings:
        parts.append("Beside these, every [setting](configuration.md) may be given, and files of them as `--config_files`.")
    if more := verb.more().strip():
        parts.append(f"```text\n{more}\n```")
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    """A paragraph of a usage: prose, or indented lines, which are examples of commands or a list of words and what they mean."""
    if text.startswith("usage: "):
        return _examples([line.removeprefix("usage:").strip() for line in text.splitlines()])
    lines = text.splitlines()
    if not all(line.startswith("  ") for line in lines):
        return prose(text.strip())
    lines = [line.removeprefix("  ") for line in lines]
    if lines[0].split()[0] == "recbole-llm4sbr":
        return _examples(lines)
    return "\n".join(f"- `{word}`: {prose(meaning.strip())}" for word, _, meaning in (line.partition(" ") for line in lines))


def _examples(lines: Iterable[str]) -> str:
    """Commands, each below what it does: that stands behind three blanks, or indented in the lines that follow."""
    shown: list[str] = []
    for line in lines:
        if line.startswith(" "):
            shown.insert(-1, f"# {line.strip()}")
            continue
        command, *about = re.split(r" {3,}", line, maxsplit=1)
        shown += [*(f"# {each.strip('()')}" for each in about), command]
    return "```bash\n" + "\n".join(shown) + "\n```"


def _option(verb: Verb, option: Option) -> str:
    kind = {"whole": "whole number", "flag": "true or false"}.get(option.kind, option.kind)
    default = ",".join(option.default) if isinstance(option.default, list) else option.default
    facts = [kind if not option.choices else "one of " + ", ".join(map(_code, option.choices))]
    facts += [] if default in (None, False, "") else [f"default {_code(default)}"]
    facts += [] if option.least is None else [f"at least {option.least:g}"]
    return entry(f"--{option.name}", f"{verb.name}-{option.name}", option.help, facts)


REFERENCES: Mapping[str, Callable[[], str]] = {"settings": settings, "models": models, "recipes": recipes, "verbs": verbs}
