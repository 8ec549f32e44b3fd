"""Batches of an endpoint against a real server that has files and batches as OpenAI's API has them, and counts what is paid."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recbole_llm4sbr.base.errors import NotYet, UserError
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.intent import batch_maker, batches, request_lines
from recbole_llm4sbr.intent.backends import Request, openai_batch
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend
from recbole_llm4sbr.intent.batch_rows import BatchRow, BatchRows
from recbole_llm4sbr.intent.batches import ask_in_batches
from recbole_llm4sbr.intent.questions import Questions, estimate
from recbole_llm4sbr.intent.request_files import import_replies, write_questions
from recbole_llm4sbr.intent.store import Answer, AnswerStore

KEY = "sk-very-secret-0123456789"
ALWAYS = 10**6
WORDS = ("empty", "key", "limit", "expires", "fails", "lost")


def completion(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"finish_reason": finish, "message": message}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


class Handler(BaseHTTPRequestHandler):
    """Files and batches; a first word of a question names what becomes of it, the first `times` times that it is run."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_POST(self):
        self.answer("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self):
        self.answer("GET", b"")

    def answer(self, method, body):
        world = self.server.world
        path, _, query = self.path.removeprefix("/v1").partition("?")
        with world.lock:
            world.calls.append((method, path))
            number = len(world.calls)
        if world.kill == (number, "before"):
            return self.die()
        for trouble in list(world.troubles):
            if trouble[0] == (method, path):
                world.troubles.remove(trouble)
                if trouble[1] == "after":
                    world.reply(method, path, query, body, self.headers)
                return self.send(*trouble[2])
        status, data = world.reply(method, path, query, body, self.headers)
        if world.kill == (number, "after"):
            return self.die()
        if world.kill == (number, "soon"):
            threading.Timer(world.rng.uniform(0, 0.01), kill_victim, [world]).start()
        self.send(status, data)
        return None

    def send(self, status, data):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) + self.server.world.cut))
        self.end_headers()
        self.wfile.write(data)
        if self.server.world.cut:
            self.server.world.cut, self.close_connection = 0, True

    def die(self):
        """Kill the client; it gets no reply."""
        kill_victim(self.server.world)
        self.close_connection = True


class World:
    """What the endpoint knows.

    Attributes:
        files: content by id.
        batches: as the endpoint describes them, by id.
        paid: answers by custom_id.
        runs: how often each custom_id was run, paid or not.
        hold: at how many looks more a batch is in progress.
        troubles: ((method, path), "before" or "after" it is done, (status, reply)), each once.
        kill: the number of a call, and whether the client is killed before or after it is done, without a reply, or soon after that.
    """

    def __init__(self):
        self.lock, self.rng = threading.RLock(), random.Random(3)
        self.calls, self.troubles, self.chats, self.strange, self.sizes = [], [], [], [], []
        self.files, self.batches, self.bodies, self.paid, self.runs = {}, {}, {}, Counter(), Counter()
        self.hold, self.refuse, self.kill, self.victim, self.cut, self.id = 0, None, None, None, 0, "{}"

    def reply(self, method, path, query, body, headers):
        with self.lock:
            what = path.split("/")[1:]
            if path == "/chat/completions":
                self.chats.append(json.loads(body))
                return self.json(completion("online"))
            if (method, path) == ("POST", "/files"):
                return self.upload(body, headers)
            if (method, path) == ("POST", "/batches"):
                return self.create(json.loads(body))
            if (method, path) == ("GET", "/batches"):
                return self.list(dict(each.split("=") for each in query.split("&")))
            if what[0] == "batches" and what[1] in self.batches:
                return self.json(self.look(self.batches[what[1]]))
            if what[0] == "files" and what[1] in self.files and what[2:] == ["content"]:
                return 200, self.files[what[1]]
            return 404, b'{"error": {"message": "no such thing"}}'

    def json(self, value):
        return 200, json.dumps(value).encode()

    def keep(self, data):
        self.files[name := f"file-{len(self.files)}"] = data
        return name

    def upload(self, body, headers):
        boundary = headers["Content-Type"].partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)[1:-1]]
        fields = {head.partition(b'name="')[2].partition(b'"')[0]: data.removesuffix(b"\r\n") for head, _, data in parts}
        assert fields[b"purpose"] == b"batch"
        self.sizes.append(len(fields[b"file"]))
        return self.json({"id": self.keep(fields[b"file"]), "object": "file"})

    def create(self, asked):
        assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
        name = self.id.format(f"batch_{len(self.batches)}")
        made = {"id": name, "object": "batch", "status": "validating", "request_counts": {"total": 0}}
        self.batches[name] = made | {key: asked[key] for key in ("input_file_id", "metadata")}
        return self.json(self.batches[name])

    def list(self, query):
        every = list(self.batches.values())  # oldest first: the order of a list is not to be relied on
        start = [each["id"] for each in every].index(query["after"]) + 1 if "after" in query else 0
        page = every[start : start + int(query["limit"])]
        return self.json({"object": "list", "data": page, "has_more": start + len(page) < len(every)})

    def look(self, batch):
        if self.refuse and batch["status"] == "validating":
            batch |= {"status": "failed", "errors": {"data": [{"code": "bad_model", "message": self.refuse}]}}
        if batch["status"] not in ("validating", "in_progress"):
            return batch
        batch["status"] = "in_progress"
        if not self.hold:
            return self.run(batch)
        self.hold -= 1
        return batch

    def run(self, batch):
        lines = {"output": [], "error": []}
        status = "completed"
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
            name, question = row["custom_id"], row["body"]["messages"][-1]["content"]
            self.bodies[name], self.runs[name] = row["body"], self.runs[name] + 1
            what, _, times = question.split()[0].partition("*")
            what = what if what in WORDS and self.runs[name] <= int(times or 10**6) else "fine"
            reply = {"id": f"r{name}", "custom_id": name, "response": None, "error": None}
            if what in ("fine", "empty", "key", "limit"):
                text = {"fine": f"echo {question.splitlines()[-1]}", "empty": "", "key": f"is {KEY}", "limit": "Crouching Ti"}[
                    what
                ]
                body = completion(text, "length" if what == "limit" else "stop")
                lines["output"].append(reply | {"response": {"status_code": 200, "body": body}})
                self.paid[name] += 1
            elif what == "expires":
                status = "expired"
                lines["error"].append(reply | {"error": {"code": "batch_expired", "message": f"too late {KEY}"}})
            elif what == "fails":
                body = {"error": {"message": "context too long", "code": None}}
                lines["error"].append(reply | {"response": {"status_code": 400, "body": body}})
        self.rng.shuffle(lines["output"])
        batch |= {"status": status, "request_counts": {"completed": len(lines["output"]), "failed": len(lines["error"])}}
        for kind, rows in lines.items():
            data = [json.dumps(each).encode() for each in rows] + (self.strange if kind == "output" else [])
            batch[f"{kind}_file_id"] = self.keep(b"\n".join(data) + b"\n") if data else None
        return batch


@pytest.fixture
def world(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.world = made = World()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(batches, "POLL", 0.02)
    monkeypatch.setattr(batch_maker, "SETTLED", 0.2)
    monkeypatch.setattr(batch_maker, "LOOK", 0.02)
    yield made
    server.shutdown()
    server.server_close()


def backend(url, **changed):
    return OpenAIBackend("m", 16, url, **({"timeout": 5, "retries": 1} | changed))


def asked_of(url, folder, texts, **changed):
    store = AnswerStore(folder / "answers.sqlite")
    return Questions(backend(url, **changed), [Request("s", text) for text in texts], store, "t")


def ask(world, folder, texts, wait=0.0, rate=1.0, **changed):
    questions = asked_of(world.url, folder, texts, **changed)
    try:
        return ask_in_batches(questions, folder / "failures.jsonl", rate, wait)
    finally:
        questions.store.close()


def answers(world, folder, texts):
    questions = asked_of(world.url, folder, texts)
    found = [answer and answer.text for answer in map(questions.answer, range(len(texts)))]
    questions.store.close()
    return found


def logged(folder):
    path = folder / "failures.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["prompt"]: row["reason"] for row in rows}


FINE = [f"fine\nnumber {n}" for n in range(10)]
ECHO = [f"echo number {n}" for n in range(10)]


def test_a_run_hands_in_a_later_one_collects_and_the_answers_are_those_of_online_questions(world, tmp_path):
    world.hold = ALWAYS
    with pytest.raises(NotYet, match=r"10 requests are under way in 1 batch \(batch_0\).*run the same command again"):
        ask(world, tmp_path, FINE)
    with pytest.raises(NotYet, match="10 requests are under way"):
        ask(world, tmp_path, FINE)
    world.hold = 0
    counts = ask(world, tmp_path, FINE)
    assert (counts.calls, counts.failures, counts.prompt_tokens, counts.answer_tokens) == (10, 0, 70, 30)
    assert answers(world, tmp_path, FINE) == ECHO
    assert [call for call in world.calls if call[0] == "POST"] == [("POST", "/files"), ("POST", "/batches")]
    assert set(world.paid.values()) == {1}
    questions = asked_of(world.url, tmp_path, FINE)
    assert len(questions.missing) == 0
    assert BatchRows(questions.store).batches() == []
    questions.store.close()
    (tmp_path / "online").mkdir()
    asked_of(world.url, tmp_path / "online", FINE).ask(tmp_path / "online" / "failures.jsonl")
    in_order = sorted(map(json.dumps, world.chats))
    assert sorted(json.dumps(body) for body in world.bodies.values()) == in_order


def test_a_run_that_may_wait_polls_until_all_is_there_and_pays_half(world, tmp_path, capsys):
    world.hold = 5
    counts = ask(world, tmp_path, FINE, wait=20)
    assert counts.calls == 10
    assert "LLM batches" in capsys.readouterr().err
    assert sum(call == ("GET", "/batches/batch_0") for call in world.calls) == 6
    text = estimate(asked_of(world.url, tmp_path, ["fine\nanother"]), (1e6, 0.0), batch_price=batches.PRICE)
    assert "cost: about 3.25; in batches (--llm_batch=true) about 1.62" in text


def test_what_fails_or_expires_is_asked_in_one_more_batch_and_then_given_up(world, tmp_path):
    passing = ["fails*1\na", "expires*1\nb", "empty*1\nc", "lost*1\nd"]
    lasting = ["fails\ne", "expires\nf", "empty\ng", "lost\nh"]
    with pytest.raises(
        UserError, match=r"4 of 18 questions failed, each in 2 batches, more than max_failure_rate=0.01"
    ) as error:
        ask(world, tmp_path, FINE + passing + lasting, wait=20, rate=0.01)
    assert not isinstance(error.value, NotYet)
    assert answers(world, tmp_path, FINE + passing) == ECHO + [f"echo {each}" for each in "abcd"]
    reasons = logged(tmp_path)
    assert sorted(reasons) == sorted(lasting)
    assert "context too long" in reasons["fails\ne"]
    assert reasons["expires\nf"] == "batch_expired: too late [key]"
    assert "an empty answer" in reasons["empty\ng"]
    assert "no reply" in reasons["lost\nh"]
    assert [len(world.files[each["input_file_id"]].splitlines()) for each in world.batches.values()] == [18, 8]
    for _ in range(2):  # runs that do not wait: one hands in, the next collects and hands in once more, the third gives up
        with pytest.raises(NotYet, match="4 requests are under way in 1 batch "):
            ask(world, tmp_path, FINE + passing + lasting)
    counts = ask(world, tmp_path, FINE + passing + lasting, rate=1)
    assert (counts.failures, len(world.batches)) == (4, 4)
    assert logged(tmp_path).keys() == reasons.keys()


STRANGE = [
    json.dumps({"custom_id": "00" * 16, "response": {"status_code": 200, "body": completion("unknown")}}).encode(),
    json.dumps({"custom_id": 7, "response": {"status_code": 200, "body": completion("number")}}).encode(),
    json.dumps({"custom_id": "no hex"}).encode(),
    b'{"custom_id": "', b"[" * 100_000, b"null", b"7", b"\xff\xfe", b'"' + b"x" * 10_000 + b'"', b"", b"   ",
]  # fmt: skip


def test_lines_that_are_no_replies_are_passed_over_and_counted_in_one_warning(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(request_lines, "LONGEST_LINE", 9_000)
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE)
    names = [json.loads(line)["custom_id"] for line in world.files["file-0"].splitlines()]
    twice = {"custom_id": names[0], "response": {"status_code": 200, "body": completion("another answer")}}
    world.strange = [*STRANGE, json.dumps(twice).encode(), json.dumps({"custom_id": names[1], "response": 7}).encode()]
    counts = ask(world, tmp_path, FINE)
    assert (counts.calls, counts.failures) == (10, 0)
    assert answers(world, tmp_path, FINE) == ECHO
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "1 to unknown requests, 8 unreadable, 2 to requests that have a reply" in warning


@pytest.mark.parametrize("reply", [b"{}", b"[1]", b"null", b"<html>", b'{"id": "../x", "status": "completed"}', b'{"id": 7}'])
def test_a_description_of_a_batch_that_cannot_be_read_ends_the_run_and_loses_nothing(world, tmp_path, reply):
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE)
    world.troubles.append((("GET", "/batches/batch_0"), "before", (200, reply)))
    with pytest.raises(UserError, match=r"does not look at batch batch_0.*run the same command again"):
        ask(world, tmp_path, FINE)
    assert ask(world, tmp_path, FINE).calls == 10
    assert set(world.paid.values()) == {1}


def test_a_batch_that_is_refused_costs_nothing_and_is_handed_in_again_by_the_next_run(world, tmp_path):
    world.refuse = f"no model\nof that name {KEY}"
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE)
    said = r"refused 1 batch \(batch_0: bad_model: no model of that name \[key\]\); none of their requests was run or paid for"
    with pytest.raises(UserError, match=said):
        ask(world, tmp_path, FINE)
    assert len(world.batches) == 1
    world.refuse = None
    assert ask(world, tmp_path, FINE, wait=20).calls == 10
    assert set(world.paid.values()) == {1}


def test_requests_are_split_where_a_file_would_be_too_long_or_too_large(world, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_maker, "MOST_REQUESTS", 4)
    assert ask(world, tmp_path, FINE, wait=20).calls == 10
    assert [len(world.files[each["input_file_id"]].splitlines()) for each in world.batches.values()] == [4, 4, 2]
    monkeypatch.setattr(batch_maker, "MOST_BYTES", 1_000)
    more = [f"fine\nanother {n}" for n in range(12)]
    world.sizes.clear()
    assert ask(world, tmp_path, more, wait=20).calls == 12
    assert len(world.sizes) >= 4
    assert max(world.sizes) <= 1_000
    assert answers(world, tmp_path, FINE + more[:1]) == [*ECHO, "echo another 0"]
    assert set(world.paid.values()) == {1}


TROUBLES = [
    ("after", (500, b'{"error": {"message": "made, but nobody knows"}}')),
    ("after", (200, b"<html>")),
    ("before", (503, b"{}")),
    ("before", (429, b"{}")),
]


@pytest.mark.parametrize(("when", "reply"), TROUBLES, ids=["lost reply", "no JSON", "busy", "too many"])
def test_a_batch_whose_making_has_no_known_outcome_is_made_once(world, tmp_path, when, reply, monkeypatch):
    monkeypatch.setattr(openai_batch.time, "sleep", lambda _: None)
    world.batches |= {f"other_{n}": {"id": f"other_{n}", "status": "completed", "metadata": None} for n in range(250)}
    world.troubles.append((("POST", "/batches"), when, reply))
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE)
    made = [each for each in world.batches if each.startswith("batch_")]
    assert len(made) == 1
    assert ask(world, tmp_path, FINE).calls == 10
    assert set(world.paid.values()) == {1}


def test_an_endpoint_without_batches_and_a_refused_key_are_named(world, tmp_path):
    for status in (404, 401):
        world.troubles.append((("POST", "/files"), "before", (status, f'{{"error": {{"message": "no {KEY}"}}}}'.encode())))
        with pytest.raises(UserError, match="does not upload a file") as error:
            ask(world, tmp_path, FINE)
        assert ("leave out --llm_batch" in str(error.value)) == (status == 404)
        assert KEY not in str(error.value)
    store = AnswerStore(tmp_path / "answers.sqlite")
    assert BatchRows(store).batches() == []
    store.close()


def test_a_file_that_breaks_off_is_read_again_and_one_without_an_end_is_not(world, tmp_path, monkeypatch):
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE)
    monkeypatch.setattr(openai_batch, "LARGEST_FILE", 1_000)
    with pytest.raises(UserError, match="larger than 0 MB"):
        ask(world, tmp_path, FINE)
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    questions = asked_of(world.url, tmp_path, FINE)
    original = world.reply

    def broken(method, path, *rest):
        if path.endswith("/content") and world.calls.count((method, path)) == 2:
            world.cut = 10_000
        return original(method, path, *rest)

    world.reply = broken
    assert ask_in_batches(questions, tmp_path / "failures.jsonl", 0.0, 0.0).calls == 10
    assert sum(path.endswith("/content") for _, path in world.calls) == 3
    assert set(world.paid.values()) == {1}
    assert not list(tmp_path.glob("tmp*"))


def test_the_key_is_seen_nowhere(world, tmp_path, caplog, capsys):
    caplog.set_level("DEBUG", logger="recbole_llm4sbr")
    ask(world, tmp_path, ["key\nx", "expires\ny", *FINE], wait=20)
    assert logged(tmp_path)["key\nx"] == "the answer holds the key of OPENAI_API_KEY"
    world.id = "{}" + KEY  # an endpoint that calls a batch by the key
    with pytest.raises(UserError) as error:
        ask(world, tmp_path, ["fine\nz"])
    said = caplog.text + str(error.value) + "".join(capsys.readouterr())
    assert KEY not in said + "".join(path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir())


def test_an_answer_of_a_batch_that_ended_at_the_token_limit_is_cut_and_not_asked_again(world, tmp_path):
    ask(world, tmp_path, ["limit\nx", *FINE], wait=20)
    questions = asked_of(world.url, tmp_path, ["limit\nx", *FINE])
    assert [questions.answer(n) for n in range(11)] == [Answer("Crouching Ti", True), *map(Answer, ECHO)]
    assert ask(world, tmp_path, ["limit\nx", *FINE]).calls == 0


def test_a_key_of_one_letter_changes_neither_answers_nor_the_ids_of_batches(world, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "b")
    texts = ["fine\nbabe, b", *FINE]
    ask(world, tmp_path, texts, wait=20)
    assert answers(world, tmp_path, texts) == ["echo babe, b", *ECHO]


def test_while_batches_are_under_way_nothing_of_them_is_asked_online_unless_they_are_given_up(world, tmp_path, capsys):
    world.hold = ALWAYS
    with pytest.raises(NotYet):
        ask(world, tmp_path, FINE[:5])
    questions = asked_of(world.url, tmp_path, FINE)
    with pytest.raises(UserError, match="5 of the questions are under way in batches: add --llm_batch=true"):
        batches.check_none_under_way(questions)
    assert questions.store.claim(questions.keys(0, 10), "elsewhere 1 x") == set(questions.keys(5, 10))
    with pytest.raises(UserError, match=r"is under way at http.*; collect it with --llm_url"):
        ask_at_another_address(world, tmp_path)
    assert main(["answers", "stats", f"--atomic_path={tmp_path}"]) == 0
    assert "5 requests in batch batch_0" in capsys.readouterr().out
    assert main(["answers", "forget", "--llm=m at", f"--atomic_path={tmp_path}"]) == 0
    assert "5 requests under way given up" in capsys.readouterr().out
    batches.check_none_under_way(asked_of(world.url, tmp_path, FINE))


def ask_at_another_address(world, tmp_path):
    store = AnswerStore(tmp_path / "answers.sqlite")
    named = backend("http://127.0.0.1:9/v1", name=backend(world.url).identity)
    return ask_in_batches(Questions(named, [Request("s", text) for text in FINE], store, "t"), tmp_path / "f", 1.0, 0.0)


def test_a_store_of_an_earlier_version_opens_with_its_answers(tmp_path, world):
    store = AnswerStore(tmp_path / "answers.sqlite")
    store.put([(b"a" * 16, Answer("kept"))], store.source("m", {}, "t"))
    store.close()
    with sqlite3.connect(tmp_path / "answers.sqlite") as db:
        db.executescript("DROP TABLE batches; DROP TABLE batched; DROP TABLE requested;")
    assert ask(world, tmp_path, FINE, wait=20).calls == 10
    assert AnswerStore(tmp_path / "answers.sqlite").get([b"a" * 16]) == {b"a" * 16: Answer("kept")}


def test_a_batch_that_a_living_process_is_making_is_left_to_it_and_one_of_a_dead_process_is_taken_over(world, tmp_path):
    questions = asked_of(world.url, tmp_path, FINE)
    rows, owner = BatchRows(questions.store), "elsewhere 1 x"
    questions.store.live(owner)
    row = BatchRow("tag", questions.store.source("m", {}, "t"), world.url, owner, int(time.time()), 0.0, "", "")
    assert rows.reserve(row, questions.keys(0, 4), 0) == set(questions.keys(0, 4))
    assert rows.reserve(row._replace(tag="another"), questions.keys(0, 5), 0) == set(questions.keys(4, 5))
    rows.free(row._replace(tag="another"))
    with pytest.raises(NotYet, match=r"10 requests are under way in 2 batches \(one that another process is making, batch_0\)"):
        ask(world, tmp_path, FINE)
    assert len(world.files["file-0"].splitlines()) == 6
    assert rows.creating(row)
    questions.store.release(owner)
    assert ask(world, tmp_path, FINE, wait=20).calls == 10
    assert not rows.creating(row)
    assert set(world.paid.values()) == {1}
    questions.store.close()


# A process that imports once, and forks a client for each line it reads; it says the client's number, and how it ended.
CLIENTS = """
import functools, json, os, ssl, sys
from pathlib import Path
from recbole_llm4sbr.base.errors import NotYet
from recbole_llm4sbr.intent import batch_maker, batches
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.store import AnswerStore
import openai, openai.resources.files, openai.resources.batches
batches.POLL, batch_maker.SETTLED, batch_maker.LOOK = 0.02, 0.3, 0.05
ssl.create_default_context = functools.cache(ssl.create_default_context)  # half of a client's time
ssl.create_default_context()
def client(url, folder, texts, wait, most):
    batch_maker.MOST_REQUESTS = most
    backend = OpenAIBackend("m", 16, url, timeout=5, retries=1)
    questions = Questions(backend, [Request("s", text) for text in texts], AnswerStore(folder + "/answers.sqlite"), "t")
    try:
        batches.ask_in_batches(questions, Path(folder) / "failures.jsonl", 0.0, wait)
    except NotYet:
        return 75
    return 0
for line in sys.stdin:
    asked = json.loads(line)
    made = []
    for arguments in asked:
        made.append(os.fork())
        if not made[-1]:
            code = 70
            try:
                code = client(*arguments)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
            finally:
                os._exit(code)
    print(json.dumps(made), flush=True)
    codes = dict(os.wait() for _ in made)
    print(json.dumps([os.waitstatus_to_exitcode(codes[each]) for each in made]), flush=True)
"""


def kill_victim(world):
    while world.victim is None:  # its number comes a moment after its first call
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(world.victim, signal.SIGKILL)


@pytest.fixture(scope="module")
def clients():
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield process
    process.stdin.close()
    process.wait()


def start(clients, *asked):
    print(json.dumps(asked), file=clients.stdin, flush=True)
    return json.loads(clients.stdout.readline())


def ended(clients):
    return json.loads(clients.stdout.readline())


def all_answered_and_paid_once(world, folder, texts):
    assert answers(world, folder, texts) == [f"echo {text.splitlines()[1]}" for text in texts]
    assert sorted(world.paid.values()) == [1] * len(texts)
    assert sum(len(world.files[each["input_file_id"]].splitlines()) for each in world.batches.values()) == len(texts)


CALLS = [(number, when) for number in range(1, 9) for when in ("before", "after")]  # of two batches, from upload to replies


def test_killed_at_ten_calls_of_the_endpoint_each_question_is_paid_once(world, clients, tmp_path):
    for number, when in random.Random(8).sample(CALLS, 10):
        folder = tmp_path / f"{number}{when}"
        folder.mkdir()
        arguments = [world.url, str(folder), FINE[:4], 10.0, 2]
        world.files, world.batches, world.paid, world.runs = {}, {}, Counter(), Counter()
        world.calls, world.kill, world.victim = [], (number, when), None
        (world.victim,) = start(clients, arguments)
        assert ended(clients) == [-signal.SIGKILL]
        world.kill = None
        start(clients, arguments)
        assert ended(clients) == [0]
        all_answered_and_paid_once(world, folder, FINE[:4])


@pytest.mark.slow
def test_killed_at_ten_random_moments_each_question_is_paid_once(world, clients, tmp_path):
    rng, kills, texts, codes = random.Random(11), 0, [], [0]
    while kills < 10 or codes != [0]:
        if codes == [0]:
            texts += [f"fine\nround {len(texts)} number {n}" for n in range(20)]
        world.calls, world.kill, world.victim = [], (rng.randint(1, 12), "soon") if kills < 10 else None, None
        (world.victim,) = start(clients, [world.url, str(tmp_path), texts, 10.0, 5])
        codes = ended(clients)
        assert codes in ([0], [-signal.SIGKILL])
        kills += codes != [0]
    all_answered_and_paid_once(world, tmp_path, texts)


def test_two_processes_at_once_hand_in_every_question_once(world, clients, tmp_path):
    texts = [f"fine\nnumber {n}" for n in range(60)]
    for wait, codes in ((0.0, {75}), (10.0, {0})):
        world.hold = 0 if wait else ALWAYS
        start(clients, *[[world.url, str(tmp_path), texts, wait, 7]] * 2)
        assert set(ended(clients)) == codes
    all_answered_and_paid_once(world, tmp_path, texts)
    more = [f"fine\nanother {n}" for n in range(60)]  # and from beginning to end
    start(clients, *[[world.url, str(tmp_path), more, 10.0, 7]] * 2)
    assert ended(clients) == [0, 0]
    all_answered_and_paid_once(world, tmp_path, texts + more)


@pytest.fixture
def line(given, world, tmp_path, monkeypatch):
    """Words of a command line on the dataset `tiny`."""
    monkeypatch.chdir(tmp_path)
    settings = given | {"atomic_path": "atomic", "llm_backend": "openai", "llm": "m", "llm_url": world.url, "llm_retries": 0}
    settings = {"dataset": "tiny", "max_sessions": 20} | settings
    kept = ("dataset", "max_sessions", "data_path", "encoder", "min_item_count", "item_text", "session_rule", "session_gap")
    return [f"--{key}={value}" for key, value in settings.items() if key in kept or key.startswith(("llm", "atomic"))]


def test_infer_ends_with_a_code_of_its_own_until_the_batches_are_collected(world, line, capsys):
    command = ["infer", *line, "--llm_batch=true"]
    assert main([*command, "--dry_run=true", "--llm_prices=[100, 0]"]) == 0
    assert "in batches (--llm_batch=true) about" in capsys.readouterr().out
    world.hold = ALWAYS
    assert main(command) == 75
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "requests are under way in 1 batch" in captured.out
    assert "error" not in captured.err
    assert main([*line, "--model=SRGNN", "--llm_batch=true", "--epochs=1"]) == 75  # no training follows
    assert not Path("saved").exists()
    capsys.readouterr()
    assert main(["infer", *line, "--dry_run=true"]) == 0
    assert "are under way in batches; --llm_batch=true collects" in capsys.readouterr().out
    assert main(["infer", *line]) == 2
    assert "are under way in batches: add --llm_batch=true" in capsys.readouterr().err
    world.hold = 0
    assert main(command) == 0
    assert list(Path("atomic/tiny").glob("*/tiny.sessemb"))
    assert set(world.paid.values()) == {1}
    assert world.chats == []
    assert main(["infer", *line, "--llm_backend=echo", "--llm_batch=true"]) == 2


def runner(requests, replies):
    """What `vllm run-batch` does: a reply to each request, here with strange lines among them, one failure and one stranger."""
    lines = []
    for number, text in enumerate(Path(requests).read_text().splitlines()):
        row = json.loads(text)
        response = {"status_code": 200, "request_id": "r", "body": completion(f"title {number}")}
        if number == 3:
            response = {"status_code": 400, "body": {"error": {"message": "no"}}}
        lines.append(json.dumps({"id": "x", "custom_id": row["custom_id"], "response": response, "error": None}))
    lines += ["{", json.dumps({"custom_id": "12" * 16, "response": {"status_code": 200, "body": completion("x")}}), lines[0]]
    random.Random(1).shuffle(lines)
    Path(replies).write_text("\n".join(lines) + "\n")
    return len(lines) - 3


def test_requests_in_a_file_are_answered_by_a_runner_and_imported_and_infer_asks_what_is_left(world, line, capsys):
    assert main(["answers", "requests", *line, "--file=requests.jsonl"]) == 0
    assert main(["answers", "requests", *line, "--llm_backend=echo", "--file=x.jsonl"]) == 2
    count = runner("requests.jsonl", "replies.jsonl")
    assert f"{count:,} requests written" in capsys.readouterr().out
    assert main(["answers", "requests", *line, "--llm_refresh=true", "--file=x.jsonl"]) == 2
    assert "drop those first" in capsys.readouterr().err and not Path("x.jsonl").exists()
    with open("requests.jsonl") as lines:
        assert json.loads(next(lines))["body"].keys() == {"model", "temperature", "max_tokens", "messages"}
    assert main(["answers", "import", "--file=replies.jsonl", "--atomic_path=atomic"]) == 0
    said = capsys.readouterr().out
    assert (
        f"{count - 1:,} new answers, 1 stored already, 1 failed, 1 to requests that were not written here, 1 unreadable" in said
    )
    assert main(["answers", "import", "--file=replies.jsonl", "--atomic_path=atomic"]) == 0
    assert capsys.readouterr().out.startswith(f"0 new answers, {count} stored already")
    assert main(["answers", "import", "--file=replies.jsonl", "--atomic_path=other"]) == 0
    assert "the store holds 0" in capsys.readouterr().out
    assert main(["infer", *line]) == 0
    assert len(world.chats) == 1  # the one that failed
    assert main(["answers", "export", "--atomic_path=atomic", "--file=out.jsonl", "--llm=m at"]) == 0


def test_answers_are_imported_under_the_model_that_was_asked_for_and_nothing_needs_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    store = AnswerStore(tmp_path / "answers.sqlite")
    requests = [Request("s", f"fine\n{n}") for n in range(5)]
    mine = OpenAIBackend("m", 16, name="mine")
    assert write_questions(Questions(mine, requests, store, "t"), tmp_path / "requests.jsonl") == 5
    runner(tmp_path / "requests.jsonl", tmp_path / "replies.jsonl")
    lines = (tmp_path / "replies.jsonl").read_text().splitlines()
    lines = [line.replace('"stop"', '"length"') if '"title 1"' in line else line for line in lines]
    (tmp_path / "replies.jsonl").write_text("\n".join(lines) + "\n")
    assert import_replies(store, tmp_path / "replies.jsonl").new == 4
    assert len(store.rows("SELECT * FROM cut")) == 1
    assert len(Questions(mine, requests, store, "t").missing) == 1
    assert len(Questions(OpenAIBackend("m", 16, name="another"), requests, store, "t").missing) == 5
    assert [(row["model"], row["answers"]) for row in store.statistics()] == [("mine", 4)]
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        list(mine.generate(requests))
    store.drop("mine", "")
    assert import_replies(store, tmp_path / "replies.jsonl").new == 0


def test_answers_takes_settings_for_requests_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["answers", "stats", "--dataset=tiny"]) == 2
    assert "`answers stats` has no option --dataset" in capsys.readouterr().err
    assert main(["answers", "requests"]) == 2
    assert "needs --file" in capsys.readouterr().err
    assert main(["answers", "requests", "--file=x.jsonl"]) == 2
    assert "no dataset was named" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
