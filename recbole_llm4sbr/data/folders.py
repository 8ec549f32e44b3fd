"""Where the files of a dataset stand."""

from pathlib import Path
from typing import Literal

from recbole_llm4sbr.base.facts import SESSION_TEXT, Lookup, intents_name

PREPARED, ITEMS, INTENTS = "prepare.json", "itememb.json", "infer.json"  # the manifests


# The targets whose file has the part's plain name, which stock RecBole reads.
_USUAL = {"train": "all", "valid": "last", "test": "last"}


def part_file(part: str, targets: str) -> str:
    """What stands between the dataset's name and `.inter` in the name of a session file.

    Args:
        part: train, valid or test.
        targets: `all` (a row for every prefix) or `last` (a row for each session's longest).

    >>> part_file("train", "all"), part_file("train", "last"), part_file("test", "last"), part_file("test", "all")
    ('train', 'train-last', 'test', 'test-all')
    """
    return part if _USUAL[part] == targets else f"{part}-{targets}"


def part_files(train: str, evaluated: str) -> list[str]:
    """`part_file` of the three parts, with the targets of train and those of valid and test."""
    return [part_file(part, train if part == "train" else evaluated) for part in _USUAL]


def asked_files(settings: Lookup) -> list[str]:
    """`part_file` of the three parts, of the rows that have intents: with `intent_refresh: last` each session's last prefix in a part."""
    return part_files(asked_targets(settings), asked_targets(settings))


def asked_targets(settings: Lookup) -> Literal["all", "last"]:
    """Whether the rows that have intents are all, or those of the last targets."""
    return "last" if settings["intent_refresh"] == "last" else "all"


def dataset_folder(settings: Lookup) -> Path:
    """The folder of a dataset's prepared and feature files."""
    return Path(settings["atomic_path"]) / str(settings["dataset"])


def intents_folder(folder: Path, settings: Lookup) -> Path:
    """Where the `.sessemb` of a run stands: each LLM's, and that of `session_text`, in a folder of its own in the dataset's `folder`."""
    return folder / intents_name(settings)


def intents_manifests(folder: Path) -> list[Path]:
    """The manifests of all intents of a dataset; those that `infer` was last asked for come last."""
    return sorted(folder.glob(f"*/{INTENTS}"), key=lambda path: (path.stat().st_mtime_ns, path))


def llm_manifests(folder: Path) -> list[Path]:
    """Those of them that LLMs made."""
    return [path for path in intents_manifests(folder) if path.parent.name != SESSION_TEXT]
