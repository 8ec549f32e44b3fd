"""Files that appear whole or not at all, their checksums, and where `properties/` stands."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from recbole_llm4sbr.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries properties/ inside the package; a checkout and an editable install have it beside the package.
PROPERTIES = _PACKAGE / "properties" if (_PACKAGE / "properties").is_dir() else _PACKAGE.parent / "properties"


def make_folder(path: str | Path) -> Path:
    """Create `path` with its parents and return it.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {str(folder)!r}: {error.strerror}; choose another") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write into the folder {str(folder)!r}; choose another or change its permissions")
    return folder


@contextmanager
def write_whole(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; it takes the name `path` only when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(partial, mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with write_whole(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False, sort_keys=False)
        handle.write("\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is not valid JSON ({error}); delete it and run again") from None
