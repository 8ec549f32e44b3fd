"""Models tuned on sessions: what they have read, and where they may not be used since they would know the answers.

A folder that `finetune` made holds `finetune.json` (of what it was made) and `examples.txt`: a fingerprint of every row of the training
part that tuning has read, held-out rows included. Such a model may serve a dataset only where each of these rows stands in today's
training part too: then no validation or test session, and no target of one, can be among what it has read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import read_json, sha256_file
from recbole_llm4sbr.base.names import FINETUNED
from recbole_llm4sbr.data.folders import dataset_folder, part_file
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.rows import SessionRows, read_sessions
from recbole_llm4sbr.data.sessions import PARTS

MANIFEST = FINETUNED
EXAMPLES = "examples.txt"
UNFINISHED = "tuning"  # folder of a run that has not ended


def fingerprints(rows: SessionRows) -> list[str]:
    """A fingerprint of each row: of its clicks in order and its target, whatever the session is called."""
    return [
        hashlib.blake2b(json.dumps([rows.prefix(row), rows.tokens[rows.targets[row]]]).encode(), digest_size=8).hexdigest()
        for row in range(len(rows.ids))
    ]


def check_tuned(settings: Mapping[str, Any], prepared: Manifest, options: tuple[str, ...]) -> None:
    """Refuse models that were tuned on rows which are not in the training part.

    Args:
        settings: of the run.
        prepared: the manifest of the session files.
        options: `llm` and `encoder`, those of them that the run uses and that are local.

    Raises:
        UserError: names the model, of what it was tuned, and what to do.
    """
    tuned = {option: folder for option in options if (folder := tuned_folder(settings[option])) is not None}
    ours: set[str] | None = None
    folder_here = dataset_folder(settings)
    train = f"{settings['dataset']}.{PARTS[0]}.inter"
    for option, folder in tuned.items():
        made = read_json(folder / MANIFEST)
        if made.get("training_part") == prepared.files[train]:
            continue
        examples = folder / EXAMPLES
        if not examples.is_file() or sha256_file(examples) != made.get("examples_sha256"):
            raise UserError(
                f"--{option}={settings[option]!r} was tuned, and {str(examples)!r}, which says on what, is missing or was changed; "
                f"tune it anew with `finetune`"
            )
        read = set(examples.read_text(encoding="utf-8").split())
        if ours is None:
            files = (part_file(PARTS[0], targets) for targets in ("all", "last"))
            ours = {each for file in files for each in fingerprints(read_sessions(folder_here, settings["dataset"], file))}
        if foreign := len(read - ours):
            raise UserError(
                f"--{option}={settings[option]!r} was tuned on {made.get('dataset')!r} (split {made.get('split')!r}), and {foreign:,} of "
                f"the {len(read):,} rows that it has read are not in the training part here, so that it may know targets of validation "
                f"or test; tune one for this data with `finetune`, or take the split that it was tuned for"
            )


def rows_read(name: str) -> set[str]:
    """Fingerprints of the rows that a model was tuned on, those of what it was tuned from included; none for any other model."""
    folder = tuned_folder(name)
    return set((folder / EXAMPLES).read_text(encoding="utf-8").split()) if folder else set()


def tuned_folder(name: str) -> Path | None:
    """The folder of a model that `finetune` made; None for any other model.

    Raises:
        UserError: its manifest cannot be read.
    """
    folder = Path(name).expanduser()
    if not (folder / MANIFEST).is_file():
        return None
    if not isinstance(read_json(folder / MANIFEST), dict):
        raise UserError(f"{str(folder / MANIFEST)!r} is damaged; tune the model anew with `finetune`")
    return folder
