"""Grids that are killed or interrupted: what the next run takes over, and what goes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_compare import here as here  # a fixture
from test_compare import run

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import read_json_lines
from recbole_llm4sbr.experiment import cells, work
from recbole_llm4sbr.experiment.progress import GridProgress
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.training import resuming

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as in each process of a grid


def test_an_interrupted_grid_ends_in_the_same_report(here, monkeypatch):
    run(here, "whole")
    original, calls = cells.run_cell, []

    def stopping(settings, on_epoch):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(settings["seed"])
        return original(settings, on_epoch)

    monkeypatch.setattr(cells, "run_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(here, "parts")
    with open("parts/cells.jsonl", "a") as handle:
        handle.write('{"key": "torn')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(cells, "run_cell", original)
    run(here, "parts")
    texts = []
    for out in ("whole", "parts"):
        report([out], out, None)
        text = Path(out, "tiny.md").read_text().split("### Time and memory")[0]
        texts.append(text)
    assert texts[0] == texts[1]
    assert len(read_json_lines(Path("parts/cells.jsonl"))) == 4


def test_a_killed_process_costs_one_cell(here, monkeypatch):
    rows = run(here, seeds=1, workers=2)
    assert [row.status for row in rows] == ["ok", "ok"]
    same = run(here, "in_process", seeds=1)
    assert [row.result.test_result for row in rows] == [row.result.test_result for row in same]
    monkeypatch.setattr(cells, "_child", _dies)
    rows = run(here, "killed", seeds=1, workers=1)
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "-9" in rows[0].reason


def _dies(parent, cell, settings, threads, slot):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_grid_removes_its_own_folder_and_no_other(here):
    mine = Path("out/work")
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    (Path("out") / "work-notes").mkdir()
    with work.own_folder(Path("out")) as other:  # a grid that runs beside
        (other / "checkpoint").write_text("x")
        rows = run(here, seeds=1)
        assert [row.status for row in rows] == ["ok", "ok"]
        assert (other / "checkpoint").read_text() == "x"
    assert sorted(path.name for path in Path("out").glob("work*")) == ["work", "work-notes"]
    assert (mine / "thesis.txt").read_text() == "mine"


def test_what_a_killed_grid_left_goes_with_the_next_one_but_for_what_can_go_on(tmp_path):
    code = "import os, sys\nfrom pathlib import Path\nfrom recbole_llm4sbr.experiment.work import own_folder\n"
    code += "with own_folder(Path(sys.argv[1])) as folder:\n    print(folder, flush=True)\n"
    code += (
        "    for run in ('a/0/training-1.pth', 'a/1/SRGNN.unfinished.pth', 'b/0/training-2.pth', 'c/0/SRGNN.unfinished.pth'):\n"
    )
    code += "        (folder / run).parent.mkdir(parents=True)\n        (folder / run).write_text(run)\n"
    code += "    os.kill(os.getpid(), 9)\n"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert (left / "c/0/SRGNN.unfinished.pth").is_file()

    def files(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix == ".pth")

    for _ in range(2):  # it has one of the cells and does not come to its end either
        with work.own_folder(tmp_path, {"a", "c"}) as folder:
            assert files(folder) == ["a/0/training-1.pth"]
            assert files(left) == ["b/0/training-2.pth"]
    (left / "owner.lock").unlink(missing_ok=True)  # as some versions of filelock leave it
    with work.own_folder(tmp_path, {"a", "b"}) as folder:
        assert files(folder) == ["a/0/training-1.pth", "b/0/training-2.pth"]
        (folder / "c" / "0").mkdir(parents=True)
        (folder / "c" / "0" / "training-3.pth").touch()
    with work.own_folder(tmp_path, {"a", "b"}, {"c"}) as folder:  # c was finished elsewhere
        assert files(folder) == ["a/0/training-1.pth", "b/0/training-2.pth"]
        for cell in "ab":
            (folder / cell / "0").rename(tmp_path / cell)  # as if it were done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_cell_goes_on_where_it_was_interrupted(here, monkeypatch, caplog):
    monkeypatch.setattr(resuming, "_PAUSE", 0.0)
    monkeypatch.setattr(resuming, "_SHARE", float("inf"))
    here = here | {"epochs": 4}
    (whole,) = run(here, "whole", variants=["llm4sbr"], seeds=1)
    told, epoch = [], GridProgress.epoch

    def watched(self, cell, number, score):
        told.append(number)
        if told == [0, 1]:
            raise KeyboardInterrupt
        epoch(self, cell, number, score)

    monkeypatch.setattr(GridProgress, "epoch", watched)
    with pytest.raises(KeyboardInterrupt):
        run(here, variants=["llm4sbr"], seeds=1)
    assert [row.status for row in run(here, variants=["plain"], seeds=1)] == ["ok"]  # other cells leave its state alone
    told.clear()
    with caplog.at_level("INFO"):
        (row,) = run(here, variants=["plain", "llm4sbr"], seeds=1)[1:]
    assert told == [2, 3]
    assert "interrupted cells with a state to go on from: 1" in caplog.text
    assert (row.result.train_losses, row.result.valid_scores) == (whole.result.train_losses, whole.result.valid_scores)
    assert row.result.test_result == whole.result.test_result
    assert not list(Path("out").glob("work-*"))


def test_a_checkpoint_that_is_kept_is_that_of_the_run(here, monkeypatch):
    original = cells.train

    def beside_another(settings, **more):
        other = Path(settings["checkpoint_dir"]) / "SRGNN-tiny-20200101-000000-000001"  # its run has another key
        other.mkdir(parents=True)
        for name in ("SRGNN.unfinished.pth", "training-1.pth"):
            (other / name).touch()
        return original(settings, **more)

    monkeypatch.setattr(cells, "train", beside_another)
    (row,) = run(here, variants=["plain"], seeds=1, keep=True)
    assert row.result.checkpoint == f"out/checkpoints/{row.key}.pth"
    assert "state_dict" in torch.load(row.result.checkpoint, weights_only=True)
    assert not list(Path("out").glob("work-*"))


def test_a_cell_whose_process_is_killed_or_lacks_memory_keeps_its_state_and_one_that_fails_does_not(here, monkeypatch):
    def training(settings, **_):
        state = Path(settings["checkpoint_dir"]) / "run" / "training-1.pth"
        state.parent.mkdir(parents=True)
        state.touch()
        if settings["seed"] == 2020:
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError if settings["seed"] == 2021 else UserError("no numbers")

    monkeypatch.setattr(cells, "train", training)
    fork = multiprocessing.get_context("fork")  # the processes train as this one says
    monkeypatch.setattr(cells, "multiprocessing", SimpleNamespace(get_context=lambda kind: fork))
    monkeypatch.setattr(fork, "set_forkserver_preload", lambda modules: None, raising=False)
    rows = run(here, variants=["plain"], seeds=3, workers=1)
    assert [row.reason.split(" (")[0] for row in rows] == ["its process ended with -9", "MemoryError: ", "no numbers"]
    left = {state.parent.parent.name for state in Path("out").glob("work-*/*/run/training-1.pth")}
    assert left == {row.key for row in rows[:2]}


def test_a_running_grid_keeps_its_folder_when_the_clock_is_set(tmp_path, monkeypatch):
    import psutil

    with work.own_folder(tmp_path) as folder:
        real = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: real(process) + 3600)
        with work.own_folder(tmp_path):
            assert folder.is_dir()


def test_an_interrupted_grid_leaves_nothing_while_its_processes_write(tmp_path):
    """The processes go on writing checkpoints until they have ended; only then the folder is removed."""
    code = """
import os, signal, sys, threading, time
from pathlib import Path
from recbole_llm4sbr.experiment import cells

def ends_a_second_later(*_):
    threading.Timer(0.5, os._exit, [0]).start()

def writing(settings, on_epoch):
    folder = Path(settings["checkpoint_dir"])
    signal.signal(signal.SIGTERM, ends_a_second_later)
    for number in range(20_000):  # a minute, should nobody stop it
        time.sleep(0.003)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_text("x")
        if number == 20:
            Path(sys.argv[1] + ".began").touch()

cells.run_cell = writing
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
    import multiprocessing
    multiprocessing.set_start_method("fork")
    real = multiprocessing.get_context
    multiprocessing.get_context = lambda method: real("fork")
    out = Path(sys.argv[1])
    grid = [cells.Cell("g", "d", "M", "v", 1, "", {"ray_address": ""}, key=key) for key in "ab"]
    for _ in cells.run_cells(grid, 2, out):
        pass
"""
    script = tmp_path / "grid.py"
    script.write_text(code)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path(f"{out}.began").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    time.sleep(0.8)
    assert list(out.iterdir()) == []
