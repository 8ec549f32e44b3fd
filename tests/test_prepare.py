import json
import os
import random
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
from recbole_llm4sbr.data.prepare import prepare
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
    settings = settings_for(session_targets="all", session_rule="user", session_gap=600)
    counts = prepare(settings).counts
    clicks = {}
    for line in (raw / "tiny" / "tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        clicks.setdefault(user, []).append(item)
    seen, ids = {}, []
    for part in PARTS:
        for row, prefix, target in session_rows(folder_of(settings), "tiny", part):
            ids.append(row)
            user, _, length = row.rpartition(".")
            assert (len(prefix), clicks[user][: len(prefix) + 1]) == (int(length), [*prefix, target])
            seen.setdefault(part, set()).update(prefix, [target])
    assert len(set(ids)) == len(ids) == sum(counts["rows"].values())
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
    path.write_text(change(path.read_text()))
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
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(settings_for, raw, tmp_path, name, change, given, says):
    settings = settings_for(data_path=edited(raw, tmp_path, name, change), **given)
    with pytest.raises(UserError, match=says):
        prepare(settings)
    assert not folder_of(settings).exists() or not any(folder_of(settings).iterdir())


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
    settings = settings_for(session_targets="all")
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
