"""The texts of imported items, from a table of items or from titles that stand beside the clicks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.cells import ROUNDED, as_text, column_name, has_control, is_missing, is_rounded, one_line
from recbole_llm4sbr.data.clicks import id_problem
from recbole_llm4sbr.data.columns import choose, guess, missing, named
from recbole_llm4sbr.data.tables import Table

_ID_ALSO = ("id", "parentasin")  # in a table of items these are the item's id, if no better name is there
SHORT = 200  # characters of a text that is kept as a column


@dataclass(frozen=True)
class Catalogue:
    """The texts of items.

    Attributes:
        rows: cells of the `.item` file, the first row its heads, then an item each: clicked ones, and those of `unclicked`.
        id_column, title_column: in the table that they were read from.
        titled: clicked items with a title.
        without: clicked items without one.
        unclicked: items of the table that have a title and no click; they are written too (`cold_items`).
        several: items with more than one row, of which the first is taken.
        missing: titles that are none but what programs write for a missing value, as nan or NULL, with the items that have them.
        kept: further columns by the name under which they were written.
        left_out: further columns that were not, since they are long, no text, or empty.
        name: what messages call the table.
    """

    rows: Sequence[tuple[str, ...]]
    id_column: str
    title_column: str
    titled: int
    without: int
    unclicked: int
    several: int
    missing: Mapping[str, int]
    kept: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    name: str


def read_catalogue(
    table: Table, clicked: pd.Series, item: str, title: str | None, items_id: str | None, own: bool
) -> Catalogue | None:
    """The texts of the clicked items.

    Args:
        table: of the items, or of the clicks.
        clicked: item ids of all clicks.
        item: the id's column in the clicks.
        title: the title's column; None: found by its name, "null": there is none.
        items_id: the id's column in a table of items; None: `item`, or found by its name.
        own: whether the table is one of items.

    Returns:
        None where there are no titles.

    Raises:
        UserError: a column that is not there or not obvious, or an id that stands for no clicked item in all of the table.
    """
    title_column = choose(table, "title", title)
    if title_column is None:
        if own:
            raise missing(table, "the title", "name it with --title=COLUMN, or leave out --items")
        return None
    id_column = _id_column(table, item, items_id) if own else item
    ids = as_text(table.frame[id_column]).str.strip()
    known = pd.unique(clicked)
    is_known = ids.isin(set(known))
    if own and (rounded := ids.map(is_rounded)).any():
        row = int(rounded.argmax())
        table.refuse(row, id_column, ids[row], ROUNDED)
    texts = as_text(table.frame[title_column])
    no_title = is_missing(texts)
    missing_titles = ids[no_title].groupby(texts[no_title].str.strip()).nunique().to_dict()
    texts = texts.mask(no_title, "")
    filled = texts.str.strip() != ""
    order = np.argsort(~filled, kind="stable")  # an item's first row with a title, else its first
    chosen = pd.Series(False, ids.index)
    chosen.iloc[order] = ~ids.iloc[order].duplicated().to_numpy()
    first, further = chosen & is_known, pd.Series(False, ids.index)
    if own:
        further = chosen & ~is_known & _can_stand(ids, texts)
    else:
        first &= filled
    if not first.any():
        table.refuse(0, id_column, ids[0], "and all other ids stand for no clicked item; name the id's column with --items_id")
    rows_chosen = np.flatnonzero((first | further).to_numpy())
    titles = one_line(texts.iloc[rows_chosen])
    heads, columns = ["item_id:token", "title:token_seq"], [ids.iloc[rows_chosen].tolist(), titles]
    kept: dict[str, str] = {}
    left_out = []
    for column in table.columns if own else ():
        if column in (id_column, title_column):
            continue
        cells = _short_texts(table.frame[column].iloc[rows_chosen])
        if cells is None:
            left_out.append(column)
            continue
        kept[column] = column_name(column, ["item_id", "title", *kept.values()])
        heads.append(f"{kept[column]}:token")
        columns.append(cells)
    titled = sum(map(bool, titles)) - int(further.sum())
    rows = [tuple(heads), *zip(*columns)]
    repeated = int(ids[is_known & ids.duplicated()].nunique()) if own else _retitled(ids, texts)
    return Catalogue(
        rows, id_column, title_column, titled, len(known) - titled, int(further.sum()), repeated, missing_titles,
        tuple(kept.items()), tuple(left_out), table.name,
    )  # fmt: skip


def _short_texts(values: pd.Series) -> list[str] | None:
    """A further column as texts; None where it is long, empty or no text."""
    if any(isinstance(value, dict) for value in values):
        return None
    try:
        texts = as_text(values)
    except UserError:  # bytes that are no text, or numbers that are not exact
        return None
    cells = one_line(texts.mask(is_missing(texts), ""))
    return cells if 0 < max(map(len, cells)) <= SHORT else None


def _can_stand(ids: pd.Series, titles: pd.Series) -> npt.NDArray[np.bool_]:
    """Which items an atomic file can hold with a title; those without a click are written only then."""
    pairs = zip(ids, one_line(titles))
    return np.array([bool(title) and not id_problem(token) and not has_control(token) for token, title in pairs], bool)


def _id_column(table: Table, item: str, items_id: str | None) -> str:
    if items_id is not None:
        return named(table, "items_id", items_id)
    if item in table.columns:
        return item
    found = guess(table, "item", _ID_ALSO)
    if found is None:
        raise missing(table, "the item's id", "name it with --items_id=COLUMN")
    return found


def _retitled(ids: pd.Series, texts: pd.Series) -> int:
    """How many items have several titles in the clicks."""
    titles = texts.str.strip()
    named_rows = titles != ""
    return int((titles[named_rows].groupby(ids[named_rows]).nunique() > 1).sum())
