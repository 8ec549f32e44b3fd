"""Files that commands write: they replace what this package wrote there before, and nothing else that anybody may miss."""

import json
import os
import shutil
from pathlib import Path

import pytest

from recbole_llm4sbr.base import outputs
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import sha256_file
from recbole_llm4sbr.base.outputs import Output, check_output
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import VERBS, main
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.intent.store import Answer, AnswerStore
from recbole_llm4sbr.recommend.cases_page import page
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

MINE = "<!doctype html>\n<title>a page of mine</title>\n"
FOREIGN = [
    "mine\n",
    MINE,
    '{"session": "s1", "items": ["i1"]}\n',
    "session,item\n1,2\n",
    '{"a": 1}\n',
    "PAR1 mine PAR1",
    "# mine\n",
]
KINDS = {name: each for name, each in vars(outputs).items() if isinstance(each, Output)}


def world(folder):
    """All files below a folder with what is in them; of a link, where it points."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_this_package_did_not_write_stays_unless_that_is_asked_for(tmp_path, name, content):
    path = tmp_path / f"mine{(*KINDS[name].endings, '.md')[0]}"
    path.write_text(content)
    with pytest.raises(UserError, match="add --overwrite=true"):
        check_output("out", path, KINDS[name])
    check_output("out", path, KINDS[name], overwrite=True)
    path.write_text("")  # nothing is lost
    check_output("out", path, KINDS[name])
    assert path.read_text() == ""


@pytest.mark.parametrize("name", KINDS)
def test_links_devices_pipes_folders_and_inputs_are_refused_whatever_is_typed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    ending = (*KINDS[name].endings, ".md")[0]
    (tmp_path / f"target{ending}").write_text("")
    (tmp_path / f"link{ending}").symlink_to(f"target{ending}")
    (tmp_path / f"broken{ending}").symlink_to("nowhere")
    (tmp_path / f"folder{ending}").mkdir()
    os.mkfifo(tmp_path / f"pipe{ending}")
    os.link(f"target{ending}", f"hard{ending}")
    before = sorted(tmp_path.iterdir())
    read = [None, "gone.pth", tmp_path / f"target{ending}"]
    for path, said in (
        (f"link{ending}", "is a link"),
        (f"broken{ending}", "is a link"),
        (f"folder{ending}", "is a folder"),
        (f"pipe{ending}", "is no regular file"),
        ("/dev/null", "is no regular file"),
        ("/dev/stdout", "is a link|is no regular file"),
        ("-", "is no regular file"),
        (f"./target{ending}", "is read by this command"),
        (f"hard{ending}", "is read by this command"),
    ):
        with pytest.raises(UserError, match=said):
            check_output("out", path, KINDS[name], read, overwrite=True)
    with pytest.raises(UserError, match="is read by this command"):
        check_output("out", f"target{ending}", KINDS[name], ["targ*"], overwrite=True)
    assert sorted(tmp_path.iterdir()) == before


def test_a_record_and_what_stands_among_inputs_are_never_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    for path in ("infer.json", "prepare.json", "data/config.json"):
        (tmp_path / path).write_text("{}")
        with pytest.raises(UserError, match=r"choose another place$"):
            check_output("result_file", tmp_path / path, outputs.RESULT, [tmp_path / "data"], overwrite=True)
    (tmp_path / "data/result.json").write_text('{\n  "best_valid_score": 1')
    check_output("result_file", tmp_path / "data/result.json", outputs.RESULT, [tmp_path / "data"])


@pytest.fixture(scope="module")
def home(given, made, tmp_path_factory):
    """A folder with raw and prepared files, a checkpoint `a.pth`, a session file and the settings of all that."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(made, folder / "atomic")
    shutil.copytree(Path(given["data_path"]), folder / "raw")
    own = {"atomic_path": str(folder / "atomic"), "data_path": str(folder / "raw"), "checkpoint_dir": str(folder / "saved")}
    settings = load_settings(dataset="tiny", overrides=given | own | {"llm4sbr": False, "epochs": 1})
    shutil.copy(train(settings).checkpoint, folder / "a.pth")
    (folder / "s.jsonl").write_text('["m1", "m2"]\n')
    (folder / "mine.html").write_text(MINE)
    (folder / "given.json").write_text(json.dumps(dict(settings), default=list))  # JSON is YAML
    AnswerStore(folder / "atomic" / "answers.sqlite").close()
    return folder


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    for name in ("r.json", "r.jsonl", "r.csv", "r.parquet", "r.html"):
        Path(name).write_text("mine\n")
        Path(f"link{Path(name).suffix}").symlink_to(name)
    return Path.cwd()


RECOMMEND = ["recommend", "--checkpoint=a.pth", "--file=s.jsonl"]
INSPECT = ["inspect", "--checkpoints=a.pth", "--random=1"]
TRAIN = ["train", "--config_files=given.json", "--atomic_path=atomic", "--data_path=raw"]
EXPORT, REQUESTS = ["answers", "export", "--atomic_path=atomic"], ["answers", "requests", "--config_files=given.json"]


@pytest.mark.parametrize(
    ("command", "option", "places"),
    [
        (RECOMMEND, "out", ["a.pth", "s.jsonl", "raw/tiny/tiny.inter", "link.csv", "r.csv", "r.jsonl", "r.parquet", "/dev/null", "-"]),
        (INSPECT, "html", ["a.pth", "mine.html", "r.html", "link.html", "raw/tiny/tiny.item", "/dev/null", "-"]),
        (TRAIN, "result_file", ["a.pth", "r.json", "link.json", "given.json", "atomic/tiny/prepare.json", "/dev/null"]),
        (TRAIN[1:], "result_file", ["a.pth", "r.json", "atomic/tiny/prepare.json", "raw/tiny/tiny.inter"]),
        (["ensemble", "a.pth"], "result_file", ["a.pth", "r.json", "link.json", "/dev/null"]),
        (REQUESTS, "file", ["atomic/answers.sqlite", "r.jsonl", "s.jsonl", "link.jsonl", "/dev/null", "-"]),
    ],
)  # fmt: skip
def test_no_command_writes_over_what_it_did_not_write(here, capsys, command, option, places):
    before = world(here)
    for place in places:
        assert main([*command, f"--{option}={place}"]) == 2, place
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: --{option}: '{place}'"), place
        assert world(here) == before, place


def test_overwrite_replaces_a_file_of_mine_but_no_input(here, capsys):
    assert main([*RECOMMEND, "--out=r.csv", "--overwrite=true"]) == 0
    assert Path("r.csv").read_text().startswith("session,rank,item,title,score,intents\n")
    assert main([*RECOMMEND, "--out=s.jsonl", "--overwrite=true"]) == 2
    assert main([*INSPECT, "--html=r.html", "--overwrite"]) == 0
    assert main([*INSPECT, "--html=r.html"]) == 0  # it is the package's now
    assert main([*TRAIN, "--result_file=r.json"]) == 2
    assert main([*TRAIN, "--result_file=r.json", "--overwrite=true"]) == 0
    assert main(["ensemble", "a.pth", "--result_file=r.json"]) == 0
    assert main([*TRAIN, "--result_file=given.json", "--overwrite=true"]) == 2
    assert "is read by this command" in capsys.readouterr().err.splitlines()[-1]


def test_an_export_replaces_an_earlier_one_of_the_same_answers_alone(here, capsys):
    store = AnswerStore("atomic/answers.sqlite")
    for model in ("cheap", "dear"):
        store.put([(bytes([len(model)] * 16), Answer(f"of {model}"))], store.source(model, {"n": 1}, "generic"))
    before, count = store.path.read_bytes(), len(store)
    export = [*EXPORT, "--llm=dear"]
    assert main([*export, "--file=dear.jsonl"]) == 0
    assert main([*export, "--file=dear.jsonl"]) == 0
    kept = sha256_file("dear.jsonl")
    for place in ("atomic/answers.sqlite", "r.jsonl", "link.jsonl", "s.jsonl", "/dev/null"):
        assert main([*export, f"--file={place}"]) == 2, place
    assert main([*EXPORT, "--llm=cheap", "--file=dear.jsonl"]) == 2
    assert "no export of these answers that this package wrote" in capsys.readouterr().err
    assert sha256_file("dear.jsonl") == kept
    assert store.path.read_bytes() == before
    assert len(store) == count
    store.close()


@pytest.fixture(scope="module")
def grid(home, given, tmp_path_factory):
    """A folder with a finished grid."""
    folder = tmp_path_factory.mktemp("grid") / "out"
    settings = json.loads((home / "given.json").read_text()) | {"model": "SRGNN"}
    settings.pop("dataset")
    compare({"Comparison": ["plain"]}, ["SRGNN"], ["tiny"], 1, settings, folder, 0)
    return folder


GRID = ["compare", "--variants=plain", "--seeds=1", "--workers=0", "--config_files=given.json"]
TUNE = ["tune", "--config_files=given.json", "--trials=1"]


@pytest.mark.parametrize("name", ["report.html", "tiny.md", "grid.json", "cells.jsonl"])
def test_a_grid_leaves_files_of_mine_in_its_folder_and_trains_nothing(here, capsys, name):
    Path("out").mkdir()
    (Path("out") / name).write_text("mine\n")
    before = world(here)
    for verb in (GRID, ["ablate", "--tables=components", *GRID[2:]]):
        assert main([*verb, "--out=out"]) == 2
        assert f"--out: 'out/{name}' is there, and no " in capsys.readouterr().err
    assert world(here) == before


@pytest.mark.parametrize("name", ["report.html", "tiny.md", "asked.json", "search.json", "trials.csv", "best.yaml"])
def test_a_search_leaves_files_of_mine_in_its_folder(here, capsys, name):
    Path("out").mkdir()
    (Path("out") / name).write_text("mine\n")
    before = world(here)
    assert main([*TUNE, "--out=out"]) == 2
    assert f"--out: 'out/{name}' is there, and no " in capsys.readouterr().err
    assert world(here) == before


def test_a_report_replaces_a_report_and_writes_nothing_where_a_file_of_mine_stands_in_its_way(grid, here, capsys):
    Path("case.html").write_text(page([], "cases"))
    command = ["report", str(grid), "--markdown=md", "--html=md/page.html"]
    for _ in range(2):
        assert main([*command, "--case=case.html"]) == 0
    written = world(here)
    for html in ("mine.html", "case.html", "r.html", "link.html", "/dev/null", "-"):
        assert main([*command, f"--html={html}"][:3] + [f"--html={html}", "--case=case.html"]) == 2, html
        assert world(here) == written, html
    assert main([*command[:3], "--html=case.html", "--case=case.html", "--overwrite=true"]) == 2
    assert "is read by this command" in capsys.readouterr().err
    Path("md/tiny.md").write_text("# my own notes\n")
    assert main(command) == 2
    assert Path("md/tiny.md").read_text() == "# my own notes\n"
    assert main([*command, "--overwrite=true"]) == 0
    assert "my own notes" not in Path("md/tiny.md").read_text()
    assert main(["report", str(grid), "--markdown=-"]) == 2
    assert not Path("-").exists()


def test_a_grid_is_gone_on_with_and_reported_again_in_its_own_folder(grid, here):
    before = (grid / "cells.jsonl").read_bytes()
    shutil.copytree(grid, "out")
    report(["out"], "out", "out/report.html")
    assert main([*GRID, "--out=out", "--title=Comparison"]) == 0
    assert main([*GRID, "--out=out", "--title=Comparison"]) == 0
    assert Path("out/cells.jsonl").read_bytes().startswith(before)


def test_every_verb_with_an_output_can_be_told_to_overwrite():
    outs = {"out", "html", "file", "markdown"}
    for name, verb in VERBS.items():
        options = {option.name for option in verb.options}
        if outs & options and name not in ("finetune",):
            assert "overwrite" in options, name
    assert all("overwrite" in {option.name for option in VERBS[name].options} for name in ("", "train", "ensemble"))
