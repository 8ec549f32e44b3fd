import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm4sbr.data.sessions import drop_unseen, filter_rare, prefixes, session_names, sessionize, split

CLICKS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(0, 4000)), min_size=1, max_size=60)


def frame(clicks):
    return pd.DataFrame(clicks, columns=["user", "item", "time"]).assign(session=lambda f: f["user"])


def as_lists(sessions):
    return [group.tolist() for _, group in sessions.groupby("session", sort=False)["item"]]


def sessions_by_loop(clicks, rule, gap):
    """The rules as a person would write them down."""
    found = []
    for user in dict.fromkeys(user for user, _, _ in clicks):
        mine = sorted((click for click in clicks if click[0] == user), key=lambda click: click[2])  # sorted() is stable
        for position, (_, item, time) in enumerate(mine):
            before = mine[position - 1][2] if position else None
            if before is None:
                new = True
            elif rule == "bucket":
                new = time // gap != before // gap
            else:
                new = rule == "gap" and time - before > gap
            if new:
                found.append([])
            found[-1].append(item)
    return found


@given(CLICKS, st.sampled_from(["bucket", "gap", "user", "column"]), st.sampled_from([60, 600]))
def test_sessions_equal_a_loop_over_clicks(clicks, rule, gap):
    assert as_lists(sessionize(frame(clicks), rule, gap)) == sessions_by_loop(clicks, rule, gap)


def test_ties_in_time_keep_file_order():
    clicks = [("a", "z", 5), ("a", "y", 5), ("a", "x", 5), ("a", "w", 1)]
    assert as_lists(sessionize(frame(clicks), "user", 600)) == [["w", "z", "y", "x"]]


def filter_by_loop(sessions, min_length, min_count):
    while True:
        flat = [item for session in sessions for item in session]
        kept = [[item for item in session if flat.count(item) >= min_count] for session in sessions]
        kept = [session for session in kept if len(session) >= min_length]
        if kept == sessions:
            return kept
        sessions = kept


@given(CLICKS, st.integers(2, 3), st.integers(1, 5))
@settings(deadline=None)
def test_filtering_reaches_the_fixed_point_of_a_loop(clicks, min_length, min_count):
    sessions = sessionize(frame(clicks), "bucket", 600)
    assert as_lists(filter_rare(sessions, min_length, min_count)) == filter_by_loop(as_lists(sessions), min_length, min_count)


@given(CLICKS, st.sampled_from(["temporal", "paper"]))
def test_no_session_is_in_two_parts_and_temporal_parts_follow_each_other(clicks, how):
    sessions = sessionize(frame(clicks), "bucket", 600)
    part = split(sessions, how, (0.8, 0.1, 0.1))
    assert (pd.Series(part).groupby(sessions["session"]).nunique() == 1).all()
    ends = sessions.assign(part=part).groupby("session").agg({"time": "max", "part": "first"})
    if how == "temporal":
        for earlier, later in ((0, 1), (1, 2), (0, 2)):
            a, b = ends.loc[ends["part"] == earlier, "time"], ends.loc[ends["part"] == later, "time"]
            assert a.empty or b.empty or a.max() <= b.min()
    else:
        assert ends["part"].is_monotonic_increasing


def test_split_shares_are_those_of_hand_counting():
    sessions = frame([("a", "x", second) for number in range(100) for second in (number * 600, number * 600 + 1)])
    sessions = sessionize(sessions, "bucket", 600)
    assert np.bincount(split(sessions, "temporal", (0.8, 0.1, 0.1))[::2]).tolist() == [80, 10, 10]
    assert np.bincount(split(sessions, "temporal", (0.6, 0.3, 0.1))[::2]).tolist() == [60, 30, 10]
    assert np.bincount(split(sessions, "paper", (0.8, 0.1, 0.1))[::2]).tolist() == [80, 10, 10]


def test_items_that_train_never_saw_go_from_the_other_parts_with_sessions_that_become_too_short():
    sessions = pd.DataFrame({"session": [0, 0, 1, 1, 1, 2, 2], "owner": "u", "item": list("ababxax"), "time": 0.0})
    part = np.array([0, 0, 1, 1, 1, 2, 2], np.int8)
    kept, kept_part = drop_unseen(sessions, part, 2)
    assert as_lists(kept) == [["a", "b"], ["a", "b"]]
    assert kept_part.tolist() == [0, 0, 1, 1]


def test_an_item_that_train_clicked_but_that_is_in_no_row_of_train_is_unseen():
    sessions = pd.DataFrame({"session": [0, 0, 1, 1, 1], "owner": "u", "item": list("abcab"), "time": 0.0})
    kept, kept_part = drop_unseen(sessions, np.array([0, 0, 0, 2, 2], np.int8), 2)  # c stands alone before the cut
    assert as_lists(kept) == [["a", "b"], ["a", "b"]]
    assert kept_part.tolist() == [0, 0, 2, 2]


def test_an_unseen_test_click_takes_no_training_row_with_it():
    sessions = pd.DataFrame({"session": [0, 0, 0, 1, 1, 1, 2, 2, 2], "owner": "u", "item": list("abcabxabx"), "time": 0.0})
    kept, kept_part = drop_unseen(sessions, np.array([0, 0, 0, 0, 0, 2, 2, 2, 2], np.int8), 3)
    assert as_lists(kept) == [["a", "b", "c"], ["a", "b"]]  # the last one, all of test, is too short
    assert kept_part.tolist() == [0, 0, 0, 0, 0]


@given(st.lists(st.integers(2, 6), min_size=1, max_size=8))
def test_prefixes_equal_a_loop(lengths):
    part = np.zeros(sum(lengths), np.int8)
    rows, sizes, last = prefixes(np.array(lengths), part)
    assert list(zip(rows, sizes)) == [(n, size) for n, length in enumerate(lengths) for size in range(1, length)]
    assert list(zip(rows[last], sizes[last])) == [(n, length - 1) for n, length in enumerate(lengths)]


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=6).map(sorted), min_size=1, max_size=8))
def test_a_session_over_several_parts_has_a_last_prefix_in_each(parts):
    rows, sizes, last = prefixes(np.array(list(map(len, parts))), np.concatenate(parts))
    expected = []
    for n, own in enumerate(parts):
        ends = {part: place for place, part in enumerate(own) if place}  # a target is never the first click
        expected += [(n, place) for place in sorted(ends.values())]
    assert list(zip(rows[last], sizes[last])) == expected


@given(CLICKS, st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.2, 0.3)]))
def test_a_time_cut_puts_every_part_after_the_one_before(clicks, ratio):
    sessions = sessionize(frame(clicks), "user", 600)
    part, time = split(sessions, "time_cut", ratio), sessions["time"].to_numpy()
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        a, b = time[part == earlier], time[part == later]
        assert not len(a) or not len(b) or a.max() < b.min()


@given(CLICKS)
def test_leave_one_out_tests_the_last_click_of_each_session_and_validates_the_one_before(clicks):
    sessions = sessionize(frame(clicks), "user", 600)
    part = split(sessions, "leave_one_out", (0.8, 0.1, 0.1))
    for _, own in sessions.groupby("session", sort=False):
        count = len(own)
        expected = [0] * count if count < 3 else [0] * (count - 2) + [1, 2]
        assert part[own.index].tolist() == expected


def test_leave_one_out_is_that_of_recbole(tmp_path, monkeypatch):
    """On clicks of which every item stays in train: targets of RecBole's own `LS: valid_and_test`."""
    from recbole.data import create_dataset

    from recbole_llm4sbr.base.recbole import Config
    from recbole_llm4sbr.model.registry import model_class

    monkeypatch.setattr("sys.argv", ["python"])  # RecBole reads it

    class StockConfig(Config):
        """RecBole's, without its repair of numpy 1 names."""

        def compatibility_settings(self): ...

    rng = np.random.default_rng(5)
    clicks = [
        (f"u{user}", f"i{item}", user * 1000 + place)
        for user in range(30)
        for place, item in enumerate(rng.permutation(12)[:8])
    ]
    (tmp_path / "loo").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, click)) for click in clicks)]
    (tmp_path / "loo" / "loo.inter").write_text("\n".join(lines) + "\n")
    config = StockConfig(model=model_class("recbole.model.sequential_recommender:GRU4Rec"), dataset="loo", config_dict={
        "data_path": str(tmp_path), "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None, "gpu_id": "", "state": "ERROR",
    })  # fmt: skip
    parts = create_dataset(config).build()
    theirs = [
        sorted(
            (each.id2token("user_id", int(user)), each.id2token("item_id", int(item)))
            for user, item in zip(each["user_id"], each["item_id"])
        )
        for each in parts
    ]
    sessions = sessionize(frame(clicks), "user", 600)
    part = split(sessions, "leave_one_out", (0.8, 0.1, 0.1))
    rows, sizes, _ = prefixes(np.full(30, 8), part)
    target = rows * 8 + sizes
    ours = [
        sorted((sessions["owner"][place], sessions["item"][place]) for place in target[part[target] == number])
        for number in range(3)
    ]
    assert ours == theirs


def test_a_time_cut_has_its_shares_of_clicks():
    sessions = frame([("ab"[second % 2], "x", second) for second in range(100)]).sample(frac=1, random_state=1)
    part = split(sessionize(sessions, "user", 600), "time_cut", (0.7, 0.2, 0.1))
    assert np.bincount(part).tolist() == [70, 20, 10]


@pytest.mark.parametrize("rule", ["bucket", "gap", "user"])
def test_session_names_are_unique_even_when_users_look_like_them(rule):
    clicks = frame([("a", "x", 0), ("a", "x", 5000), ("a_1", "x", 0), ("a_1", "x", 9000), ("a_1_0", "x", 1)])
    names = session_names(sessionize(clicks, rule, 600), rule)
    assert len(set(names)) == len(names)
