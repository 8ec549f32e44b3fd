"""A Ray cluster of three nodes on this machine, one of which dies: `python -m pytest -m slow tests/test_cluster.py` (a minute or two)."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_compare import run
from test_tuning import words

from recbole_llm4sbr.cli.main import main

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # as many as a worker of Ray has

COUNT, BLOCK = 1500, 50
DRIVER = f"""
import os, sys, time
from pathlib import Path
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.intent.backends import Request, make_backend, ray
from recbole_llm4sbr.intent.backends.echo import EchoBackend
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.store import AnswerStore

address, folder = sys.argv[1], Path(sys.argv[2])

class SlowEcho(EchoBackend):
    def generate(self, requests):
        for reply in super().generate(requests):
            with open(folder / f"{{os.getpid()}}.calls", "a") as calls:
                calls.write("x")
            time.sleep(0.01)
            yield reply

class Worker(ray._Worker):
    def __init__(self, settings, titles):
        self._backend = SlowEcho()

ray._Worker, ray._BLOCK = Worker, {BLOCK}
given = {{"llm_backend": "ray", "ray_backend": "echo", "ray_cpus_per_worker": 1, "ray_address": address}}
backend = make_backend(load_settings(dataset="tiny", overrides=given))
requests = [Request("s", f"1. film {{n}}") for n in range({COUNT})]
Questions(backend, requests, AnswerStore(folder / "answers.sqlite"), "t").ask(folder / "failures.jsonl", 0.0)
"""


@pytest.fixture
def cluster():
    """A head without a CPU for workers, and three nodes with one each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(3)]
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def stored(folder):
    if not (folder / "answers.sqlite").is_file():
        return []
    with sqlite3.connect(folder / "answers.sqlite") as store:
        there = store.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchone()
        return [answer for (answer,) in store.execute("SELECT answer FROM answers")] if there else []


def start(cluster, folder):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.address, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(folder, count, process):
    for _ in range(1200):
        if len(stored(folder)) >= count:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError(f"only {len(stored(folder))} answers after two minutes")


def test_a_node_and_then_the_driver_die_and_only_what_was_under_way_is_asked_again(cluster, tmp_path):
    process = start(cluster, tmp_path)
    wait_until(tmp_path, 300, process)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    wait_until(tmp_path, 700, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = stored(tmp_path)
    assert 700 <= len(before) < COUNT
    process = start(cluster, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    answers = stored(tmp_path)
    assert sorted(answers) == sorted(f"film {n}" for n in range(COUNT))
    calls = sum(path.stat().st_size for path in tmp_path.glob("*.calls"))
    # a dead node's two blocks; with the driver those of the two workers left, and the answers that came since the last transaction
    assert COUNT <= calls <= COUNT + 2 * BLOCK + (2 * 2 + 2) * BLOCK


def test_cells_of_a_grid_run_on_what_is_left_of_a_cluster(cluster, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    here = given | {"atomic_path": str(tmp_path / "atomic"), "epochs": 2}
    rows = run(here | {"ray_address": cluster.address, "ray_cpus_per_worker": 1}, seeds=1)
    alone = run(here, "alone", seeds=1)
    assert [row.result.test_result for row in rows] == [row.result.test_result for row in alone]


def test_trials_of_a_search_run_on_what_is_left_of_a_cluster(cluster, given, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    Path("my.hyper").write_text("intent_k choice [0, 3]\n")
    more = ["--space=my.hyper", "--search=grid", f"--ray_address={cluster.address}", "--ray_cpus_per_worker=1"]
    assert main(words(given, tiny["atomic_path"], "out", *more)) == 0
    assert len(pd.read_csv("out/trials.csv")) == 2
