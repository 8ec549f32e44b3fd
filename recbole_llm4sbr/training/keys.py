"""What a result depends on, as short hashes: the same key means the same result, so that it need not be computed again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.facts import artefacts_of, deciding, uses_intents, uses_item_texts
from recbole_llm4sbr.data.checks import RunFiles
from recbole_llm4sbr.data.manifest import Checksums


def checksums_of(files: RunFiles, views: Sequence[str]) -> dict[str, Checksums]:
    """Checksums of session files, item vectors and the views of the intents."""
    found = {"prepared": files.prepared.files}
    if files.items is not None:
        found["items"] = files.items.files
    if files.intents is not None:
        found["intents"] = {view: files.intents.views[view] for view in views if view in files.intents.views}
    return found


def file_checksums(settings: Mapping[str, Any], files: RunFiles) -> dict[str, Checksums]:
    """Checksums of all that a run reads."""
    items = files.items if uses_item_texts(settings) else None
    intents = files.intents if uses_intents(settings) else None
    return checksums_of(RunFiles(files.prepared, items, intents), settings["views"])


def result_key(settings: Mapping[str, Any], files: RunFiles) -> str:
    """Of a training run: the settings that decide it and what it reads, the files that it reads, this package's version."""
    return short_hash([deciding(settings, *artefacts_of(settings)), file_checksums(settings, files), __version__])


def short_hash(value: Any) -> str:
    """Sixteen hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
