"""Files, names and texts from elsewhere: they are refused in one line or shown harmlessly, and nothing outside the folder is touched."""

import errno
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
import yaml
from conftest import file_of
from test_bad_input import refused

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import write_whole
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.intent.llm_intents import FAILURES, STORE
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.store import Answer, AnswerStore
from recbole_llm4sbr.report.page import report

MARKUP = '"><img src=x onerror=alert(1)>'


@pytest.fixture
def line(tiny, tmp_path, monkeypatch):
    """Words of a command line over prepared files in `tmp_path / "atomic"`."""
    monkeypatch.chdir(tmp_path)
    Path("given.yaml").write_text(yaml.safe_dump(dict(tiny)))
    return ["--config_files=given.yaml"]


@pytest.fixture
def grid(given, tmp_path, monkeypatch):
    """A folder `out` with a finished grid."""
    monkeypatch.chdir(tmp_path)
    settings = given | {"atomic_path": "atomic"}
    compare({"Comparison": ["plain", "session_text"]}, ["SRGNN"], ["tiny"], 1, settings, "out", 0)
    return Path("out")


@pytest.mark.parametrize(
    "content",
    [
        "- a\n- b\n",
        "a: [",
        "just words",
        b"\xff\xfe",
        "1: x\n",
        "epochs: 2020-01-01\n",
        "split_ratio: {1: 2}\n",
        "? [a]\n: b\n",
    ],
)
def test_a_file_of_settings_of_another_shape_is_refused(content, line, capsys):
    Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["--config_files=given.yaml,bad.yaml"], capsys, "")


TEMPLATE = {
    "system": "s",
    "background": "b",
    "item": "{number}. {name}",
    "task": "{qualifier}",
    "views": {"long": {"qualifier": "q"}},
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"task": "{qualifierr}"}, "task"), ({"task": 7}, "task"), ({"task": "no question"}, "task"), ({"task": "{"}, "task"),
        ({"item": "{0}"}, "item"), ({"item": "{name.x}"}, "item"), ({"item": "nothing"}, "item"), ({"item": None}, "item"),
        ({"background": ["b"]}, "background"), ({"system": 1}, "system"), ({"joint": "{view}"}, "joint"),
        ({"answer_start": 3}, "answer_start"),
        ({"views": {"long": {"qualifier": "q", "window": 0}}}, "window"),
        ({"views": {"long": {"qualifier": "q", "window": "x"}}}, "window"),
        ({"views": {"long": {"qualifier": 7}}}, "qualifier"), ({"views": {"long": "q"}}, "view"), ({"views": []}, "view"),
        ({"views": {1: {"qualifier": "q"}}}, "view"), ({"more": "x"}, "more"),
    ],
)  # fmt: skip
def test_a_template_of_another_shape_is_refused(changed, says, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(TEMPLATE))
    assert PromptTemplate.load(str(path)).build(["Heat"], "long").user == "b\n1. Heat\nq"
    path.write_text(yaml.safe_dump(TEMPLATE | changed))
    with pytest.raises(UserError, match=says):
        PromptTemplate.load(str(path))


def corrupt(path):
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda store: store.write_bytes(b"no database"),
        lambda store: (store.unlink(), store.mkdir()),
        corrupt,
        lambda store: sqlite3.connect(store).executescript("DROP TABLE answers"),
        lambda store: sqlite3.connect(store).executescript("PRAGMA user_version=99"),
    ],
)
def test_a_damaged_answer_store_is_named(harm, line, tiny, capsys):
    path = Path(tiny["atomic_path"]) / STORE
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=DELETE")
    harm(path)
    assert main(["infer", *line, "--views=[long,short,normal]"]) == 2
    (said,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert "answer" in said


def test_a_folder_where_the_failures_go_is_named(line, tiny, capsys):
    file_of(tiny, FAILURES).mkdir()
    assert main(["infer", *line, "--views=[long,short,normal]"]) == 2
    assert FAILURES in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["log", "log_tensorboard"])
def test_a_file_where_logs_go_is_named_before_training(name, line, capsys):
    Path(name).write_text("mine")
    refused(["train", *line], capsys, name)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "7", '{"provenance": 1}', '{"provenance": {"model": 1, "decoding": {}}}\n[1, 2]', "\x00", "[" * 100_000],
)
def test_a_file_that_holds_no_answers_is_not_imported(content, line, tmp_path, capsys):
    Path("in.jsonl").write_text(content)
    assert main(["answers", "import", "--file=in.jsonl", "--atomic_path=atomic"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_disk_is_one_line_that_says_what_is_safe(line, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recbole_llm4sbr.training.trainer.torch.save", full)
    assert main(["train", *line]) == 2
    assert "the disk is full" in capsys.readouterr().err.splitlines()[-1]


def test_what_nobody_foresaw_is_one_line_with_the_path_of_its_traceback(line, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*_):
        raise RuntimeError("never\nseen \x1b[31m before")

    monkeypatch.setattr("recbole_llm4sbr.training.run.fit", broken)
    assert main(["train", *line]) == 70
    err = capsys.readouterr().err
    said = err.splitlines()[-1]
    assert said.startswith("error: RuntimeError: never seen [31m before; a fault of this program")
    assert "Traceback" not in err
    (log,) = tmp_path.glob("recbole_llm4sbr-*.log")
    assert log.name in said
    assert "in broken" in log.read_text()
    assert main(["train", *line, "--verbose"]) == 70
    assert "in broken" in capsys.readouterr().err


def test_a_name_with_markup_is_text_on_the_page(grid):
    value = json.loads((grid / "grid.json").read_text())
    for cell in value["cells"]:
        cell.update(dataset=MARKUP.replace("/", ""), about=f"about {MARKUP}")
        cell["variant"] += f"</script>{MARKUP}"
    value["commands"] = [f"compare {MARKUP}"]
    (grid / "grid.json").write_text(json.dumps(value))
    report([grid], "md", "page.html")
    page = Path("page.html").read_text()
    assert "img src=x" in page  # it is shown ...
    assert "<img" not in page  # ... as text
    assert '</script>"' not in page


def test_a_foreign_grid_writes_no_file_outside_its_folder(grid, capsys):
    value = json.loads((grid / "grid.json").read_text())
    for cell in value["cells"]:
        cell["dataset"] = "../../x"
    (grid / "grid.json").write_text(json.dumps(value))
    before = sorted(Path("..").resolve().rglob("*.md"))
    with pytest.raises(UserError, match=r"dataset='\.\./\.\./x'"):
        report([grid], "md/deep/er", None)
    assert sorted(Path("..").resolve().rglob("*.md")) == before


@pytest.mark.parametrize(
    "content", ["{}", "null", "[]", '{"cells": 7, "commands": []}', '{"cells": [{}], "commands": []}', "\x00", b"\xff"]
)
def test_a_grid_of_another_shape_is_named(content, grid, capsys):
    (grid / "grid.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", "out"]) == 2
    assert "grid.json" in capsys.readouterr().err


def test_a_truncated_file_of_ranks_is_named_and_made_anew(grid, given, capsys):
    path = next((grid / "ranks").iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    assert main(["report", "out"]) == 2
    assert path.name in capsys.readouterr().err
    compare({"Comparison": ["plain", "session_text"]}, ["SRGNN"], ["tiny"], 1, given | {"atomic_path": "atomic"}, "out", 0)
    assert main(["report", "out"]) == 0


@pytest.mark.parametrize("url", ["http://me:hunter2@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=hunter2"])
def test_a_password_in_an_address_is_refused_and_written_nowhere(url, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"--{key}={value}" for key, value in (given | {"atomic_path": "atomic", "llm_backend": "openai"}).items()]
    for verb in (["compare", "--models=SRGNN", "--datasets=tiny"], ["infer", "--dataset=tiny"], ["--dataset=tiny"]):
        assert main([*verb, *words, f"--llm_url={url}"]) == 2
    captured = capsys.readouterr()
    assert "OPENAI_API_KEY" in captured.err
    assert "hunter2" not in captured.err + captured.out
    assert not any("hunter2" in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


def test_titles_and_models_cannot_command_the_terminal(line, tiny, raw, tmp_path, capsys):
    folder = tmp_path / "raw" / "tiny"
    folder.mkdir(parents=True)
    for name in ("tiny.inter", "tiny.item"):
        text = (raw / "tiny" / name).read_text()
        (folder / name).write_text(text.replace("\tred ", "\t\x1b[2Jred ").replace("\tnew ", "\t\x1b]0;x\x07new "))
    assert (
        main(["infer", *line, f"--data_path={tmp_path / 'raw'}", "--rebuild=true", "--dry_run=true", "--atomic_path=other"])
        == 0
    )
    store = AnswerStore("other/answers.sqlite")
    store.put([(b"k", Answer("x"))], store.source("evil \x1b[31m", {}, "t"))
    store.close()
    assert main(["answers", "stats", "--atomic_path=other"]) == 0
    captured = capsys.readouterr()
    assert "an example" in captured.out
    assert "evil" in captured.out
    assert "\x1b" not in captured.out + captured.err
    assert "\x07" not in captured.out


def test_what_killed_writers_left_goes_and_that_of_others_stays(tmp_path):
    old = time.time() - 3600
    left, own, fresh = (tmp_path / f".page.html.{pid}.partial" for pid in (2**22 + 1, os.getppid(), 2**22 + 2))
    for path in (left, own, fresh):
        path.write_text("half")
    for path in (left, own):
        os.utime(path, (old, old))
    with write_whole(tmp_path / "page.html") as handle:
        handle.write("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([own.name, fresh.name, "page.html"])


def test_a_catalogue_smaller_than_the_largest_cutoff_is_refused(line, capsys):
    refused(["train", *line, "--topk=[5,31]", "--valid_metric=MRR@5"], capsys, "only 30 items can be ranked")


def test_a_dataset_without_any_text_is_refused(line, raw, tmp_path, capsys):
    folder = tmp_path / "raw" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.inter").write_text((raw / "tiny" / "tiny.inter").read_text())
    (folder / "tiny.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"m{n}\t\n" for n in range(30)))
    words = [f"--data_path={tmp_path / 'raw'}", "--atomic_path=other", "--missing_item_text=unknown", "--item_text={title}"]
    assert main(["infer", *line, *words]) == 2
    assert "no item has a 'title'" in capsys.readouterr().err.splitlines()[-1]
