"""Verb `import`: own data in one command."""

import shlex
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.wording import duration, percent, printable
from recbole_llm4sbr.cli.parsing import Arguments, Option, Verb

if TYPE_CHECKING:
    from recbole_llm4sbr.data.importing import Imported

_TIED = 0.05  # share of clicks at the very time of an earlier one that is worth a line
USAGE = """\
usage: recbole-llm4sbr import CLICKS --dataset=NAME [--items=ITEMS] [--user=COLUMN] [--item=COLUMN] [--time=COLUMN] ...

Makes a dataset of a click log and, for the LLM, of a table with the items' titles; every other verb then takes --dataset=NAME alone.
CLICKS has a row per click, ITEMS a row per item: CSV, TSV, JSON lines (.jsonl) or Parquet. It writes RecBole's raw atomic files
<data_path>/NAME/NAME.inter and NAME.item, and NAME.yaml with what it knows of the data, all of them or none.

  recbole-llm4sbr import clicks.csv --items=products.csv --dataset=mine
  recbole-llm4sbr import views.jsonl --items=meta.parquet --dataset=mine --item=asin --items_id=parent_asin
  recbole-llm4sbr import log.csv --dataset=mine --session=visit --user=null         sessions that no user is known of
  recbole-llm4sbr import log.csv --dataset=mine --session=user_id,session_id        sessions that are numbered per user
  recbole-llm4sbr import log.csv --dataset=mine --time_format='%d.%m.%Y %H:%M' --bad_rows=drop

Columns with usual names (user_id, customerId, product_id, asin, event_time, ts, session_id, title, name, ...) are found, and what was
found is printed. Times may be ISO 8601 with or without a zone, dates of 8, 12 or 14 digits, a spreadsheet's days, or numbers of seconds,
milliseconds, microseconds or nanoseconds, and lie between 1990 and tomorrow; others need --time_format. A click without a readable time or
id is an error that names its line; with --bad_rows=drop such clicks are left out.
With a session column a session is what it says (session_rule=column); without one, a pause of more than 30 minutes ends a session
(session_rule=gap, session_gap=1800), which --session_rule and --session_gap of every verb change.
"""


def run(arguments: Arguments) -> int:
    """Import, and say what was found and what to type next."""
    options = dict(arguments.options)
    if len(arguments.words) != 1:
        raise UserError(f"import needs one file of clicks, not {len(arguments.words)}, as `import clicks.csv --dataset=mine`")
    if not options["dataset"]:
        raise UserError("import needs a name for the dataset; add --dataset=NAME")
    if options["session"] is not None and len(options["session"]) == 1:
        (options["session"],) = options["session"]
    from recbole_llm4sbr.data.importing import import_clicks

    found = import_clicks(arguments.words[0], **options)
    for line in describe(found, options["data_path"]):
        print(line)
    return 0


def describe(found: "Imported", data_path: str) -> Iterator[str]:
    """What was imported, a line each, and the next command."""
    columns = ", ".join(f"{role}={printable(column)}" for role, column in found.columns.items())
    guessed = f" (found by name: {', '.join(found.guessed)})" if found.guessed else ""
    yield f"columns: {columns}{guessed}"
    others = ", ".join(map(printable, found.coarser))
    yield f"time: {found.times}" + (f"; {others} holds the same times, less finely" if others else "")
    texts = found.catalogue
    if texts is None:
        yield "no column of titles: only plain models train on this; --items=FILE or --title=COLUMN adds titles for the LLM"
    else:
        yield f"titles: {printable(texts.title_column)} by {printable(texts.id_column)} of {printable(texts.name)}"
        if texts.kept:
            shown = (new if new == old else f"{new} (was {printable(old)})" for old, new in texts.kept)
            yield f"kept for --item_text and --item_name: {', '.join(shown)}"
        if texts.left_out:
            yield f"left out, being long, empty or no text: {', '.join(map(printable, texts.left_out))}"
        if texts.several:
            yield f"{texts.several:,} items have several rows or titles; the first is taken"
        if texts.missing:
            titles = ", ".join(f"{printable(title)} (of {count:,} items)" for title, count in texts.missing.items())
            yield f"taken as missing titles: {titles}"
    users = "" if found.users is None else f", {found.users:,} users"
    sessions = "" if found.sessions is None else f", {found.sessions:,} sessions"
    titled = "" if texts is None else f" ({texts.titled:,} with a title, {texts.without:,} without)"
    unclicked = (
        f"; {texts.unclicked:,} further items have no click: ranked with --cold_items=true alone"
        if texts and texts.unclicked
        else ""
    )
    yield f"{found.dataset}: {found.clicks:,} clicks{users}{sessions}, {found.items:,} items{titled}{unclicked}"
    total = sum(found.dropped.values())
    rows = found.clicks + total + (found.duplicates if found.duplicates_dropped else 0)
    if found.dropped:
        roles = ", ".join(f"{role} {count:,}" for role, count in found.dropped.items())
        yield f"left out: {total:,} of {rows:,} rows, without a readable {roles}"
    if found.duplicates:
        what = f"{found.duplicates:,} of {rows:,} rows, the very click of an earlier row (the same {_ids(found)} and time)"
        yield f"left out: {what}" if found.duplicates_dropped else f"kept: {what}; --duplicates=drop leaves them out"
    if found.tied >= _TIED:
        whose = "session" if found.users is None else "user"
        yield (
            f"{percent(found.tied)} of the clicks have the very time of an earlier row of their {whose}: they are taken in the order of "
            f"the rows, which a test then tests too"
        )
    if found.span is not None:
        yield f"from {_date(found.span[0])} to {_date(found.span[1])} UTC"
    yield f"sessions: {_rule(found)}"
    names = ", ".join(str(found.folder / name) for name in found.files)
    yield f"{'written' if found.fresh else 'there already, and the same'}: {names}"
    words = ["recbole-llm4sbr", "--model=SRGNN", f"--dataset={found.dataset}"]
    words += [] if Path(data_path) == Path(schema()["data_path"].default) else [f"--data_path={data_path}"]
    yield f"next: {shlex.join([*words, *(['--llm4sbr=false'] if texts is None else [])])}"


def _ids(found: "Imported") -> str:
    """The ids of a click, in words."""
    return ", ".join(role for role in ("user", "session", "item") if role in found.columns)


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # beyond the calendar
        return f"{seconds:g} s"


def _rule(found: "Imported") -> str:
    """How sessions will be made, in words."""
    rule = found.settings["session_rule"]
    if rule == "gap":
        gap = found.settings["session_gap"]
        return f"a pause of more than {duration(gap)} ends one (session_rule=gap, session_gap={gap}; --session_gap changes it)"
    return "as the session column says (session_rule=column)" if rule == "column" else "one per user (session_rule=user)"


VERB = Verb(
    "import",
    "own data, CSV, TSV, JSON lines or Parquet -> a dataset that every verb takes by its name",
    USAGE,
    run,
    (
        Option("dataset", "the name under which other verbs find the data"),
        Option("items", "file with a row per item: its id and its title, and other columns that --item_text may name"),
        Option("user", "column of the clicks; null: there is none"),
        Option("item", "column of the clicks"),
        Option("time", "column of the clicks; null: the rows are in the order of time"),
        Option("session", "column of the clicks, several with commas between them; null: there is none", None, "names"),
        Option("title", "column of the items, or of the clicks without --items; null: there is none"),
        Option(
            "time_format",
            "how times are written, where neither ISO 8601 nor numbers, as '%d.%m.%Y %H:%M' (Python's strptime); or the unit of numbers: "
            "seconds, milliseconds, microseconds, nanoseconds or days. Times so read need not lie between 1990 and tomorrow",
        ),
        Option(
            "bad_rows",
            "clicks without a readable time or id: error (the first is named), drop (they are left out and counted)",
            "error",
            choices=("error", "drop"),
        ),
        Option(
            "duplicates",
            "rows of the very same user, session, item and time as an earlier one, which logs have that write a click twice: keep or "
            "drop; both count them",
            "keep",
            choices=("keep", "drop"),
        ),
        Option("items_id", "the id's column of the items, where it has another name than in the clicks"),
        Option("data_path", "folder of raw datasets", schema()["data_path"].default),
        Option("overwrite", "replace other files of this dataset", False, "flag"),
    ),
    words="CLICKS",
    takes_settings=False,
)
