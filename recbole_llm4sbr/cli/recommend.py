"""Verb `recommend`: the best items for sessions that nobody has seen."""

import importlib.util
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import write_whole
from recbole_llm4sbr.base.outputs import PARQUET_MARK, RECOMMENDATIONS, check_output
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb

if TYPE_CHECKING:
    from recbole_llm4sbr.quick_start import Recommender

log = logging.getLogger(__name__)

USAGE = """\
usage: recbole-llm4sbr recommend --checkpoint=FILE --items="Toy Story; Aladdin" [--topn=10] [--key=value ...]
       recbole-llm4sbr recommend --checkpoint=FILE --file=sessions.jsonl [--out=FILE.csv]

Ranks the items of a trained model for any session of items that training has seen. Items are named by id or whole title; --items also
takes words that one title alone holds. A file has one session per line, as ["i1", "i2"] or {"session": "s1", "items": ["i1", "i2"]}; the
answer has one line per session and item: session, rank, item, title, score, intents. --out writes it as JSON lines (.jsonl), CSV (.csv)
or Parquet (.parquet), by its ending. With --unknown=drop a file may hold items that the model does not know.

  recbole-llm4sbr recommend --checkpoint=saved/SRGNN-ml-100k/SRGNN.pth --items="Toy Story; Aladdin; Babe"
  recbole-llm4sbr recommend --checkpoint=a.pth,b.pth --weights=valid --file=sessions.jsonl --out=best.csv
  recbole-llm4sbr recommend --checkpoint=a.pth --items="50; 181" --intents=ask      the LLM is asked what the session wants
  recbole-llm4sbr recommend --checkpoint=tower.pth --items="50; 181" --cold_items=true      items that came after training too (items=text)
"""
_BATCH = 256  # sessions ranked at once


def run(arguments: Arguments) -> int:
    """Load, rank, print or write."""
    options = arguments.options
    if not options["checkpoint"]:
        raise UserError("recommend needs --checkpoint=FILE, the file that `train` named")
    if bool(options["items"]) == bool(options["file"]):
        raise UserError('recommend needs sessions: either --items="Toy Story; Aladdin" or --file=sessions.jsonl')
    if options["out"]:
        check_output("out", options["out"], RECOMMENDATIONS, [*options["checkpoint"], options["file"]], options["overwrite"])
        if _form(options["out"]) == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise UserError(
                f"writing {options['out']!r} needs pyarrow; pip install pyarrow, or name a file ending in .csv or .jsonl"
            )
    names, sessions = read_sessions(options["file"]) if options["file"] else (["0"], [split_items(options["items"])])
    settings: dict[str, Any] = dict(arguments.settings)
    named = settings.pop("model", None)
    from recbole_llm4sbr.quick_start import Recommender

    recommender = Recommender.load(options["checkpoint"], options["weights"], [named] if named else [], **settings)
    if options["items"]:
        sessions = [[recommender.catalogue.completed(each) for each in items] for items in sessions]
    if options["unknown"] == "drop":
        names, sessions = _known_alone(recommender, names, sessions)
    pieces = (
        recommender.recommend(sessions[at : at + _BATCH], options["topn"], options["intents"], names[at : at + _BATCH])
        for at in range(0, len(sessions), _BATCH)
    )
    if options["items"] and not options["out"]:
        _print_table(next(pieces))
    elif options["out"]:
        count = _write(pieces, options["out"])
        print(f"written: {options['out']}, {count:,} rows for {len(sessions):,} sessions")
    else:
        _write_lines(pieces, sys.stdout)
    return 0


def _known_alone(recommender: "Recommender", names: list[str], sessions: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The sessions without the items that the model does not know, and without those that hold no other; how many is logged.

    Raises:
        UserError: no session holds an item that it knows.
    """
    known = {text for text in {item for items in sessions for item in items} if recommender.catalogue.knows(text)}
    kept = [[item for item in items if item in known] for items in sessions]
    lost, clicks = sum(not items for items in kept), sum(map(len, sessions)) - sum(map(len, kept))
    if lost == len(sessions):
        raise UserError(f"no session holds an item that the model knows; the first is {sessions[0][0]!r}")
    if clicks:
        log.warning(
            "left out: %s items that the model does not know, and %s sessions that hold no other", f"{clicks:,}", f"{lost:,}"
        )
    return [name for name, items in zip(names, kept) if items], [items for items in kept if items]


def split_items(text: str) -> list[str]:
    """Items with semicolons between them.

    >>> split_items("Toy Story; Aladdin;")
    ['Toy Story', 'Aladdin']
    """
    return [each.strip() for each in text.split(";") if each.strip()]


def read_sessions(path: str) -> tuple[list[str], list[list[str]]]:
    """Names and items of the sessions in a file of JSON lines; a session without a name has the number of its line.

    Raises:
        UserError: the file is not there, or names the first line that is no session.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path!r}")
    names, sessions = [], []
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            items = found.get("items") if isinstance(found, dict) else found
            if not isinstance(items, list) or not items or not all(type(each) in (str, int) for each in items):
                raise UserError(
                    f'{path!r}, line {number}: {printable(line.strip()[:60])!r} is no session; write ["i1", "i2"] or '
                    f'{{"session": "s1", "items": ["i1", "i2"]}}'
                )
            names.append(str(found.get("session", number)) if isinstance(found, dict) else str(number))
            sessions.append([str(each) for each in items])
    if not sessions:
        raise UserError(f"{path!r} holds no session")
    return names, sessions


def _form(path: str) -> str:
    return Path(path).suffix.lower()


def _write(pieces: Iterable[Any], path: str) -> int:
    """Write tables of recommendations in the form that the file's ending names; how many rows."""
    if _form(path) == ".parquet":
        return _write_parquet(pieces, path)
    with write_whole(path) as handle:
        if _form(path) == ".jsonl":
            return _write_lines(pieces, handle)
        count = 0
        for number, table in enumerate(pieces):
            table.to_csv(handle, index=False, header=number == 0, lineterminator="\n")
            count += len(table)
        return count


def _write_parquet(pieces: Iterable[Any], path: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from recbole_llm4sbr.recommend.recommender import COLUMNS

    types = {"rank": pa.int64(), "score": pa.float64()}
    schema = pa.schema([(column, types.get(column, pa.string())) for column in COLUMNS], {b"written_by": PARQUET_MARK})
    count = 0
    with write_whole(path, "wb") as handle, pq.ParquetWriter(handle, schema) as writer:
        for table in pieces:
            writer.write_table(pa.Table.from_pandas(table, schema, preserve_index=False))
            count += len(table)
    return count


def _write_lines(pieces: Iterable[Any], handle: IO[str]) -> int:
    """Write tables of recommendations as JSON lines; how many."""
    count = 0
    for table in pieces:
        for row in table.itertuples(index=False):
            handle.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
        count += len(table)
    return count


def _print_table(table: Any) -> None:
    source = table["intents"].iloc[0] if len(table) else "-"
    width = max((len(str(item)) for item in table["item"]), default=4)
    print(f"rank  {'item':{width}}  {'score':>8}  title" + ("" if source == "-" else f"   (intents: {source})"))
    for row in table.itertuples():
        print(f"{row.rank:4}  {printable(row.item):{width}}  {row.score:8.3f}  {printable(row.title)}")


VERB = Verb(
    "recommend",
    "the best items for any session, by a trained model or several",
    USAGE,
    run,
    (
        Option("checkpoint", "file that `train` named; several, with commas, are an ensemble", None, "names"),
        Option("items", "one session: ids or titles in click order, with semicolons between them"),
        Option("file", "sessions, one JSON line each"),
        Option("topn", "items per session", 10, "whole", least=1),
        Option(
            "intents",
            "ask (the LLM), stored (answers that are there, else nearest), nearest (those of the nearest training session), none",
            "stored",
            choices=("ask", "stored", "nearest", "none"),
        ),
        Option("weights", "of several checkpoints: equal, valid, or a number for each, as [0.3,0.7]", "equal", "value"),
        Option(
            "unknown",
            "items that the model does not know: error (the first is named), drop (they are left out and counted)",
            "error",
            choices=("error", "drop"),
        ),
        Option("out", "write to this file: JSON lines (.jsonl), CSV (.csv) or Parquet (.parquet)"),
        OVERWRITE,
    ),
    takes_files=False,
)
