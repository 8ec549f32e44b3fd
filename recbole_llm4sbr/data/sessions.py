"""From clicks to sessions, prefixes and splits (paper section 5.1.1); pure, vectorised functions on data frames.

A frame of clicks has the columns `user`, `item`, `time` (seconds), under `session_rule=column` or `rows` also `session`, and under
`split=given` also `part`. Clicks of one user at the same time keep the order of the file.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

PARTS = ("train", "valid", "test")
Numbers = npt.NDArray[np.int64]


def sessionize(clicks: pd.DataFrame, rule: str, gap: float) -> pd.DataFrame:
    """Tie every click to a session.

    Args:
        clicks: in file order.
        rule: `bucket` (one user's clicks in one window of `gap` seconds), `gap` (a longer pause ends a session), `user`, `column`, `rows`.
        gap: seconds.

    Returns:
        The columns session (a number from 0 on; sessions in the order of their user's first appearance, then in time), owner (the
        user, for `column` and `rows` the session's own name), item, time, and part where it was given; sorted by session, then time,
        then file order.
    """
    owner = clicks["session"] if rule in ("column", "rows") else clicks["user"]
    who = pd.factorize(owner)[0].astype(np.int64)  # numbers in order of first appearance
    time = clicks["time"].to_numpy(np.float64)
    order = np.lexsort((time, who))  # stable: equal times keep file order
    who, time = who[order], time[order]
    new = np.r_[True, who[1:] != who[:-1]] if len(who) else np.zeros(0, bool)
    if rule == "bucket":
        window = np.floor(time / gap)
        new[1:] |= window[1:] != window[:-1]
    elif rule == "gap":
        new[1:] |= np.diff(time) > gap
    found = {
        "session": np.cumsum(new) - 1,
        "owner": owner.to_numpy()[order],
        "item": clicks["item"].to_numpy()[order],
        "time": time,
    }
    return pd.DataFrame(found | ({"part": clicks["part"].to_numpy()[order]} if "part" in clicks else {}))


def filter_rare(sessions: pd.DataFrame, min_length: int, min_count: int) -> pd.DataFrame:
    """Drop items with fewer than `min_count` clicks and sessions shorter than `min_length`, until nothing changes."""
    session = pd.factorize(sessions["session"])[0]
    item = pd.factorize(sessions["item"])[0]
    kept = np.arange(len(sessions))
    while len(kept):
        frequent = np.bincount(item[kept])[item[kept]] >= min_count
        long_enough = np.bincount(session[kept[frequent]], minlength=session.max() + 1)[session[kept]] >= min_length
        keep = frequent & long_enough
        if keep.all():
            break
        kept = kept[keep]
    return sessions.iloc[kept].reset_index(drop=True)


def split(sessions: pd.DataFrame, how: str, ratio: tuple[float, float, float]) -> npt.NDArray[np.int8]:
    """The part of every click: 0 train, 1 valid, 2 test.

    A session is in one part only under `temporal` (by the time it ends, its last click; ties in session order; in the shares of
    `ratio`) and `paper` (the first 90 % of the sessions in user order train and the last ninth of these validates, the rest tests; so
    80 : 10 : 10). Under `time_cut` a click's own time decides, so that every click of valid is newer than all of train, and every click
    of test newer than all of valid; `ratio` are the shares of clicks, and clicks at the same time stay together. `leave_one_out`: of each
    session the last click tests, the one before validates, the others train; a session of two clicks trains. `given` is the column part.
    """
    if how == "given":
        given: npt.NDArray[np.int8] = sessions["part"].to_numpy(np.int8)
        return given
    time = sessions["time"].to_numpy()
    if how == "time_cut":
        ordered = np.sort(time)
        cuts = [ordered[max(round(len(ordered) * share) - 1, 0)] for share in (ratio[0], ratio[0] + ratio[1])]
        by_time: npt.NDArray[np.int8] = np.searchsorted(cuts, time).astype(np.int8)
        return by_time
    number = pd.factorize(sessions["session"])[0]
    count = int(number.max()) + 1 if len(number) else 0
    if how == "leave_one_out":
        lengths = np.bincount(number, minlength=count)
        behind = np.cumsum(lengths)[number] - 1 - np.arange(len(number))  # clicks that follow in the session
        last_two: npt.NDArray[np.int8] = np.where(lengths[number] > 2, np.maximum(2 - behind, 0), 0).astype(np.int8)
        return last_two
    if how == "temporal":
        end = np.full(count, -np.inf)
        np.maximum.at(end, number, time)
        order = np.argsort(end, kind="stable")
        bounds = [round(count * ratio[0]), round(count * (ratio[0] + ratio[1]))]
    else:
        order = np.arange(count)
        train = int(count * 0.9)
        bounds = [train - train // 9, train]
    part = np.empty(count, np.int8)
    for name, rows in enumerate(np.split(order, bounds)):
        part[rows] = name
    chosen: npt.NDArray[np.int8] = part[number]
    return chosen


def is_trained(sessions: pd.DataFrame, part: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Of every click whether some row of train holds its item; a single click of a session before a cut makes no row."""
    item = pd.factorize(sessions["item"])[0]
    number = pd.factorize(sessions["session"])[0]
    train = part == 0
    in_row = train & (np.bincount(number[train], minlength=number.max() + 1 if len(number) else 0)[number] > 1)
    seen = np.zeros(item.max() + 1 if len(item) else 0, bool)
    seen[item[in_row]] = True
    found: npt.NDArray[np.bool_] = seen[item]
    return found


def drop_unseen(
    sessions: pd.DataFrame, part: npt.NDArray[np.int8], min_length: int
) -> tuple[pd.DataFrame, npt.NDArray[np.int8]]:
    """Drop the items that no row of train holds, and then the sessions that are too short and have no row of train.

    What is trained stays as it is: a test click must not decide on it.
    """
    number = pd.factorize(sessions["session"])[0]
    count = number.max() + 1 if len(number) else 0
    keep = is_trained(sessions, part)
    has_row = np.bincount(number[part == 0], minlength=count)[number] > 1
    keep &= has_row | (np.bincount(number[keep], minlength=count)[number] >= min_length)
    return sessions[keep].reset_index(drop=True), part[keep]


def prefixes(lengths: Numbers, part: npt.NDArray[np.int8]) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
    """The prefixes of sessions that may become rows; a row's target is the click after the prefix, and its part is that click's.

    Args:
        lengths: clicks of each session, [S].
        part: of each click, sessions one after the other, [N].

    Returns:
        Session index and prefix length of every row, and whether its target is the session's last click in that part.

    >>> [each.tolist() for each in prefixes(np.array([2, 4]), np.array([0, 0, 0, 0, 0, 2]))]
    [[0, 1, 1, 1], [1, 1, 2, 3], [True, False, True, True]]
    """
    rows = np.repeat(np.arange(len(lengths)), lengths - 1)
    starts = np.cumsum(lengths - 1) - (lengths - 1)
    sizes = np.arange(len(rows)) - starts[rows] + 1
    session = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.r_[(session[1:] != session[:-1]) | (part[1:] != part[:-1]), True]
    return rows, sizes, ends[np.arange(len(rows)) + rows + 1]  # the target's place among all clicks


def session_names(sessions: pd.DataFrame, rule: str) -> npt.NDArray[np.str_]:
    """A unique name per session, in order: its owner; for `bucket` and `gap` with the running number of the owner's sessions."""
    first = sessions.drop_duplicates("session")
    names = first["owner"].astype(str)
    if rule in ("bucket", "gap"):
        names = names + "_" + first.groupby("owner", sort=False).cumcount().astype(str)
    found: npt.NDArray[np.str_] = names.to_numpy(str)
    return found


def counts(sessions: pd.DataFrame) -> Mapping[str, Any]:
    """Sessions, items, clicks and average length."""
    number = int(sessions["session"].nunique())
    return {
        "sessions": number,
        "items": int(sessions["item"].nunique()),
        "clicks": len(sessions),
        "average_length": round(len(sessions) / max(number, 1), 2),
    }
