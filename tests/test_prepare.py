import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import session_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.checks import check_prepared
from recbole_llm4sbr.data.clicks import NO_IDS
from recbole_llm4sbr.data.folders import part_files
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.data.sessions import PARTS


def folder_of(settings):
    return Path(settings["atomic_path"]) / settings["dataset"]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(".partial")}


def test_ml_100k_by_the_bucket_rule_has_the_known_counts(tmp_path):
    counts = prepare(load_settings(dataset="ml-100k", overrides={"atomic_path": str(tmp_path)})).counts
    assert (counts["sessions"], counts["items"], counts["clicks"]) == (6501, 1340, 98079)
    assert sum(counts["rows"].values()) == 6494


@pytest.mark.skipif("LLM4SBR_DATA" not in os.environ, reason="LLM4SBR_DATA names no folder with ml-1m and amazon-beauty")
def test_ml_1m_and_beauty_have_the_known_counts(tmp_path):
    given = {"atomic_path": str(tmp_path), "data_path": os.environ["LLM4SBR_DATA"]}
    movies = prepare(load_settings(dataset="ml-1m", overrides=given)).counts
    assert (movies["sessions"], movies["average_length"]) == (26773, 17.94)
    beauty = prepare(load_settings(dataset="amazon-beauty", overrides=given | {"split": "paper"})).counts
    assert (beauty["clicks"], beauty["items"], beauty["clicks"] - beauty["sessions"]) == (198502, 12101, 176139)


def test_rows_are_prefixes_and_their_next_click_and_the_catalogue_is_that_of_train(settings_for, raw):
    settings = settings_for(session_rule="user", MAX_ITEM_LIST_LENGTH=100)
    counts = prepare(settings).counts
    clicks = {}
    for line in (raw / "tiny" / "tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        clicks.setdefault(user, []).append(item)
    seen, ids = {}, []
    for part, file in zip(PARTS, part_files("all", "all")):
        for row, prefix, target in session_rows(folder_of(settings), "tiny", file):
            ids.append(row)
            user, _, length = row.rpartition(".")
            assert (len(prefix), clicks[user][: len(prefix) + 1]) == (int(length), [*prefix, target])
            seen.setdefault(part, set()).update(prefix, [target])
    assert len(set(ids)) == len(ids) == sum(counts["prefixes"].values())
    items = (folder_of(settings) / "tiny.item").read_text().splitlines()
    assert {line.split("\t")[0] for line in items[1:]} == seen["train"] >= seen["valid"] | seen["test"]
    assert items[0] == "item_id:token\ttitle:token_seq\tyear:token"


def test_a_second_run_changes_nothing_and_other_settings_are_refused_until_rebuild(settings_for):
    settings = settings_for()
    first = prepare(settings)
    before = {path: path.stat().st_mtime_ns for path in folder_of(settings).iterdir()}
    assert prepare(settings) == first
    assert {path: path.stat().st_mtime_ns for path in folder_of(settings).iterdir()} == before
    other = settings_for(session_rule="gap")
    with pytest.raises(UserError, match=r"session_rule was 'bucket', now 'gap'.*--rebuild"):
        prepare(other)
    with pytest.raises(UserError, match="session_rule"):
        check_prepared(other)
    assert prepare(settings_for(session_rule="gap", rebuild=True)).settings["session_rule"] == "gap"


def test_a_changed_file_is_noticed(settings_for):
    settings = settings_for()
    prepare(settings)
    with open(folder_of(settings) / "tiny.test.inter", "a") as handle:
        handle.write("x\tm1\tm2\n")
    with pytest.raises(UserError, match=r"tiny\.test\.inter.*changed"):
        check_prepared(settings)


def edited(raw, tmp_path, name, change):
    folder = tmp_path / "edited" / "tiny"
    shutil.copytree(raw / "tiny", folder, dirs_exist_ok=True)
    path = folder / name
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    return str(folder.parent)


@pytest.mark.parametrize(
    ("name", "change", "given", "says"),
    [
        ("tiny.inter", lambda t: t.replace("timestamp", "time"), {}, r"no column 'timestamp'.*--time_column"),
        ("tiny.inter", lambda t: t.replace("\t0\n", "\tnoon\n", 1), {}, r"line 2: timestamp='noon' is not a number"),
        ("tiny.inter", lambda t: t.replace("m1\t", "m 1\t", 1), {}, "white space"),
        ("tiny.inter", lambda t: t.replace(":token", ""), {}, "not a RecBole atomic file"),
        ("tiny.item", lambda t: t.replace("title", "name"), {}, r"no text column 'title'.*--item_name"),
        ("tiny.item", lambda t: t, {"min_item_count": 10**6}, r"no session is left.*--min_item_count=1000000"),
        ("tiny.item", lambda t: t, {"session_rule": "column"}, r"no column 'session_id'.*--session_column"),
        ("tiny.item", lambda t: t, {"item_text": "{title"}, "not a format"),
        ("tiny.inter", lambda t: t.replace("\t0\n", "\tinf\n", 1), {}, r"line 2: timestamp='inf' is not a number"),
        (
            "tiny.inter",
            lambda t: t.replace("\n", "\textra\n").replace("\textra", "", 1),
            {},
            r"line 2, has 4 .* cells; .* names 3",
        ),
        ("tiny.inter", lambda t: t.replace("\t0\n", "\n", 1), {}, r"line 2, has 2 .* cells; .* names 3"),
        ("tiny.inter", lambda t: t.replace("u0\t", "u\0\t", 1), {}, r"line 2, holds a NUL byte"),
        ("tiny.inter", lambda t: t.replace("m1\t", "m\r1\t", 1), {}, "white space"),
        ("tiny.inter", lambda t: t.replace("user_id", "item_id"), {}, "two columns named 'item_id'"),
        ("tiny.inter", lambda t: t.replace("m1\t", '"m1\t'), {}, "beginning of a quotation"),
        *[
            (
                "tiny.inter",
                lambda t, no=no: t.replace("m1\t", f"{no}\t"),
                {},
                f"item_id='{re.escape(no)}' is no id for RecBole, which reads it as padding",
            )
            for no in ("NA", "nan", "None", "null", "[PAD]", "N/A")
        ],
        (
            "tiny.inter",
            lambda t: t.replace("u1\t", "NULL\t"),
            {},
            "user_id='NULL' is no id for RecBole, which reads it as padding",
        ),
        ("tiny.item", lambda t: t.encode("utf-16"), {}, "is UTF-16"),
        ("tiny.inter", lambda t: gzip.compress(t.encode()), {}, "is compressed"),
        ("tiny.item", lambda t: t.replace("m3\t", "m3\tcafé ").encode("latin-1"), {}, r"line 5, is not UTF-8.*iconv"),
        ("tiny.item", lambda t: t, {"time_column": None}, "needs times"),
        ("tiny.item", lambda t: t, {"split": "given"}, r"there is no .*tiny\.train\.inter.*--split_column"),
        ("tiny.item", lambda t: t, {"split": "given", "split_column": "part"}, r"no column 'part'.*--split_column"),
        ("tiny.item", lambda t: t, {"split": "given", "split_column": "user_id"}, r"line 2: user_id='u0' is none of train"),
        ("tiny.item", lambda t: t, {"session_rule": "rows"}, r"no column 'item_id_list'.*--list_column"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(settings_for, raw, tmp_path, name, change, given, says):
    with pytest.raises(UserError, match=says):
        prepare(settings_for(data_path=edited(raw, tmp_path, name, change), **given))
    assert not (tmp_path / "atomic").exists()


def test_a_missing_dataset_names_the_folder_that_was_looked_into(settings_for):
    with pytest.raises(UserError, match=r"nowhere/tiny/tiny\.inter"):
        prepare(settings_for(data_path="nowhere"))


def test_plain_models_need_no_item_file(settings_for, raw, tmp_path):
    folder = tmp_path / "bare" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(raw / "tiny" / "tiny.inter", folder)
    settings = settings_for(data_path=str(folder.parent), llm4sbr=False)
    prepare(settings)
    assert (folder_of(settings) / "tiny.item").read_text().startswith("item_id:token\nm")
    with pytest.raises(UserError, match=r"--llm4sbr=false"):
        prepare(settings_for(data_path=str(folder.parent)))


def test_kill_at_any_moment_and_the_next_run_finishes_with_the_same_files(settings_for, tmp_path):
    settings = settings_for()
    prepare(settings)
    expected = content(folder_of(settings))
    rng = random.Random(3)
    for attempt in range(5):
        target = tmp_path / f"killed{attempt}"
        code = (
            "import json,sys,os\nfrom recbole_llm4sbr.data.prepare import prepare\n"
            "settings=json.loads(sys.argv[1])\nprint('go', flush=True)\nprepare(settings)\n"
        )
        changed = settings | {"atomic_path": str(target)}
        process = subprocess.Popen([sys.executable, "-c", code, json.dumps(changed)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
        prepare(changed)
        assert content(folder_of(changed)) == expected


def test_an_item_column_of_another_name_beside_one_called_item_id_stands_alone(settings_for, raw, tmp_path):
    folder = tmp_path / "two" / "tiny"
    folder.mkdir(parents=True)
    head, *lines = (raw / "tiny" / "tiny.inter").read_text().splitlines()
    rows = [f"{head}\tasin:token"] + [f"{line}\tA{line.split(chr(9))[1]}" for line in lines]
    (folder / "tiny.inter").write_text("\n".join(rows) + "\n")
    head, *lines = (raw / "tiny" / "tiny.item").read_text().splitlines()
    rows = [f"{head}\tasin:token"] + [f"{line}\tA{line.split(chr(9))[0]}" for line in lines]
    (folder / "tiny.item").write_text("\n".join(rows) + "\n")
    settings = settings_for(data_path=str(folder.parent), item_column="asin")
    prepare(settings)
    head, first, *_ = (folder_of(settings) / "tiny.item").read_text().splitlines()
    assert head == "title:token_seq\tyear:token\titem_id:token"
    assert first.split("\t")[2].startswith("Am")


def given_raw(tmp_path, **files):
    """A data_path with a dataset `tiny` of these files, lines as words."""
    folder = tmp_path / "own" / "tiny"
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / f"tiny.{name.replace('_', '.')}").write_text("".join("\t".join(line.split(" ")) + "\n" for line in lines))
    return str(folder.parent)


def prepared_rows(settings, *parts):
    prepare(settings)
    return session_rows(folder_of(settings), "tiny", *parts)


OWN = {"session_rule": "column", "min_item_count": 1, "llm4sbr": False}


def test_sessions_numbered_per_user_are_refused_until_both_columns_name_them(settings_for, tmp_path):
    lines = [f"{user} 1 {item} {10 * n + time}" for n, user in enumerate("abcdefghij") for time, item in enumerate("xyz")]
    data = given_raw(tmp_path, inter=["user_id:token session_id:token item_id:token timestamp:float", *lines])
    settings = settings_for(data_path=data, **OWN)
    with pytest.raises(
        UserError, match=r"session_id='1' stands beside 10 values of user_id.*--session_column=\[user_id,session_id\]"
    ):
        prepare(settings)
    settings = settings_for(data_path=data, **OWN, session_column=["user_id", "session_id"])
    rows = prepared_rows(settings, *part_files("last", "last"))
    assert sorted(rows) == [(f"{user}_1.2", ["x", "y"], "z") for user in "abcdefghij"]
    settings = settings_for(data_path=data, **OWN, user_column=None, rebuild=True, split="time_cut")
    assert {name.partition(".")[0] for name, _, _ in prepared_rows(settings, "train", "test")} == {"1"}


def test_sessions_of_two_columns_have_names_that_no_other_pair_has(settings_for, tmp_path):
    pairs = [("a_b", "c"), ("a", "b_c"), *[(f"u{n}", "s") for n in range(8)]]
    lines = [f"{user} {session} {item} {time}" for user, session in pairs for time, item in enumerate("xy")]
    data = given_raw(tmp_path, inter=["user_id:token session_id:token item_id:token timestamp:float", *lines])
    rows = prepared_rows(
        settings_for(data_path=data, **OWN, session_column=["user_id", "session_id"]), "train", "valid", "test"
    )
    assert len({name for name, _, _ in rows}) == len(rows) == len(pairs)


def test_a_log_without_times_is_in_the_order_of_its_rows(settings_for, tmp_path):
    lines = [f"s{n} {item}" for n in range(10) for item in "zyx"]
    data = given_raw(tmp_path, inter=["session_id:token item_id:token", *lines])
    settings = settings_for(data_path=data, **OWN, time_column=None)
    prepare(settings)
    found = [session_rows(folder_of(settings), "tiny", part) for part in part_files("last", "last")]
    assert [[name for name, _, _ in rows] for rows in found] == [[f"s{n}.2" for n in range(8)], ["s8.2"], ["s9.2"]]
    assert {(*prefix, target) for rows in found for _, prefix, target in rows} == {("z", "y", "x")}


def test_a_split_column_is_kept_and_nothing_is_filtered(settings_for, tmp_path):
    parts = {"a": "train", "b": "test", "c": "train", "d": "valid", "e": "train"}
    lines = [
        f"{session} {item} {time} {part}" for session, part in parts.items() for time, item in enumerate(["x", "y", f"x{part}"])
    ]
    data = given_raw(tmp_path, inter=["session_id:token item_id:token timestamp:float part:token", *lines])
    settings = settings_for(data_path=data, **OWN | {"min_item_count": 5}, split="given", split_column="part")
    prepare(settings)
    found = [session_rows(folder_of(settings), "tiny", part) for part in part_files("last", "last")]
    assert [[name for name, _, _ in rows] for rows in found] == [["a.2", "c.2", "e.2"], ["d.1"], ["b.1"]]
    assert found[0][0] == ("a.2", ["x", "y"], "xtrain")  # though items are rare
    assert found[2][0] == ("b.1", ["x"], "y")  # train never saw its third item


def test_three_files_of_clicks_are_kept_and_a_user_may_go_on_in_the_next(settings_for, tmp_path):
    head = "user_id:token item_id:token timestamp:float"
    data = given_raw(
        tmp_path,
        train_inter=[head, "u x 1", "u y 2", "v y 1", "v x 2"],
        valid_inter=[head, "u x 3"],
        test_inter=[head, "u y 4", "v y 9"],
    )
    settings = settings_for(data_path=data, llm4sbr=False, session_rule="user", split="given")
    prepare(settings)
    assert [session_rows(folder_of(settings), "tiny", part) for part in ("train", "valid", "test")] == [
        [("u.1", ["x"], "y"), ("v.1", ["y"], "x")],
        [("u.2", ["x", "y"], "x")],
        [("u.3", ["x", "y", "x"], "y"), ("v.2", ["y", "x"], "y")],
    ]
    (tmp_path / "own" / "tiny" / "tiny.train.inter").write_text("\t".join(head.split()) + "\nu\tx\t1\nu\ty\t9\n")
    with pytest.raises(UserError, match=r"session 'u': a click of train comes after one of"):
        prepare(settings | {"rebuild": True})


def test_rows_that_hold_a_list_and_an_item_are_kept_as_they_are(settings_for, tmp_path):
    """The form of the pre-split session data that RecBole offers."""
    head = "session_id:token item_id_list:token_seq item_id:token"
    folder = given_raw(tmp_path, inter=[head])
    rows = {
        "train": [("s1", ["a", "b"], "c"), ("s1", ["a"], "b"), ("s2", ["c", "a"], "a")],
        "valid": [("s3", ["b"], "a")],
        "test": [("s4", ["c", "b", "a"], "b"), ("s5", ["a"], "b")],
    }
    for part, own in rows.items():
        lines = ["\t".join([name, " ".join(clicks), item]) for name, clicks, item in own]
        (tmp_path / "own" / "tiny" / f"tiny.{part}.inter").write_text("\n".join(["\t".join(head.split()), *lines]) + "\n")
    settings = settings_for(data_path=folder, llm4sbr=False, session_rule="rows", split="given", time_column=None)
    prepare(settings)
    found = {part: session_rows(folder_of(settings), "tiny", part) for part in rows}
    assert {part: [row[1:] for row in own] for part, own in found.items()} == {
        part: [row[1:] for row in own] for part, own in rows.items()
    }
    names = [name for own in found.values() for name, _, _ in own]
    assert len(set(names)) == len(names)
    assert [name.partition("_")[0] for name in names] == [name for own in rows.values() for name, _, _ in own]


def test_after_a_time_cut_every_test_target_is_newer_than_every_click_of_train(settings_for, raw):
    settings = settings_for(session_rule="user", split="time_cut")
    prepare(settings)
    lines = [line.split("\t") for line in (raw / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    times = {}
    for user, item, at in sorted(lines, key=lambda line: int(line[2])):
        times.setdefault(user, []).append((item, int(at)))
    newest, kept = {}, kept_items(settings)
    for part, file in zip(PARTS, part_files("all", "all")):
        for name, _, target in session_rows(folder_of(settings), "tiny", file):
            user, _, length = name.rpartition(".")
            item, at = [click for click in times[user] if click[0] in kept][int(length)]
            assert item == target
            newest.setdefault(part, []).append(at)
    assert max(newest["train"]) < min(newest["valid"]) <= max(newest["valid"]) < min(newest["test"])


def kept_items(settings):
    return set(read_items(folder_of(settings) / "tiny.item")["item_id"])


def test_no_raw_file_is_ever_written_over(settings_for, raw, tmp_path):
    shutil.copytree(raw, tmp_path / "here")
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    settings = settings_for(data_path=str(tmp_path / "here"), atomic_path=str(tmp_path / "here"))
    with pytest.raises(UserError, match=r"atomic_path and data_path both mean .*--atomic_path"):
        prepare(settings)
    other = settings_for(data_path=str(tmp_path / "here"))  # a file of the user's own in the folder that is written to
    folder_of(other).mkdir(parents=True)
    (folder_of(other) / "tiny.item").write_text("mine\n")
    with pytest.raises(UserError, match=r"tiny\.item' was not made by this package"):
        prepare(other | {"rebuild": True})
    assert (folder_of(other) / "tiny.item").read_text() == "mine\n"
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def test_titles_keep_what_follows_a_carriage_return_and_a_byte_order_mark_is_no_column(settings_for, raw, tmp_path):
    def change(text):
        return "\ufeff" + text.replace("m3\t", "m3\tfirst\rsecond ", 1).replace("\n", "\r\n")

    settings = settings_for(data_path=edited(raw, tmp_path, "tiny.item", change))
    prepare(settings)
    items = read_items(folder_of(settings) / "tiny.item")
    assert list(items) == ["item_id", "title", "year"]
    assert items.set_index("item_id")["title"]["m3"].startswith("first second ")
    assert items["year"].str.len().eq(4).all()


def test_every_id_that_pandas_reads_as_missing_is_refused():
    from pandas._libs.parsers import STR_NA_VALUES

    assert {name for name in STR_NA_VALUES if name.split() == [name]} <= set(NO_IDS)
