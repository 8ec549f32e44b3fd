"""What a command may write at a place of the user's choice: a new file, or one that this package wrote there before.

Each kind of output is known by how its files begin, so that a file of the user's, and what a command reads, is not lost.
"""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.base.names import CASE_PAGE, REPORT_PAGE

_LOOKED_AT = 1 << 16  # bytes from the start and from the end of a file
# Records that later commands go on from; no other output replaces them.
_RECORDS = (
    "prepare.json", "itememb.json", "infer.json", "finetune.json", "grid.json", "cells.jsonl", "asked.json", "search.json"
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A kind of file that a verb writes.

    Attributes:
        what: it is, in words.
        head: how its files begin, a regular expression.
        tail: how they end.
        endings: that the name of a file may have, whose place is typed; none: the name is not typed.
        instead: what to do who wants no file.
        record: whether a later command goes on from it, so that not even `--overwrite=true` replaces a file of another kind.
    """

    what: str
    head: str
    tail: bytes = b""
    endings: tuple[str, ...] = ()
    instead: str = "name a file"
    record: bool = False

    def wrote(self, path: Path) -> bool:
        """Whether a file is one of this kind, or empty."""
        with open(path, "rb") as handle:
            head = handle.read(_LOOKED_AT)
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _LOOKED_AT))
            tail = handle.read()
        if head.startswith(_PARQUET):  # what it is stands at its end
            return ".parquet" in self.endings and PARQUET_MARK in tail
        begins = re.match(self.head, head.decode("utf-8", "replace"), re.DOTALL)
        return not head or bool(begins and tail.rstrip().endswith(self.tail))


_PARQUET = b"PAR1"
PARQUET_MARK = b"recbole-llm4sbr recommend"  # in the metadata of a Parquet file
_PAGE = r'<!doctype html>\n.{0,1000}<meta name=generator content="%s">'
MARKDOWN_MARK = f"<!-- {REPORT_PAGE} -->"  # the last line, so that what is written by hand beneath it stays

RESULT = Output(
    "result of a run", r'\{\n  "best_valid_score": ', endings=(".json",), instead="leave it out: the summary is printed"
)
RECOMMENDATIONS = Output(
    "recommendations",
    r'\{"session": "(?:[^"\\]|\\.)*", "rank": 1, "item": |session,rank,item,title,score,intents\n',
    endings=(".jsonl", ".csv", ".parquet"),
    instead="leave it out: JSON lines are printed, and `> FILE` or a pipe takes them",
)
PAGE = Output("page of `report`", _PAGE % REPORT_PAGE, b"</html>", (".html", ".htm"))
CASES = Output(
    "page of `inspect`", _PAGE % CASE_PAGE, b"</html>", (".html", ".htm"), "leave it out: the sessions are printed as text"
)
MARKDOWN = Output("page of `report`", "# ", MARKDOWN_MARK.encode())
ANSWERS = Output("export of these answers", r'\{"provenance": \{', endings=(".jsonl",))
REQUESTS = Output(
    "file of requests", r'\{"custom_id": "[0-9a-f]{32}", "method": "POST", "url": "/v1/chat/completions"', endings=(".jsonl",)
)
GRID = {
    "grid.json": Output("grid", r'\{\s*"commands": \[', record=True),
    "cells.jsonl": Output("list of a grid's results", r'\{"status": "', record=True),
}
SEARCH = {
    "asked.json": Output("record of a search", r'\{\s*"settings": \{', record=True),
    "search.json": Output("record of a search", r'\{\s*"dataset": "', record=True),
    "trials.csv": Output("table of trials", r"trial,[^\n]*score,epochs_seen,best_epoch,"),
    "best.yaml": Output("best setting of a search", r"# The best setting that `tune` found"),
}
OVERVIEW = "overview"  # the name of a report's page on several datasets


def report_files(markdown: str | Path, names: Iterable[str], page: str | Path | None) -> dict[Path, Output]:
    """The files of a report on datasets whose pages have these names."""
    files = {Path(markdown) / f"{name}.md": MARKDOWN for name in names}
    return files | ({Path(page): PAGE} if page is not None else {})


def check_output(
    option: str, path: str | Path, output: Output, inputs: Iterable[str | Path | None] = (), overwrite: bool = False
) -> None:
    """Refuse a file that must not be written, before anything is done; make its folder.

    Args:
        option: that names the file or its folder.
        path: of the file.
        output: what is written.
        inputs: files, patterns of files and folders that the command reads.
        overwrite: whether a file that this package did not write may be replaced.

    Raises:
        UserError: the file is a link, a device or a pipe, a folder, an input, a record, or somebody else's, or has another ending.
    """
    path, said = Path(path), f"--{option}: {str(path)!r}"
    if path.is_dir():
        raise UserError(f"--{option}={path} is a folder; name a file in it, as {path / 'out'}{''.join(output.endings[:1])}")
    if str(path) == "-" or path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{said} is {'a link' if path.is_symlink() else 'no regular file'}; {output.instead}")
    if output.endings and path.suffix.lower() not in output.endings:
        raise UserError(f"{said} must end in {' or '.join(output.endings)}")
    if path.exists():
        _check_replaceable(said, path, output, [each for each in inputs if each], overwrite)
    make_folder(path.parent)


def _check_replaceable(said: str, path: Path, output: Output, inputs: list[str | Path], overwrite: bool) -> None:
    """Refuse to replace a file, as `check_output` says."""
    read = [Path(found) for each in inputs for found in (each, *glob.glob(str(each)))]  # noqa: PTH207  (absolute patterns too)
    if any(each.is_file() and each.samefile(path) for each in read):
        raise UserError(f"{said} is read by this command; name another file")
    if output.wrote(path):
        return
    kept = output.record or path.name in _RECORDS
    if kept or any(each.is_dir() and path.resolve().is_relative_to(each.resolve()) for each in read):
        raise UserError(f"{said} is there, and no {output.what} that this package wrote; move it away, or choose another place")
    if not overwrite:
        raise UserError(
            f"{said} is there, and no {output.what} that this package wrote; choose another place, or add --overwrite=true to replace it"
        )
