"""Where the files of a dataset stand."""

from pathlib import Path

from recbole_llm4sbr.base.settings import Lookup, intents_of


def dataset_folder(settings: Lookup) -> Path:
    """The folder of a dataset's prepared and feature files."""
    return Path(settings["atomic_path"]) / str(settings["dataset"])


def intents_folder(folder: Path, settings: Lookup) -> Path:
    """Where the `.sessemb` of a run stands: the LLM's in the dataset's `folder`, another source's in a folder of its own there."""
    source = intents_of(settings)
    return folder if source == "llm" else folder / source
