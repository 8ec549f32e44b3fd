"""Files that appear whole or not at all, their checksums, folders that belong to one process, and where `properties/` stands."""

import contextlib
import glob
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from recbole_llm4sbr.base.errors import UserError

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries properties/ inside the package; a checkout and an editable install have it beside the package.
PROPERTIES = _PACKAGE / "properties" if (_PACKAGE / "properties").is_dir() else _PACKAGE.parent / "properties"

OWNER = "owner.lock"  # the lock of a folder that belongs to one process, see `owned`
_MARK = ".made-here"
_STALE = 600  # seconds after which a temporary file may be a killed run's


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


def check_folder(path: str | Path, option: str) -> None:
    """Refuse a folder that cannot be made or written to, without making it.

    Raises:
        UserError: names the option and what is in the way.
    """
    if str(path) == "-":
        raise UserError(f"{option}='-' is no folder, and nothing of it goes to the screen; name one")
    folder = Path(path).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{option}={str(path)!r}: {str(there)!r} is no folder that can be written to; choose another")


@contextmanager
def write_whole(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; it takes the name `path` only when the block ends without an error."""
    path = Path(path)
    _remove_stale(path)
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


def write_all_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk beside their places before the first takes its name."""
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in contents}
    try:
        for path, data in contents.items():
            _remove_stale(path)
            with open(partials[path], "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove what killed runs left of `path`: temporary files that no process of this machine writes and that are old."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError, ValueError):  # another run may be removing it too
            pid = int(left.name.rsplit(".", 2)[1])
            if time.time() - left.stat().st_mtime > _STALE and not alive(pid):
                left.unlink()


def owned(folder: Path) -> FileLock | None:
    """The lock of a folder that belongs to one process, which the system unlocks when that process ends, however it ends.

    None where its owner lives, on this host or on another that shares the file system, or where the file system has no locks.
    """
    lock = FileLock(folder / OWNER)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return None
    return lock


def alive(pid: int) -> bool:
    """Whether a process of this machine has this number and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    try:  # one that was killed keeps its number until its parent looks at it
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")


_checksums: dict[tuple[str, int, int, int, int], str] = {}


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. A process reads a file once, unless it is replaced or changed meanwhile."""
    stat = Path(path).stat()
    key = (os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _checksums:
        with open(path, "rb") as handle:
            _checksums[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _checksums[key]


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not valid JSON ({error}); delete it and run again") from None


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, none when there is no file; a line that a killed run left unfinished is passed over."""
    if not Path(path).is_file():
        return []
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line:
                rows.append(json.loads(line))
        except (ValueError, RecursionError):
            log.warning("%s, line %s is unfinished and is passed over", path, number)
    return rows


def append_json_line(path: str | Path, value: Any) -> None:
    """Append a line to a JSONL file and wait until it is on the disk; where the last line is unfinished, after it."""
    with open(path, "a+b") as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            torn = handle.read(1) != b"\n"
            handle.seek(0, os.SEEK_END)
            if torn:
                handle.write(b"\n")
        handle.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def cache_folder() -> Path:
    """`RECBOLE_LLM4SBR_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RECBOLE_LLM4SBR_CACHE") or f"{base}/recbole_llm4sbr").expanduser()


def mark_own(folder: str | Path) -> None:
    """Mark a folder as made by this user, with a key that only this user's cache folder holds."""
    with write_whole(Path(folder) / _MARK) as handle:
        handle.write(_signature(folder))


def is_own(folder: str | Path) -> bool:
    """Whether `mark_own` marked the folder where it stands now, with this user's key. Pickles are read from no other folder."""
    mark = Path(folder) / _MARK
    return mark.is_file() and hmac.compare_digest(mark.read_bytes(), _signature(folder).encode())


def _signature(folder: str | Path) -> str:
    path = make_folder(cache_folder()) / "key"
    with contextlib.suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(secrets.token_bytes(32))
    return hmac.new(path.read_bytes(), os.path.realpath(folder).encode(errors="surrogateescape"), "sha256").hexdigest()
