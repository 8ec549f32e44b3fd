"""vLLM itself, with the embedded LLM on ml-100k: `benchmarks/vllm_environment.py FOLDER`, then `FOLDER/bin/python -m pytest -m vllm`.

Everything runs in processes of its own: an engine of vLLM holds memory and threads until its process ends.
"""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
SESSIONS = 60
# shipped answers are of the template `movies` with its own decoding; another number of tokens is asked for
COMMAND = ["infer", "--dataset=ml-100k", f"--max_sessions={SESSIONS}", "--llm_max_new_tokens=15", "--vllm_dtype=bfloat16"]
COMMAND += ["--vllm_max_tokens=2048", "--vllm_memory=0.2"]


def start(folder, *more):
    command = [sys.executable, "-m", "recbole_llm4sbr.cli", *COMMAND, f"--atomic_path={folder}", *more]
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def ended(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def answers(folder):
    with sqlite3.connect(folder / "answers.sqlite") as store:
        there = store.execute("SELECT name FROM sqlite_master WHERE name = 'answers'").fetchone()
        return dict(store.execute("SELECT key, answer FROM answers").fetchall()) if there else {}


def calls(output):
    (line,) = [each for each in output.splitlines() if "LLM calls made" in each]
    return int(line.partition(" LLM calls made")[0].rpartition("; ")[2].replace(",", ""))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The answers of vLLM, and what `infer` said."""
    folder = tmp_path_factory.mktemp("vllm")
    output = ended(start(folder, "--llm_backend=vllm"))
    return folder, output


def test_vllm_answers_as_transformers_does(whole, tmp_path):
    folder, output = whole
    assert calls(output) == len(answers(folder)) > SESSIONS
    ended(start(tmp_path, "--llm_backend=transformers"))
    ours, theirs = answers(tmp_path), answers(folder)
    assert set(ours) == set(theirs)  # local engines share their answers
    same = sum(ours[key].strip() == theirs[key].strip() for key in ours) / len(ours)
    print(json.dumps({"prompts": len(ours), "same": round(same, 3)}))
    assert same > 0.8  # bfloat16 rounds otherwise in batches of another shape


def test_a_killed_run_goes_on_where_it_was(whole, tmp_path):
    process = start(tmp_path, "--llm_backend=vllm")
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if (tmp_path / "answers.sqlite").is_file() and len(answers(tmp_path)) >= 10:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = answers(tmp_path)
    assert 10 <= len(before) < len(answers(whole[0]))
    output = ended(start(tmp_path, "--llm_backend=vllm"))
    assert calls(output) == len(answers(whole[0])) - len(before)
    assert before.items() <= answers(tmp_path).items()


def test_a_worker_of_ray_runs_vllm(whole, tmp_path):
    output = ended(start(tmp_path, "--llm_backend=ray", "--ray_backend=vllm", "--ray_workers=1"))
    assert calls(output) == len(answers(whole[0]))
    assert set(answers(tmp_path)) == set(answers(whole[0]))
