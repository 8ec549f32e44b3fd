"""`import`: what is written is what stood in the tables, read as RecBole reads it; every mistake is one line."""

import csv
import datetime
import gzip
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_bad_input import refused

from recbole_llm4sbr import import_clicks
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.prepare import prepare

UTC = datetime.timezone.utc
CLICKS = [("ann", "a", 1700000000), ("ann", "b", 1700000060), ("bob", "a", 1700003600), ("bob", "c", 1700003605)]
TITLES = {"a": "Lamp, oak", "b": 'The "Tall" one', "c": "Vase"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_csv(name, head, rows, delimiter=","):
    with open(name, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, delimiter=delimiter).writerows([head, *rows])


def shop(head=("user_id", "item_id", "timestamp"), clicks=CLICKS, titles=TITLES):
    write_csv("clicks.csv", head, clicks)
    write_csv("items.csv", ("item_id", "title"), titles.items())
    return ["import", "clicks.csv", "--items=items.csv", "--dataset=mine"]


def visits(items, users=20):
    """Clicks on every item by each of the users, a visit of each."""
    return [(f"u{user}", item, 1000 * user + n) for user in range(users) for n, item in enumerate(items)]


def plain(name, dataset="mine", root="dataset"):
    """Lines of an atomic file as cells, the heads first; no cell is split or joined by anything but tabs and newlines."""
    lines = (Path(root) / dataset / f"{dataset}.{name}").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    rows = [line.split("\t") for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    return rows


def as_recbole(name):
    """The table as RecBole 1.2.0 reads it (`Dataset._load_feat`)."""
    return pd.read_csv(f"dataset/mine/mine.{name}", delimiter="\t", dtype=str, encoding="utf-8", engine="python")


def settings_file(dataset="mine"):
    return yaml.safe_load(Path(f"dataset/{dataset}/{dataset}.yaml").read_text())


def test_a_csv_becomes_atomic_files_by_hand(capsys):
    assert main(shop()) == 0
    assert plain("inter") == [["user_id:token", "item_id:token", "timestamp:float"], *[[u, i, str(t)] for u, i, t in CLICKS]]
    assert plain("item") == [["item_id:token", "title:token_seq"], *map(list, TITLES.items())]
    assert settings_file() == {
        "session_rule": "gap", "session_gap": 1800, "user_column": "user_id", "item_column": "item_id", "time_column": "timestamp",
        "prompt": "generic", "item_name": "{title}", "item_text": "{title}",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "columns: user=user_id, item=item_id, time=timestamp (found by name: user, item, time)" in out
    assert "mine: 4 clicks, 2 users, 3 items (3 with a title, 0 without)" in out
    assert "from 2023-11-14 22:13:20 to 2023-11-14 23:13:25 UTC" in out
    assert out.splitlines()[-1] == "next: recbole-llm4sbr --model=SRGNN --dataset=mine"


def save(frame, name):
    if name.endswith(".parquet"):
        frame.to_parquet(name)
    elif "json" in name:
        frame.to_json(name, orient="records", lines=True)
    else:
        frame.to_csv(name, sep="\t" if "tsv" in name else ";" if name.startswith("semi") else ",", index=False)
    return name


@pytest.mark.parametrize(
    "kind", ["x.csv", "semi.csv", "x.tsv", "x.jsonl", "x.ndjson", "x.parquet", "x.csv.gz", "x.jsonl.gz", "frame"]
)
def test_every_kind_of_file_and_a_data_frame_give_the_same_files(kind):
    clicks = pd.DataFrame(CLICKS, columns=["user_id", "item_id", "timestamp"])
    items = pd.DataFrame({"item_id": list(TITLES), "title": list(TITLES.values()), "price": [1.0, 2.5, 3.0]})
    import_clicks(clicks, "first", items)
    if kind == "frame":
        import_clicks(clicks.set_index(pd.Index([7, 7, 8, 9])), "mine", items.iloc[::1])
    else:
        import_clicks(save(clicks, f"clicks.{kind}" if kind[0] == "x" else kind), "mine", save(items, f"i{kind}"))
    for name in ("inter", "yaml", "item"):
        first, other = (Path(f"dataset/{dataset}/{dataset}.{name}").read_text() for dataset in ("first", "mine"))
        assert first == other.replace("1.0\n", "1\n").replace("3.0\n", "3\n")  # a CSV's numbers stay as they stand there


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda t: t, "seconds"),
        (lambda t: t * 1000, "milliseconds -> seconds"),
        (lambda t: t * 10**6, "microseconds -> seconds"),
        (lambda t: t * 10**9, "nanoseconds -> seconds"),
        (lambda t: f"{t}.0", "seconds"),
        (lambda t: datetime.datetime.fromtimestamp(t, UTC).isoformat(), "ISO dates -> seconds"),
        (lambda t: datetime.datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "ISO dates -> seconds"),
        (lambda t: datetime.datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), "ISO dates -> seconds"),
        (
            lambda t: datetime.datetime.fromtimestamp(t, UTC).replace(tzinfo=None).isoformat(" "),
            "ISO dates without a zone, taken as UTC, -> seconds",
        ),
        (
            lambda t: datetime.datetime.fromtimestamp(
                t, datetime.timezone(datetime.timedelta(hours=5, minutes=30))
            ).isoformat(),
            "ISO dates -> seconds",
        ),
    ],
)
def test_times_of_every_form_are_the_same_seconds_and_are_named(write, says, capsys):
    assert main(shop(clicks=[(user, item, write(time)) for user, item, time in CLICKS])) == 0
    assert [int(row[2]) for row in plain("inter")[1:]] == [time for _, _, time in CLICKS]
    assert f"time: {says}\n" in capsys.readouterr().out


def test_times_of_a_form_that_is_given_are_read(capsys):
    clicks = [("ann", "a", "14.11.2023 22:13:20"), ("ann", "b", "14.11.2023 22:14:20"), ("bob", "c", "01.02.2024 00:00:00")]
    assert main([*shop(clicks=clicks), "--time_format=%d.%m.%Y %H:%M:%S"]) == 0
    assert [row[-1] for row in plain("inter")[1:]] == ["1700000000", "1700000060", "1706745600"]
    assert "dates as %d.%m.%Y %H:%M:%S without a zone, taken as UTC, -> seconds" in capsys.readouterr().out
    refused([*shop(clicks=clicks), "--time_format=%d/%m/%Y"], capsys, "'14.11.2023 22:13:20' is no time of the form %d/%m/%Y")
    refused([*shop(clicks=clicks), "--time_format=%Q"], capsys, "--time_format='%Q' is no form of times")
    refused(shop(clicks=clicks), capsys, "say its form with --time_format")


def test_rows_that_cannot_be_read_are_left_out_and_counted_where_that_is_asked_for(capsys):
    bad = [
        ("ann", "b", "noon"),
        ("", "a", 1700000001),
        ("bob", "NA", 1700000002),
        ("bob", "", "never"),
        ("bob", "c", 1700000000000),
    ]
    words = shop(clicks=[bad[0], *CLICKS[:2], *bad[1:], *CLICKS[2:]])
    refused(words, capsys, "--bad_rows=drop")
    assert main([*words, "--bad_rows=drop"]) == 0
    assert "left out: 5 of 9 rows, without a readable user 1, item 2, time 2" in capsys.readouterr().out
    left = plain("inter")
    assert main([*shop(), "--overwrite=true"]) == 0
    assert plain("inter") == left
    refused(
        [*shop(clicks=bad[:1]), "--bad_rows=drop", "--overwrite=true"],
        capsys,
        "no row is readable: time (timestamp) 1 of 1 are not",
    )


def test_clicks_at_the_very_same_time_are_counted(capsys):
    days = [("ann", "a", "2024-01-01"), ("ann", "b", "2024-01-01"), ("ann", "c", "2024-01-02"), ("bob", "a", "2024-01-01")]
    assert main(shop(clicks=days)) == 0
    assert "25.0 % of the clicks have the very time of an earlier row of their user" in capsys.readouterr().out
    assert main([*shop(), "--overwrite=true"]) == 0
    assert "very time" not in capsys.readouterr().out


def test_an_items_first_title_that_is_not_empty_counts(capsys):
    words = shop()
    write_csv("items.csv", ("item_id", "title"), [("a", ""), ("b", "Vase"), ("a", "Lamp"), ("a", "Old lamp"), ("c", "")])
    assert main(words) == 0
    assert dict(row[:2] for row in plain("item")[1:]) == {"a": "Lamp", "b": "Vase", "c": ""}


def test_days_and_dates_of_a_data_frame_are_seconds():
    days = ["20240229", "20240301", "20231231", "20240101"]
    by_hand = [19782 * 86400, 19783 * 86400, 19722 * 86400, 19723 * 86400]  # days since 1970-01-01
    frame = pd.DataFrame(CLICKS, columns=["user", "item", "date"])
    for name, dates in {
        "digits": days,
        "dates": [datetime.date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in days],
        "naive": pd.to_datetime(days),
        "zoned": pd.to_datetime(days).tz_localize("UTC").tz_convert("Asia/Tokyo"),
    }.items():
        import_clicks(frame.assign(date=dates), name)
        assert [int(row[2]) for row in plain("inter", name)[1:]] == by_hand, name
    found = import_clicks(frame.assign(date=[1700000000250, 1700000000500, 1700000000000, 1700000000001]), "parts")
    assert [row[2] for row in plain("inter", "parts")[1:]] == ["1700000000.25", "1700000000.5", "1700000000", "1700000000.001"]
    assert found.span == (1700000000.0, 1700000000.5)


HOSTILE = {
    "a": "<script>alert(1)</script>",
    "b": "\x1b[31mred\x1b[0m",
    "c": '"quoted from the start',
    "d": 'in the "middle"',
    "e": "tab\there\r\nand\x0bmore\u2028lines\x85",
    "f": "x" * 10_240,
    "g": "{title} {0.__class__} %s",
    "h": "  blanks   outside ",
    "i": "naïve – 漢字 👩‍👩‍👧",
    "j": "'; DROP TABLE answers; --",
}
SHOWN = HOSTILE | {"b": "[31mred [0m", "e": "tab here and more lines", "h": "blanks outside"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_hostile_titles_stay_one_cell_each_and_keep_their_quotes(kind, capsys):
    clicks = pd.DataFrame(visits(HOSTILE), columns=["user", "item", "ts"])
    frame = pd.DataFrame(HOSTILE.items(), columns=["item", "name"])
    save(clicks, "clicks.csv")
    save(frame, f"items.{kind}")
    assert main(["import", "clicks.csv", f"--items=items.{kind}", "--dataset=mine"]) == 0
    assert {item: title.strip() for item, title in plain("item")[1:]} == SHOWN
    read = as_recbole("item")  # whose quotes would swallow lines
    assert list(read["item_id:token"]) == list(HOSTILE)
    assert {item: title.strip() for item, title in read.set_index("item_id:token")["title:token_seq"].items()} == SHOWN
    assert "\x1b" not in capsys.readouterr().out
    prepare(load_settings(dataset="mine"))
    assert any("alert(1)" in line for line in Path("atomic_data/mine/mine.item").read_text().splitlines())


def test_a_lone_surrogate_of_a_json_title_is_no_text_that_ends_the_run():
    Path("items.jsonl").write_text('{"item_id": "a", "title": "\\ud800 x"}\n{"item_id": "b", "title": null}\n')
    import_clicks(pd.DataFrame(CLICKS, columns=["user", "item_id", "ts"]), "mine", "items.jsonl")
    assert plain("item")[1:] == [["a", "x"], ["b", ""]]
    assert settings_file()["missing_item_text"] == "unknown"


def test_further_columns_are_kept_under_names_that_braces_can_hold(capsys):
    items = [
        {"item_id": item, "title": title, "Brand Name": f"B{n}", "genres": ["x", "y"], "text": "long " * 99, "more": {"a": 1}, "none": None}
        for n, (item, title) in enumerate(TITLES.items())
    ]  # fmt: skip
    Path("items.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*items, items[0] | {"item_id": "unclicked"}]))
    shop(clicks=visits(TITLES))
    assert main(["import", "clicks.csv", "--items=items.jsonl", "--dataset=mine"]) == 0
    assert plain("item")[0] == ["item_id:token", "title:token_seq", "Brand_Name:token", "genres:token"]
    assert plain("item")[2] == ["b", TITLES["b"], "B1", "x, y"]
    out = capsys.readouterr().out
    assert "kept for --item_text and --item_name: Brand_Name (was Brand Name), genres" in out
    assert "left out, being long, empty or no text: text, more, none" in out
    assert "1 further items have no click" in out
    settings = load_settings(dataset="mine", overrides={"item_text": "{title}, {Brand_Name}"})
    prepare(settings)
    assert "B1" in Path("atomic_data/mine/mine.item").read_text()


def test_titles_beside_the_clicks_make_the_items_and_the_first_of_several_counts():
    rows = [("u", "a", 1, ""), ("u", "a", 2, "Lamp"), ("u", "b", 3, "Vase"), ("u", "a", 4, "Lamp again"), ("u", "c", 5, "")]
    found = import_clicks(pd.DataFrame(rows, columns=["user", "sku", "ts", "product_name"]), "mine")
    assert plain("item")[1:] == [["a", "Lamp"], ["b", "Vase"]]
    assert (found.catalogue.titled, found.catalogue.without, found.catalogue.several) == (2, 1, 1)
    assert settings_file()["prompt"] == "products"
    assert settings_file()["missing_item_text"] == "unknown"


def test_without_titles_there_is_no_item_file_and_the_next_command_is_a_plain_model(capsys):
    write_csv("clicks.csv", ("user_id", "item_id", "timestamp"), CLICKS)
    assert main(["import", "clicks.csv", "--dataset=mine", "--data_path=my data"]) == 0
    assert not Path("my data/mine/mine.item").exists()
    assert capsys.readouterr().out.endswith("--dataset=mine '--data_path=my data' --llm4sbr=false\n")


@pytest.mark.parametrize(
    ("given", "rule", "users", "columns"),
    [
        ({}, "column", 2, ["user_id:token", "session_id:token", "item_id:token", "timestamp:float"]),
        ({"user": "null"}, "column", None, ["session_id:token", "item_id:token", "timestamp:float"]),
        ({"session": "null"}, "gap", 2, ["user_id:token", "item_id:token", "timestamp:float"]),
        ({"session": "null", "time": "null"}, "user", 2, ["user_id:token", "item_id:token"]),
        ({"session": ["who", "visit"]}, "column", 2, ["user_id:token", "session_id:token", "item_id:token", "timestamp:float"]),
    ],
)  # fmt: skip
def test_the_rule_follows_from_the_columns_and_prepare_reads_what_import_wrote(given, rule, users, columns):
    rows = [(f"u{n % 2}", f"s{n // 2 % 8}{n % 2}", item, 1000 * n) for n, item in enumerate("abcab" * 16)]
    frame = pd.DataFrame(rows, columns=["who", "visit", "item", "time"])
    found = import_clicks(frame, "mine", **({"user": "who", "session": "visit"} | given))
    assert (settings_file()["session_rule"], found.users) == (rule, users)
    assert plain("inter")[0] == columns
    settings = load_settings(dataset="mine", overrides={"llm4sbr": False, "split": "time_cut"})
    assert settings["session_rule"] == rule
    counts = prepare(settings | {"min_item_count": 1, "session_gap": 2500}).counts
    assert counts["sessions"] == (16 if rule == "column" else 2)  # one user's clicks are 2000 seconds apart


def test_sessions_by_the_new_default_are_those_of_a_loop():
    rng = random.Random(5)
    rows, sessions = [], 0
    for user in range(60):
        at = rng.randrange(10**6)
        sessions += 1
        for click in range(12):
            step = rng.choice([60, 1800, 1801, 9000]) if click else 0
            sessions += step > 1800
            at += step
            rows.append((f"u{user}", f"i{rng.randrange(5)}", at))
    import_clicks(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).sample(frac=1, random_state=1), "mine")
    settings = load_settings(dataset="mine", overrides={"llm4sbr": False})
    clicks = prepare(settings | {"min_session_length": 2}).counts
    by_user = {}
    for user, _, at in sorted(rows, key=lambda row: row[2]):
        by_user.setdefault(user, []).append(at)
    lengths = []
    for times in by_user.values():
        lengths.append(1)
        for before, now in zip(times, times[1:]):
            if now - before > 1800:
                lengths.append(0)
            lengths[-1] += 1
    assert len(lengths) == sessions
    assert clicks["sessions"] == sum(length >= 2 for length in lengths)


def test_the_same_import_again_writes_nothing_and_another_needs_overwrite(capsys):
    words = shop()
    assert main(words) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("dataset/mine").iterdir()}
    capsys.readouterr()
    assert main(words) == 0
    assert "there already, and the same" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("dataset/mine").iterdir()} == before
    shop(clicks=CLICKS[:3])
    refused(words, capsys, "mine.inter' is there and differs from what would be written")
    assert len(plain("inter")) == 5
    assert main([*words, "--overwrite"]) == 0
    assert len(plain("inter")) == 4
    assert main(["import", "clicks.csv", "--dataset=mine", "--overwrite=true"]) == 0  # no titles any more
    assert not Path("dataset/mine/mine.item").exists()


def test_a_file_of_ones_own_is_never_written_over(capsys):
    words = shop()
    Path("dataset/mine").mkdir(parents=True)
    Path("dataset/mine/mine.yaml").write_text("session_gap: 60\n")
    refused(words, capsys, "mine.yaml' is there and differs")
    assert sorted(path.name for path in Path("dataset/mine").iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_disk_that_is_full_at_any_of_the_files_leaves_those_that_were_there_or_none(fails, there, monkeypatch, capsys):
    words = shop()
    if there:
        assert main(words) == 0
    before = {path.name: path.read_bytes() for path in Path("dataset").rglob("mine.*")}
    shop(clicks=CLICKS[:3], titles={"a": "Other"})
    written = []

    def full(handle):
        written.append(handle)
        if len(written) == fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("recbole_llm4sbr.base.files.os.fsync", full)
    assert main([*words, "--overwrite=true"]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("dataset/mine").iterdir()} == before


def changed(rows, at, column, value):
    row = list(rows[at])
    row[column] = value
    return [*rows[:at], tuple(row), *rows[at + 1 :]]


MISTAKES = [
    ({"clicks": changed(CLICKS, 2, 2, "noon")}, [], "'clicks.csv', line 4: timestamp='noon' is not a number, as the other times are"),
    ({"clicks": [(u, i, "noon") for u, i, _ in CLICKS]}, [], "line 2: timestamp='noon' is not a time; write ISO 8601"),
    ({"clicks": changed([(u, i, "2024-01-01") for u, i, _ in CLICKS], 1, 2, "2024-13-01")}, [], "line 3: timestamp='2024-13-01'"),
    ({"clicks": changed(CLICKS, 1, 2, "inf")}, [], "line 3: timestamp='inf'"),
    ({"clicks": changed(CLICKS, 1, 2, "")}, [], "line 3: timestamp=''"),
    ({"clicks": changed(CLICKS, 3, 2, 1700000000000)}, [], "line 5: timestamp='1700000000000' is in milliseconds where most"),
    ({"clicks": changed(CLICKS, 1, 1, "NA")}, [], "line 3: item_id='NA' is no id for RecBole, which reads it as padding"),
    ({"clicks": changed(CLICKS, 1, 1, "[PAD]")}, [], "line 3: item_id='[PAD]'"),
    ({"clicks": changed(CLICKS, 1, 0, "null")}, [], "line 3: user_id='null'"),
    ({"clicks": changed(CLICKS, 1, 1, "b b")}, [], "line 3: item_id='b b' is empty or holds white space"),
    ({"clicks": changed(CLICKS, 1, 1, "b\tb")}, [], r"line 3: item_id='b\tb' is empty or holds white space"),
    ({"clicks": changed(CLICKS, 1, 1, "")}, [], "line 3: item_id='' is empty"),
    ({"clicks": changed(CLICKS, 1, 1, '"b')}, [], "beginning of a quotation"),
    ({"clicks": changed(CLICKS, 1, 1, "b\x1b[31m")}, [], r"line 3: item_id='b\x1b[31m' holds a control character"),
    ({"clicks": changed(CLICKS, 1, 1, "b " * 5120)}, [], "b b ...' is empty or holds white space"),
    ({"head": ("who", "item_id", "timestamp")}, [], "no column whose name says that it is the user or the session; it has who, item_id"),
    ({"head": ("user_id", "what", "timestamp")}, [], "says that it is the item; it has user_id, what, timestamp; name it with --item"),
    ({"head": ("user_id", "item_id", "when")}, [], "says that it is the time; it has user_id, item_id, when; name it with --time"),
    ({"head": ("user_id", "userId", "timestamp")}, [], "several columns that may be the user (user_id, userId); name one with --user"),
    ({"head": ("user_id", "user_id", "timestamp")}, [], "two columns named 'user_id'"),
    ({}, ["--user=user_it"], "no column 'user_it' (did you mean 'user_id'?)"),
    ({}, ["--session=a,b"], "no column 'a'"),
    ({}, ["--title=name"], "'items.csv' has no column 'name'"),
    ({}, ["--title=null"], "says that it is the title"),
    ({}, ["--items_id=title"], "all other ids stand for no clicked item"),
    ({}, ["--items_id=x"], "no column 'x'"),
    ({}, ["--items=none.csv"], "there is no file 'none.csv'"),
    ({}, ["--items=clicks.xlsx"], "'clicks.xlsx' must end in one of .csv"),
    ({}, ["--dataset=../mine"], "dataset='../mine'"),
    ({}, ["--dataset=ml-100k"], "settings come with this package"),
    ({}, ["--dataset="], "add --dataset=NAME"),
    ({}, ["--data_path=clicks.csv"], "no folder that can be written to"),
    ({}, ["--epochs=3"], "`import` has no option --epochs"),
    ({}, ["--itmes=x"], "did you mean --items"),
    ({}, ["second.csv"], "one file of clicks, not 2"),
    ({"clicks": []}, [], "holds no rows"),
    ({"titles": {}}, [], "'items.csv' holds no rows"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "words", "says"), MISTAKES, ids=[f"{n}" for n in range(len(MISTAKES))])
def test_a_mistake_is_one_line_and_nothing_is_written(made, words, says, capsys):
    own = [word.partition("=")[0] for word in words]
    given = [word for word in shop(**made) if word.partition("=")[0] not in own]
    refused([*given, *words], capsys, says)


BYTES = [
    ("c.csv", b"", "is empty"),
    ("c.csv", b"user_id,item_id,ts\nu,a,1\nu,b,2,3\n", "Expected 3 fields in line 3, saw 4"),
    ("c.csv", b"user_id,item_id,ts\nu,a,1,\nu,b,2,\n", "more cells than the first"),
    ("c.csv", b'user_id,item_id,ts\nu,"a,1\nu,b,2\n', "EOF inside string"),
    ("c.csv", b"user_id,item_id,ts\nu,a\0b,1\n", "line 2, holds a NUL byte"),
    ("c.csv", b"user_id,item_id,ts\nu,caf\xe9,1\n", "line 2, is not UTF-8"),
    ("c.csv", "user_id,item_id,ts\n".encode("utf-16"), "is UTF-16"),
    ("c.csv", b"\x1f\x8b123", "not UTF-8"),
    ("c.csv.gz", b"user_id,item_id,ts\nu,a,1\n", "cannot be read"),
    ("c.csv.gz", gzip.compress(b"user_id,item_id,ts\nu,a,1\n" * 99)[:40], "cannot be read"),
    ("c.jsonl", b'{"user_id": 1, "item_id": 2, "ts": 3}\n{"user_id": \n', "line 2, is not JSON"),
    ("c.jsonl", b"[1]\n", "line 1, is not a JSON object"),
    ("c.jsonl", b"[" * 100_000, "line 1, is not JSON"),
    ("c.jsonl", b'\n{"user_id": 1, "item_id": 2, "ts": 3}\n\n{"user_id": 1, "item_id": null, "ts": 3}\n', "line 4: item_id=''"),
    ("c.parquet", b"PAR1 no", "not a Parquet file"),
    ("c.csv", b'user_id,item_id,ts,x\nu,a,1,"two\nlines"\n\nu,b,2,\nu,NA,3,\n', "line 6: item_id='NA'"),
]


@pytest.mark.parametrize(("name", "content", "says"), BYTES, ids=[f"{n}" for n in range(len(BYTES))])
def test_a_damaged_file_is_named_with_its_line(name, content, says, capsys):
    Path(name).write_bytes(content)
    refused(["import", name, "--dataset=mine"], capsys, says)


def test_sessions_that_users_share_are_refused_until_both_columns_name_them(capsys):
    write_csv("c.csv", ("user_id", "session_id", "item_id", "ts"), [("u", 1, "a", 1), ("v", 1, "b", 2), ("v", 2, "b", 3)])
    refused(
        ["import", "c.csv", "--dataset=mine"],
        capsys,
        "session_id='1' stands beside 2 values of user_id; where sessions are numbered",
    )
    assert main(["import", "c.csv", "--dataset=mine", "--session=user_id,session_id"]) == 0
    assert settings_file()["session_column"] == ["user_id", "session_id"]
    assert "2 users, 3 sessions" in capsys.readouterr().out


def test_a_missing_pyarrow_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    Path("c.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(["import", "c.parquet", "--dataset=mine"], capsys, "pip install pyarrow")


def test_whole_numbers_stay_whole_where_some_are_missing_and_too_large_ones_are_refused():
    frame = pd.DataFrame({"user": ["u"] * 3, "item": pd.Series([1, 2, 3], dtype="Int64"), "ts": [1.0, 2.0, 3.0]})
    import_clicks(frame, "mine", pd.DataFrame({"item": [1.0, 2.0, None], "title": ["A", "B", "C"]}))
    assert plain("item")[1:] == [["1", "A"], ["2", "B"]]
    with pytest.raises(UserError, match="too large to be exact"):
        import_clicks(frame.assign(item=[2.0**60, 2.0, 3.0]), "other")
    assert not Path("dataset/other").exists()


# The dataset's own settings file.


def test_the_datasets_file_lies_between_what_is_shipped_and_what_the_user_names():
    main(shop())
    assert load_settings(dataset="mine")["session_gap"] == 1800
    Path("dataset/mine/mine.yaml").write_text("session_gap: 60\nmin_item_count: 1\nprompt: movies\n")
    Path("own.yaml").write_text("session_gap: 90\n")
    assert load_settings(dataset="mine")["session_gap"] == 60
    assert load_settings(dataset="mine", config_files=["own.yaml"])["session_gap"] == 90
    found = load_settings(dataset="mine", config_files=["own.yaml"], overrides={"session_gap": 70})
    assert (found["session_gap"], found["min_item_count"], found["prompt"]) == (70, 1, "movies")
    assert load_settings(dataset="mine", overrides={"data_path": "elsewhere"})["session_gap"] == 1800
    assert load_settings(dataset="ml-100k")["session_gap"] == 600


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("llm_url: http://elsewhere/v1\n", "sets 'llm_url', but a dataset's own file says only what the data are"),
        ("model: os:system\n", "sets 'model'"),
        ("data_path: /\n", "sets 'data_path'"),
        ("dataset: other\n", "sets 'dataset'"),
        ("result_file: x\n", "sets 'result_file'"),
        ("llm: someone/model\n", "sets 'llm'"),
        ("encoder: someone/model\n", "sets 'encoder'"),
        ("session_gapp: 3\n", "did you mean 'session_gap'"),
        ("session_gap: many\n", "mine.yaml': session_gap='many'"),
        ("session_gap: 0\n", "session_gap=0 is too small"),
        ("item_name: '{title.__class__}'\n", "braces hold a column's name"),
        ("session_gap: !!python/object/apply:os.system ['touch x']\n", "is not valid YAML"),
        ("- a\n", "must hold `key: value` lines"),
        ("\x1b: x\n", ""),
    ],
)
def test_a_datasets_file_that_says_more_than_what_the_data_are_is_refused(content, says, capsys):
    main(shop())
    capsys.readouterr()
    Path("dataset/mine/mine.yaml").write_text(content)
    for verb in (["prepare"], ["train"], []):
        refused([*verb, "--dataset=mine"], capsys, says)


def test_the_example_of_the_docs_is_imported_as_the_docs_say(capsys):
    path = Path(__file__).parents[1] / "docs" / "own_data_example.py"
    space = {"__name__": "example"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    space["main"]()
    assert main(["import", "clicks.csv", "--items=products.csv", "--dataset=mine"]) == 0
    assert "400 users, 104 items (104 with a title, 0 without)" in capsys.readouterr().out
    assert 'The "oak" lamp, 10 cm' in {row[1] for row in plain("item")}
    assert prepare(load_settings(dataset="mine")).counts["catalogue"] == 104


def test_the_readmes_commands_lead_from_files_to_recommendations(tiny_encoder, capsys):
    home = Path(__file__).parents[1]
    block = next(each for each in (home / "README.md").read_text().split("```") if "own_data_example.py" in each)
    script, *commands = [shlex.split(line, comments=True) for line in block.splitlines()[1:]]
    assert script[0] == "python"
    subprocess.run([sys.executable, str(home / script[1])], check=True)
    assert [command[0] for command in commands] == ["recbole-llm4sbr"] * 3
    for command in commands:
        trains = [f"--encoder={tiny_encoder}", "--epochs=2", "--gpu_id="] if "--model=SRGNN" in command else []
        assert main([*command[1:], *trains]) == 0
        said = capsys.readouterr().out
    head, *rows = said.splitlines()
    assert head.split() == ["rank", "item", "score", "title", "(intents:", "session_text)"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(re.search(r'The "\w+" \w+, \d+ cm$', row) for row in rows)
