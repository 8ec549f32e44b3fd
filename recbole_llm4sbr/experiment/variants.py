"""What a model is compared as: the shipped variants of `properties/variants.yaml`, and the paper's ablations made of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.model_names import canonical_model
from recbole_llm4sbr.base.names import ENSEMBLE, control_of_ensemble, split_changes, split_names
from recbole_llm4sbr.base.schema import per_grid, read_yaml
from recbole_llm4sbr.base.settings import parse_value

# The paper's tables and figures by name: a title, and variants of one backbone.
ABLATIONS: dict[str, tuple[str, list[str]]] = {
    "components": ("Parts of LLM4SBR (the paper's Table 4)", ["llm4sbr", "w/o SBR", "w/o LLM", "w/o AU"]),
    "baselines": ("Other ways to use a language model (Figure 5)", ["plain", "LLMInfer", "LLMSeqSim", "LLM2Seq", "llm4sbr"]),
    "views": ("Views (Figure 6)", ["llm4sbr", "w/o Long", "w/o Short", "Normal"]),
    "k": ("Items per intent, k (Figure 7)", [f"llm4sbr+intent_k={k}" for k in (0, 1, 3, 5)]),
    "lambda": ("Weight of alignment and uniformity", [f"llm4sbr+intent_lambda={each}" for each in (0.0, 0.05, 0.1, 0.3, 1.0)]),
    "controls": ("Controls: other vectors for the intents", ["plain", "llm4sbr", "session_text", "shuffled", "random", "none"]),
    "switches": (
        "Switches, for plain and enhanced",
        [
            "plain",
            "plain-text-init",
            "plain-cosine",
            "llm4sbr",
            "text-init",
            "cosine",
            "residual",
            "concat",
            "late",
            "gate+late",
        ],
    ),
}

_OF_THE_LLM = ("llm", "llm_backend")  # each LLM's intents have a folder of their own, so that variants may differ in them


@dataclass(frozen=True)
class MemberName:
    """A member of an ensemble, as typed: `text-init`, `plain'` (another seed), `text-init@GCEGNN` (another model).

    Attributes:
        variant: name of the variant.
        model: None for the model of the table's row.
        again: how many other training runs it is away from the row's own.
    """

    variant: str
    model: str | None
    again: int


@dataclass(frozen=True)
class EnsembleName:
    """An ensemble, as typed: `ensemble(plain,text-init)+weights=valid`.

    Attributes:
        members: at least one.
        weights: `equal` or `valid`.
    """

    members: tuple[MemberName, ...]
    weights: Literal["equal", "valid"]

    def renamed(self, rename: Callable[[MemberName], str]) -> str:
        """The ensemble as typed, with other names for the variants of its members."""
        members = (rename(each) + (f"@{each.model}" if each.model else "") + "'" * each.again for each in self.members)
        return f"{ENSEMBLE}{','.join(members)})" + ("+weights=valid" if self.weights == "valid" else "")

    @property
    def about(self) -> str:
        """What the report says of it."""
        found = "found on validation" if self.weights == "valid" else "equal"
        return f"{len(self.members)} models trained apart, their log-probabilities added; weights {found}"

    @classmethod
    def read(cls, name: str) -> "EnsembleName | None":
        """The ensemble that a variant's name means, None for another variant.

        Raises:
            UserError: it is not understood.

        >>> EnsembleName.read("ensemble(plain,plain')").members[1]
        MemberName(variant='plain', model=None, again=1)
        >>> EnsembleName.read("ensemble(plain,text-init@GCEGNN)").members[1].model
        'GCEGNN'
        """
        if not name.startswith(ENSEMBLE):
            return None
        match = re.fullmatch(r"ensemble\((.+)\)(?:\+weights=(equal|valid))?", name)
        if match is None:
            raise UserError(
                f"variant {name!r} is not understood; write it as ensemble(plain,text-init), or with +weights=valid behind it"
            )
        members = []
        for text in split_names(match[1]):
            parts = re.fullmatch(r"(.+?)(?:@([\w.:-]+))?('*)", text.strip())
            if parts is None or parts[1].startswith(ENSEMBLE):
                raise UserError(
                    f"variant {name!r}: the member {text!r} is not understood; name a variant, as plain or text-init@GCEGNN"
                )
            members.append(MemberName(parts[1], parts[2] and canonical_model(parts[2]), len(parts[3])))
        if len(set(members)) < len(members):
            raise UserError(f"variant {name!r} names a member twice; plain' is plain with another seed")
        return cls(tuple(members), "valid" if match[2] == "valid" else "equal")


@dataclass(frozen=True)
class Variant:
    """A variant of one model.

    Attributes:
        name: as typed, for instance `llm4sbr+intent_k=3`.
        about: what the report says of it.
        settings: in which it differs from the other cells.
    """

    name: str
    about: str
    settings: dict[str, Any]


def read_variants() -> Mapping[str, Mapping[str, Any]]:
    """The shipped variants: name -> `about` and `set`."""
    return read_yaml(PROPERTIES / "variants.yaml")


def make_variant(name: str, model: str) -> Variant:
    """A variant by name, for a model.

    Raises:
        UserError: there is no such variant, or it changes what is decided before training.
    """
    variants = read_variants()
    shipped, *changes = split_changes(name)
    if shipped not in variants:
        raise UserError(f"variant {shipped!r} is unknown; choose from {', '.join(variants)}")
    settings = {
        key: value.format(model=model) if isinstance(value, str) else value for key, value in variants[shipped]["set"].items()
    }
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"variant {name!r}: {change!r} is not understood; write it as {shipped}+key=value")
        if key in ("model", "config_files"):
            raise UserError(
                f"variant {name!r}: {key!r} is chosen for the grid; name it with --{'models' if key == 'model' else key}"
            )
        if per_grid(key) and key not in _OF_THE_LLM:
            raise UserError(
                f"variant {name!r}: {key!r} is decided before training, for all cells; run the grid once for each value, with --{key} "
                f"and an --atomic_path and --out of its own"
            )
        settings[key] = parse_value(value, key)
    return Variant(name, ", ".join([variants[shipped]["about"], *changes]), settings)


def of_llms(name: str, model: str, llms: Sequence[str], reads_llm: Callable[[Variant], bool]) -> list[str]:
    """Names of a variant for each LLM, where it reads an LLM's intents; the name alone where it does not.

    Args:
        name: of a variant or an ensemble.
        model: that it is a variant of.
        llms: names of LLMs; none leave the name as it is.
        reads_llm: says whether a variant that is no ensemble reads an LLM's intents.
    """
    ensemble = EnsembleName.read(name)

    def of(llm: str) -> str:
        if ensemble is None:
            return f"{name}+llm={llm}" if reads_llm(make_variant(name, model)) else name
        return ensemble.renamed(lambda each: of_llms(each.variant, each.model or model, [llm], reads_llm)[0])

    return list(dict.fromkeys(of(llm) for llm in llms)) or [name]


def with_controls(names: Sequence[str]) -> list[str]:
    """Names of variants, and behind them the controls of those that are ensembles: as many of the plain models among them.

    >>> with_controls(["plain", "ensemble(plain,text-init)"])
    ['plain', 'ensemble(plain,text-init)', "ensemble(plain,plain')"]
    >>> with_controls(["plain+hop=2", "ensemble(plain,text-init)"])[-1]
    "ensemble(plain+hop=2,plain+hop=2')"
    """
    controls = [control_of_ensemble(name, names) for name in names if EnsembleName.read(name)]
    return list(dict.fromkeys([*names, *controls]))
