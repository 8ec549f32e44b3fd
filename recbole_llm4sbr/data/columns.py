"""Which columns of a table from elsewhere are the user, the session, the item, the time and the title."""

import difflib
import re
from collections.abc import Sequence

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.data.tables import Table
from recbole_llm4sbr.data.times import finest

# Names without their case and signs: user_id, UserID and userId are one. Those of products choose the prompt.
PRODUCTS = ("asin", "productid", "product", "sku", "articleid", "productname", "producttitle")
MOVIES = ("movieid", "movie", "movietitle")
_NAMES = {
    "user": ("userid", "user", "uid", "username", "customerid", "customer", "clientid", "visitorid", "memberid", "reviewerid"),
    "session": ("sessionid", "session", "visitid", "usersession"),
    "item": ("itemid", "item", "iid", *PRODUCTS[:5], *MOVIES[:2], "bookid", "songid", "trackid", "newsid"),
    "time": ("timestamp", "time", "ts", "date", "datetime", "createdat", "eventtime", "clickedat", "unixreviewtime"),
    "title": ("title", "name", "itemname", "itemtitle", *PRODUCTS[5:], *MOVIES[2:], "booktitle"),
}
NONE = "null"  # given as a column: there is none


def plain(name: str) -> str:
    """A column's name without case and signs.

    >>> plain("User_ID"), plain("movieId")
    ('userid', 'movieid')
    """
    return re.sub(r"[\W_]", "", name.casefold())


def guess(table: Table, role: str, also: Sequence[str] = ()) -> str | None:
    """The column whose name says that it is the user, the session, the item, the time or the title; None where none says so.

    Of several that hold the same times, as days and as milliseconds, it is the finest.

    Args:
        table: where to look.
        role: what is looked for, and the option that names it.
        also: further names, taken where none of the usual ones is there.

    Raises:
        UserError: several columns have such a name.
    """
    for names in (_NAMES[role], also):
        found = [column for column in table.columns if plain(column) in names]
        chosen = finest(table, found) if role == "time" and len(found) > 1 else None
        if len(found) > 1 and chosen is None:
            shown = ", ".join(printable(column) for column in found)
            raise UserError(f"{table.name} has several columns that may be the {role} ({shown}); name one with --{role}=COLUMN")
        if found:
            return chosen or found[0]
    return None


def coarser(table: Table, time: str) -> tuple[str, ...]:
    """The other columns whose names say that they are the time, where `guess` took this one for it."""
    return tuple(column for column in table.columns if plain(column) in _NAMES["time"] and column != time)


def choose(table: Table, role: str, given: str | None) -> str | None:
    """The column that was given, None for `null`; else the one that `guess` finds.

    Raises:
        UserError: the given one is not there, or several have such a name.
    """
    if given is None:
        return guess(table, role)
    return None if given == NONE else named(table, role, given)


def named(table: Table, option: str, column: str) -> str:
    """A column that was given.

    Raises:
        UserError: it is not there.
    """
    if column in table.columns:
        return column
    near = difflib.get_close_matches(column, table.columns, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(
        f"{table.name} has no column {column!r}{hint}; it has {table.listed()}; name the right one with --{option}=COLUMN"
    )


def missing(table: Table, what: str, options: str) -> UserError:
    """The error for a column that no name gives away."""
    return UserError(f"{table.name} has no column whose name says that it is {what}; it has {table.listed()}; {options}")


def columns_of_clicks(
    table: Table, user: str | None, item: str | None, time: str | None, session: str | Sequence[str] | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The columns of the clicks by role (session, session_2, ... where several name one), and the roles that were guessed.

    Raises:
        UserError: a column that is not there or not obvious.
    """
    if isinstance(session, str) or session is None:
        sessions = [choose(table, "session", session)]
    else:
        sessions = [named(table, "session", column) for column in session]
    found = {"user": choose(table, "user", user)}
    found |= {f"session_{number}" if number > 1 else "session": column for number, column in enumerate(sessions, 1)}
    found |= {"item": choose(table, "item", item), "time": choose(table, "time", time)}
    if found["user"] is None and found["session"] is None:
        raise missing(table, "the user or the session", "name it with --user=COLUMN or --session=COLUMN")
    if found["item"] is None:
        raise missing(table, "the item", "name it with --item=COLUMN")
    if found["time"] is None and time != NONE:
        raise missing(
            table, "the time", f"name it with --time=COLUMN, or --time={NONE} where the rows are in the order of time"
        )
    given = {"user": user, "session": session, "item": item, "time": time}
    columns = {role: column for role, column in found.items() if column is not None}
    return columns, tuple(role for role in columns if role in given and given[role] is None)
