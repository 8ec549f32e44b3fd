"""Times of a log: every usual form is the same seconds, and what is no clock's time or of another unit is named, never misread."""

import datetime
from pathlib import Path

import pandas as pd
import pytest
from test_bad_input import refused
from test_import import plain, write_csv

from recbole_llm4sbr import import_clicks
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.prepare import prepare

UTC = datetime.timezone.utc
TIMES = [1700000040, 1700000100, 1700003640, 1600000020]  # whole minutes


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def log(times, head=("user_id", "item_id", "timestamp")):
    """A log of a user's clicks at these times, and the command that imports it."""
    cells = [time if isinstance(time, tuple) else (time,) for time in times]
    write_csv("clicks.csv", head, [("ann", f"i{n}", *each) for n, each in enumerate(cells)])
    return ["import", "clicks.csv", "--dataset=mine"]


def seconds():
    return [float(row[-1]) for row in plain("inter")[1:]]


def date(second):
    return datetime.datetime.fromtimestamp(second, UTC)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda t: date(t).strftime("%Y%m%d%H%M%S"), "dates of 14 digits -> seconds"),
        (lambda t: date(t).strftime("%Y%m%d%H%M"), "dates of 12 digits -> seconds"),
        (lambda t: date(t).strftime("%Y%m%d%H%M") + ".0", "dates of 12 digits -> seconds"),
        (lambda t: (date(t) - datetime.datetime(1899, 12, 30, tzinfo=UTC)) / datetime.timedelta(1), "a spreadsheet's days -> seconds"),
        (lambda t: (date(t) - datetime.datetime(1, 1, 1, tzinfo=UTC)) // datetime.timedelta(microseconds=1) * 10, ".NET ticks -> seconds"),
        (lambda t: f"{t:.18e}", "seconds"),  # as numpy.savetxt writes it
    ],
)  # fmt: skip
def test_dates_of_digits_days_of_spreadsheets_and_ticks_are_the_same_seconds_and_are_named(write, says, capsys):
    assert main(log(map(write, TIMES))) == 0
    assert seconds() == TIMES
    out = capsys.readouterr().out
    assert f"time: {says}\n" in out
    assert "from 2020-09-13 12:27:00 to 2023-11-14 23:14:00 UTC" in out


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([20231114, 20231399, 20231115], "line 3: timestamp='20231399' is no date, as the other times are (dates of 8 digits)"),
        ([20231114221320, 20231314221320], "line 3: timestamp='20231314221320' is no date, as the other times are (dates of 14"),
        ([1700000000, 1700000001, 0], "line 4: timestamp='0' lies outside 1990 to tomorrow, where the times are seconds"),
        ([1700000000, 7900000000], "line 3: timestamp='7900000000' lies outside 1990 to tomorrow"),
        ([1700000000, 1700000000, 20231114221320], "line 4: timestamp='20231114221320' is in dates of 14 digits where most"),
        ([133444736000000000], "line 2: timestamp='133444736000000000' lies outside 1990 to tomorrow as seconds, milliseconds"),
        (["2023-11-14", "1970-01-01"], "line 3: timestamp='1970-01-01' lies outside 1990 to tomorrow"),
        (["1.70E+12", "1.70E+12"], "line 2: timestamp='1.70E+12' is a number that a spreadsheet rounded; format the column as text"),
    ],
)  # fmt: skip
def test_a_time_that_no_log_has_is_named_with_its_line_and_can_be_left_out(times, says, capsys):
    words = log(times)
    refused(words, capsys, says)
    good = [time for time in times if f"={time!r} " not in says and f"='{time}' " not in says]
    if good:
        assert main([*words, "--bad_rows=drop"]) == 0
        assert len(seconds()) == len(good)
        assert min(seconds()) > datetime.datetime(2023, 11, 13, tzinfo=UTC).timestamp()


def test_dates_of_a_data_frame_that_were_made_with_a_wrong_unit_are_refused():
    frame = pd.DataFrame({"user": ["u"], "item": ["a"], "time": pd.to_datetime([1700000000000])})  # as nanoseconds: 1970
    with pytest.raises(UserError, match=r"time='1970-01-01 00:28:20' lies outside 1990 to tomorrow.*--time_format"):
        import_clicks(frame, "mine")


@pytest.mark.parametrize(
    ("times", "form", "by_hand"),
    [
        ([0, 1500, 90000], "milliseconds", [0, 1.5, 90]),
        ([1, 2, 11], "days", [86400, 172800, 950400]),
        ([45000, 45001], "seconds", [45000, 45001]),
        ([300000000, 300000001], "seconds", [300000000, 300000001]),
        (["1969-12-31", "1970-01-02"], "%Y-%m-%d", [-86400, 86400]),
    ],
)
def test_a_unit_or_a_form_that_is_given_takes_any_time(times, form, by_hand):
    assert main([*log(times), f"--time_format={form}"]) == 0
    assert seconds() == by_hand


def test_a_form_that_is_neither_signs_nor_a_unit_is_refused_with_the_units(capsys):
    refused([*log(TIMES), "--time_format=weeks"], capsys, "seconds, milliseconds, microseconds, nanoseconds, days")


def test_numbers_too_small_for_a_clock_are_taken_as_seconds_and_the_summary_says_so(capsys):
    assert main(log([0, 30, 50000, 86400])) == 0
    assert seconds() == [0, 30, 50000, 86400]
    out = capsys.readouterr().out
    assert "time: numbers from 0 to 86400, too small for a clock's, taken as seconds (--time_format names another unit)" in out
    assert "UTC" not in out


def test_of_two_columns_of_the_same_times_the_finer_is_taken_and_the_summary_says_so(capsys):
    rows = [(date(time).strftime("%Y-%m-%d"), 1000 * time) for time in TIMES]
    assert main(log(rows, head=("user_id", "item_id", "date", "timestamp"))) == 0
    assert seconds() == TIMES
    assert "time: milliseconds -> seconds; date holds the same times, less finely\n" in capsys.readouterr().out
    assert main([*log(rows, head=("user_id", "item_id", "date", "timestamp")), "--time=date", "--overwrite"]) == 0
    assert seconds() == [time // 86400 * 86400 for time in TIMES]
    assert "less finely" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        (("date", "time"), lambda t: (date(t).strftime("%Y-%m-%d"), date(t).strftime("%H:%M:%S"))),  # they belong together
        (("created_at", "timestamp"), lambda t: (date(t - 10**7).isoformat(), t)),  # the account's, perhaps
        (("date", "time"), lambda t: (t // 86400 - 19000, t % 86400)),  # numbers of which nothing is known
    ],
)
def test_two_columns_of_different_times_are_refused_until_one_is_named(head, cells, capsys):
    refused(
        log(map(cells, TIMES), ("user_id", "item_id", *head)), capsys, f"may be the time ({', '.join(head)}); name one with"
    )


# A raw .inter file, which `prepare` reads.


def prepared(write, **overrides):
    """The prepared files of twelve users' clicks, three an hour and a half apart and one a minute later, at times so written."""
    folder = Path("dataset/mine")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(12):
        for place, time in enumerate((0, 5400, 10800, 10860)):
            lines.append(f"u{user}\ti{(user + place) % 5}\t{write(86400 * user + time)}")
    (folder / "mine.inter").write_text("\n".join(lines) + "\n")
    given = {"llm4sbr": False, "min_item_count": 1, "session_rule": "gap", "rebuild": True} | overrides
    made = prepare(load_settings(dataset="mine", overrides=given))
    return {name: (made.path.parent / name).read_text() for name in made.files}


def test_seconds_that_count_from_the_logs_beginning_make_the_sessions_of_the_same_log_in_clock_time():
    by_clock = prepared(lambda t: 1_700_000_000 + t)
    assert prepared(lambda t: t) == prepared(lambda t: f"{t}.0") == by_clock
    assert (
        sum(
            text.count("\n") - 1
            for name, text in by_clock.items()
            if name.endswith(("train.inter", "valid.inter", "test.inter"))
        )
        == 12
    )  # a session of two each


@pytest.mark.parametrize(
    "write",
    [
        lambda t: 300_000_000 + t,
        lambda t: 2_500_000_000 + t,
        lambda t: (500_000_000 if t < 4 * 86400 else 1_700_000_000) + t,
    ],
    ids=["1979", "2049", "1985 and 2023"],
)
def test_old_and_planned_times_of_a_raw_file_are_seconds_since_import_writes_them_where_it_is_told_to(write):
    assert prepared(write) == prepared(lambda t: t)


FORMS = [
    (
        lambda t: 1000 * (1_700_000_000 + t),
        "the column holds milliseconds; write seconds since 1970, or since the first click: divide by 1,000",
    ),
    (lambda t: 10**6 * (1_700_000_000 + t), "the column holds microseconds"),
    (lambda t: 10**9 * (1_700_000_000 + t), "the column holds nanoseconds"),
    (lambda t: 638355968000000000 + 10**7 * t, "the column holds .NET ticks"),
    (lambda t: date(1_700_000_000 + t).strftime("%Y%m%d%H%M%S"), "the column holds dates of 14 digits"),
    (lambda t: date(1_700_000_000 + t).strftime("%Y%m%d%H%M"), "the column holds dates of 12 digits"),
    (lambda t: date(1_700_000_000 + t).strftime("%Y%m%d"), "the column holds dates of 8 digits"),
    (lambda t: 45244.9 + t / 86400, "the column holds a spreadsheet's days"),
]


@pytest.mark.parametrize(("write", "says"), FORMS)
def test_raw_times_of_another_unit_are_refused_where_pauses_are_measured_and_order_clicks_elsewhere(write, says):
    for rule in ("gap", "bucket"):
        with pytest.raises(UserError) as error:
            prepared(write, session_rule=rule)
        assert f"line 2: timestamp='{write(0)}' is no second: {says}" in str(error.value)
    assert prepared(write, session_rule="user") == prepared(lambda t: t, session_rule="user")


@pytest.mark.parametrize("rule", ["gap", "user"])
@pytest.mark.parametrize(
    ("stray", "says"),
    [
        (
            1_700_000_000_000,
            "line 4: timestamp='1700000000000' is in milliseconds where most times are in seconds; use one unit",
        ),
        (0, "line 4: timestamp='0' lies outside 1990 to tomorrow, where the times are seconds; write seconds since 1970"),
        (
            133444736000000000,
            "line 4: timestamp='133444736000000000' lies outside 1990 to tomorrow, where the times are seconds",
        ),
        ("1.7E+09", "line 4: timestamp='1.7E+09' is a number that a spreadsheet rounded"),
    ],
)
def test_a_raw_time_of_another_unit_than_the_others_is_named_with_its_line(rule, stray, says):
    with pytest.raises(UserError) as error:
        prepared(lambda t: stray if t == 10800 else 1_700_000_000 + t, session_rule=rule)
    assert says in str(error.value)
