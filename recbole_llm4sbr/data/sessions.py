"""From clicks to sessions, prefixes and splits (paper section 5.1.1); pure, vectorised functions on data frames.

A frame of clicks has the columns `user`, `item`, `time` (seconds) and, under `session_rule=column`, `session`. Clicks of one user at
the same time keep the order of the file.
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
        clicks: user, item, time and for `column` session, in file order.
        rule: `bucket` (one user's clicks in one window of `gap` seconds), `gap` (a longer pause ends a session), `user`, `column`.
        gap: seconds.

    Returns:
        The columns session (a number from 0 on; sessions in the order of their user's first appearance, then in time), owner (the
        user, for `column` the session's own value), item, time; sorted by session, then time, then file order.
    """
    owner = clicks["session"] if rule == "column" else clicks["user"]
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
    return pd.DataFrame(
        {
            "session": np.cumsum(new) - 1,
            "owner": owner.to_numpy()[order],
            "item": clicks["item"].to_numpy()[order],
            "time": time,
        }
    )


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
    """The part of every click: 0 train, 1 valid, 2 test. A session is in one part only.

    `temporal`: by the time a session ends (its last click; ties in session order), in the shares of `ratio`. `paper`: the first 90 %
    of the sessions in user order train and the last ninth of these validates, the rest tests; so 80 : 10 : 10.
    """
    number = pd.factorize(sessions["session"])[0]
    count = int(number.max()) + 1 if len(number) else 0
    if how == "temporal":
        end = np.full(count, -np.inf)
        np.maximum.at(end, number, sessions["time"].to_numpy())
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


def drop_unseen(
    sessions: pd.DataFrame, part: npt.NDArray[np.int8], min_length: int
) -> tuple[pd.DataFrame, npt.NDArray[np.int8]]:
    """Drop from valid and test the items that train never saw, and then the sessions that are too short.

    Train sessions are left as they are; they were filtered before.
    """
    item = pd.factorize(sessions["item"])[0]
    seen = np.zeros(item.max() + 1 if len(item) else 0, bool)
    seen[item[part == 0]] = True
    keep = seen[item]
    number = pd.factorize(sessions["session"])[0]
    keep &= np.bincount(number[keep], minlength=number.max() + 1 if len(number) else 0)[number] >= min_length
    return sessions[keep].reset_index(drop=True), part[keep]


def prefixes(lengths: Numbers, targets: str) -> tuple[Numbers, Numbers]:
    """Which prefixes of sessions of the given lengths become rows.

    Returns:
        Session index and prefix length of every row; the target is the item after the prefix. `last`: the longest prefix of each
        session; `all`: every prefix from one click on.

    >>> [each.tolist() for each in prefixes(np.array([2, 4]), "all")]
    [[0, 1, 1, 1], [1, 1, 2, 3]]
    """
    if targets == "last":
        return np.arange(len(lengths)), lengths - 1
    rows = np.repeat(np.arange(len(lengths)), lengths - 1)
    starts = np.cumsum(lengths - 1) - (lengths - 1)
    return rows, np.arange(len(rows)) - starts[rows] + 1


def session_names(sessions: pd.DataFrame, rule: str) -> npt.NDArray[np.str_]:
    """A unique name per session, in order: its owner, for `bucket` and `gap` with the running number of the owner's sessions."""
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
