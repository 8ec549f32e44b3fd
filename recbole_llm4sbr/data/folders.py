"""Where the files of a dataset stand."""

from pathlib import Path

from recbole_llm4sbr.base.facts import SESSION_TEXT, Lookup, intents_name

PREPARED, ITEMS, INTENTS = "prepare.json", "itememb.json", "infer.json"  # the manifests


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
