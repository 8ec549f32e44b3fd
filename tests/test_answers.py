import json
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.intent.answers import AnswerStore, answer_key, clean, shipped_answers, write_shipped
from recbole_llm4sbr.intent.ask import ask
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.echo import EchoBackend

QUALIFIER = "Guess one movie this person loves. Think of the whole list."


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('The Lion King"', "The Lion King"),
        ('"The Lion King" is a movie that', "The Lion King"),
        ("The Lion King (1994).\nIt is great", "The Lion King (1994)"),
        ("\n\n  1. The Lion King", "The Lion King"),
        ("Answer: The Lion King", "The Lion King"),
        ("The movie title is: “The Lion King”", "The Lion King"),
        ("Sure! My guess is The Lion King", "The Lion King"),
        ("- **The Lion King**", "The Lion King"),
        ("Movie: The Lion King;", "The Lion King"),
        ("12 Angry Men", "12 Angry Men"),
        ("101 Dalmatians", "101 Dalmatians"),
        ("2001: A Space Odyssey", "2001: A Space Odyssey"),
        ("What's Eating Gilbert Grape", "What's Eating Gilbert Grape"),
        ("L.A. Confidential", "L.A. Confidential"),
        ("Guess Who's Coming to Dinner", "Guess Who's Coming to Dinner"),
        ("I Know What You Did Last Summer", "I Know What You Did Last Summer"),
        ("Title", ""),
        ("Movie 3", ""),
        ("", ""),
        (' \n."', ""),
        ("As an AI language model, I", ""),
        ("I'm sorry, but", ""),
        ("Guess one", ""),
        ("Guess one movie this person loves", ""),
        ("the whole list", ""),
    ],
)
def test_cleaning_finds_the_name_or_says_that_there_is_none(raw, expected):
    assert clean(raw, [QUALIFIER]) == expected


def test_the_key_changes_with_everything_that_changes_an_answer():
    request = Request("s", "u", "a")
    keys = {
        answer_key("m", {"n": 1}, request),
        answer_key("m2", {"n": 1}, request),
        answer_key("m", {"n": 2}, request),
        *(answer_key("m", {"n": 1}, request._replace(**{field: "x"})) for field in Request._fields),
    }
    assert len(keys) == 6
    assert answer_key("m", {"a": 1, "b": 2}, request) == answer_key("m", {"b": 2, "a": 1}, request)


@pytest.mark.parametrize("text", [b"not a database", b"SQLite format 3\0 and then rubbish" * 100])
def test_a_foreign_file_is_refused_with_the_remedy(tmp_path, text):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(text)
    with pytest.raises(UserError, match="move it away"):
        AnswerStore(path)
    assert path.read_bytes() == text


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "answers.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(UserError, match="another kind"):
        AnswerStore(path)


def test_equal_requests_are_sent_once_and_a_second_run_sends_none(tmp_path):
    requests = [Request("s", f"1. item {n % 7}") for n in range(20)]
    first = ask(EchoBackend(), requests, tmp_path / "store", "t")
    assert (first.calls, first.reused) == (7, 0)
    assert [first.raw[key] for key in first.keys] == [f"item {n % 7}" for n in range(20)]
    second = ask(EchoBackend(), requests, tmp_path / "store", "t")
    assert (second.calls, second.reused, second.raw) == (0, 7, first.raw)
    assert ask(EchoBackend(), requests, tmp_path / "store", "t", refresh=True).calls == 7


def test_shipped_answers_serve_only_their_own_model_and_decoding(tmp_path):
    write_shipped(tmp_path / "a.jsonl", {"model": "m", "decoding": {"n": 1}}, {"k1": 'a "quoted" answer', "k2": "é"})
    assert shipped_answers("m", {"n": 1}, tmp_path) == {"k1": 'a "quoted" answer', "k2": "é"}
    assert shipped_answers("m", {"n": 2}, tmp_path) == shipped_answers("m2", {"n": 1}, tmp_path) == {}


SLOW_ASK = """
import sys, time, json
from recbole_llm4sbr.intent.ask import ask
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.echo import EchoBackend
class Slow(EchoBackend):
    def generate(self, requests):
        for position, answer in super().generate(requests):
            print("called", flush=True)
            time.sleep(0.0005)
            yield position, answer
ask(Slow(), [Request("s", f"1. item {n}") for n in range(500)], sys.argv[1], "t")
"""


def test_killed_runs_lose_at_most_one_batch_each(tmp_path):
    store, calls, kills, rng = tmp_path / "store", 0, 0, random.Random(5)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SLOW_ASK, str(store)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()  # it has begun
        calls += 1
        time.sleep(rng.uniform(0, 0.12))
        process.send_signal(signal.SIGKILL)
        calls += process.stdout.read().count("called")
        kills += 1
    done = subprocess.run([sys.executable, "-c", SLOW_ASK, str(store)], capture_output=True, text=True, check=True)
    calls += done.stdout.count("called")
    opened = AnswerStore(store)
    assert len(opened) == 500
    assert 500 <= calls <= 500 + kills * 64


def test_two_processes_on_one_store_end_with_every_answer_once(tmp_path):
    store = tmp_path / "store"
    both = [subprocess.Popen([sys.executable, "-c", SLOW_ASK, str(store)], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    requests = [Request("s", f"1. item {n}") for n in range(500)]
    again = ask(EchoBackend(), requests, store, "t")
    assert (again.calls, again.reused) == (0, 500)
    assert all(again.raw[key] == f"item {n}" for n, key in enumerate(again.keys))
    assert len(AnswerStore(store)) == 500


def test_the_shipped_files_of_the_package_are_well_formed():
    from recbole_llm4sbr.files import PROPERTIES

    for path in (PROPERTIES / "answers").glob("*.jsonl"):
        head, *rest = path.read_text(encoding="utf-8").splitlines()
        provenance = json.loads(head)["provenance"]
        assert {"model", "decoding", "template", "dataset", "date", "command"} <= set(provenance)
        keys = [json.loads(line)[0] for line in rest]
        assert len(keys) == len(set(keys)) == provenance["answers"]
