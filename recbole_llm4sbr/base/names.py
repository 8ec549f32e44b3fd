"""Names that several packages must read alike: of variants, lists of them, their changes and ensembles; of missing values."""

import re
from collections.abc import Iterable

ENSEMBLE = "ensemble("  # what the name of an ensemble begins with
FINETUNED = "finetune.json"  # what `finetune` writes beside the weights: of what they were made and how the model is asked
CASE_PAGE = "recbole-llm4sbr inspect"  # the generator that a page of `inspect` names; `report --case` looks for it
REPORT_PAGE = "recbole-llm4sbr report"  # that of a page of `report`
# What pandas, and so RecBole, reads as a missing value.
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None",
     "n/a", "nan", "null"}
)  # fmt: skip
# three changes or more, in a variant or in a member of an ensemble; which LLM is not cut
_CHANGES = re.compile(r"(?:\+(?!llm=)\w+=(?:(?!\+\w+=)[^,()@'])+){3,}")


def split_names(text: str) -> list[str]:
    """Names with commas between them; those in round brackets belong to one name, those in square ones to one value.

    >>> split_names("plain,ensemble(plain,text-init),llm4sbr+views=[long,short]")
    ['plain', 'ensemble(plain,text-init)', 'llm4sbr+views=[long,short]']
    """
    return re.split(r",(?![^()]*\)|[^\[\]]*\])", text)


def reference_of(names: Iterable[str], kind: str = "plain") -> str | None:
    """The variant of a kind that others are held against: as it is, else with settings of its own; None where there is none.

    >>> reference_of(["llm4sbr", "plain+learning_rate=0.1"]), reference_of(["plain+learning_rate=0.1", "plain"])
    ('plain+learning_rate=0.1', 'plain')
    """
    return min((name for name in names if name.partition("+")[0] == kind), key=len, default=None)


def control_of_ensemble(name: str, others: Iterable[str] = ()) -> str:
    """The control of an ensemble: as many of the plain models among the other variants, which differ in their seeds alone.

    >>> control_of_ensemble("ensemble(plain,text-init,concat)+weights=valid")
    "ensemble(plain,plain',plain'')"
    """
    plain = reference_of(others) or "plain"
    members = split_names(name.removeprefix(ENSEMBLE).rpartition(")")[0])
    return f"{ENSEMBLE}{','.join(plain + chr(39) * number for number in range(len(members)))})"


def split_changes(name: str) -> list[str]:
    """A variant and what it changes; a plus inside a value ends nothing.

    >>> split_changes("llm4sbr+fusion=gate+late+intent_k=3")
    ['llm4sbr', 'fusion=gate+late', 'intent_k=3']
    """
    return re.split(r"\+(?=[^+=]+=)", name)


def short_name(name: str) -> str:
    """A variant's name for a column or a legend: where it changes many settings, how many rather than which; of an ensemble's member, dots.

    >>> short_name("plain+learning_rate=0.0009+weight_decay=0.00001+session_dropout=0.5")
    'plain + 3 settings'
    >>> short_name("ensemble(llm4sbr,llm4sbr+learning_rate=0.001+session_dropout=0.3+embedding_dropout=0.2@GCEGNN)+weights=valid")
    'ensemble(llm4sbr,llm4sbr...@GCEGNN)+weights=valid'
    >>> short_name("llm4sbr+fusion=gate+late+item_init=random")
    'llm4sbr+fusion=gate+late+item_init=random'
    """
    if name.startswith(ENSEMBLE):
        return _CHANGES.sub("...", name)
    return _CHANGES.sub(lambda found: f" + {len(split_changes(found[0])) - 1} settings", name)


def report_name(dataset: str, split: str) -> str:
    """What a report on a dataset is called, as a file without its ending."""
    return dataset if split == "temporal" else f"{dataset}-{split}"
