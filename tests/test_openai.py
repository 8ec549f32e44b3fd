"""The `openai` backend against real servers: `transformers serve` with a small model, and one that fails in every way we could think of."""

import gzip
import json
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend, hide_key
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.store import AnswerStore

KEY = "sk-very-secret-0123456789"


class Handler(BaseHTTPRequestHandler):
    """Answers "echo <last line of the question>"; a first word of the question names what goes wrong, the first `times` times."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        what, _, times = question.split()[0].partition("*")
        with self.server.lock:
            self.server.asked.append((question, time.monotonic()))
            count = sum(each == question for each, _ in self.server.asked)
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            self.server.bodies.append(body)
        try:
            (getattr(self, what) if hasattr(self, what) and count <= int(times or 10**6) else self.fine)(question)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def fine(self, question):
        time.sleep(0.005)
        self.say(f"echo {question.splitlines()[-1]}")

    def say(self, text, finish="stop"):
        message = {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}
        self.send(200, json.dumps({**message, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}))

    def send(self, status, text, length=None, **headers):
        data = text.encode("latin-1" if "Content_Encoding" in headers else "utf-8")
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length or len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def busy(self, _):
        self.send(429, '{"error": {"message": "slow down"}}', Retry_After="1")

    def broken(self, _):
        self.send(500, '{"error": {"message": "boom"}}')

    def reset(self, _):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def hang(self, _):
        self.server.release.wait(60)
        self.close_connection = True

    def half(self, _):
        self.send(200, '{"choices": [', length=5000)
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def malformed(self, _):
        self.send(200, '{"choices": [{')

    def page(self, _):
        self.send(200, "<html>welcome</html>", Content_Type="text/html")

    def empty(self, _):
        self.say("", "content_filter")

    def huge(self, _):
        self.say("long " * 2_000_000)

    def long(self, _):
        self.say("long " * 1_000)

    def at_limit(self, _):
        self.say("Crouching Tiger, Hid", "length")

    def bomb(self, _):
        self.send(200, gzip.compress(b"0" * 20_000_000).decode("latin-1"), Content_Encoding="gzip")

    def drip(self, _):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        for _ in range(600):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)
        self.close_connection = True

    def body(self, **changed):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Heat"}}
        self.send(200, json.dumps({"choices": [choice | changed], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}))

    def no_message(self, _):
        self.body(message=None)

    def string_message(self, _):
        self.body(message="Heat")

    def number(self, _):
        self.body(message={"content": 7})

    def deep(self, _):
        self.send(200, "[" * 100_000)

    def no_choices(self, _):
        self.send(200, "null")

    def surrogate(self, _):
        self.say("Heat \ud800")

    def parts(self, _):
        self.body(message={"content": [{"type": "text", "text": "Heat"}, {"type": "text", "text": " (1995)"}]})

    def usage(self, question):
        value = json.loads(question.splitlines()[1])
        self.send(200, json.dumps({"choices": [{"message": {"content": "Heat"}}], "usage": value}))

    def key(self, _):
        self.say(f"the key is {KEY}")

    def key_finish(self, _):
        self.say("", f"stopped {KEY}")

    def escapes(self, _):
        self.send(400, json.dumps({"error": {"message": "\x1b[2Jgone"}}))

    def bad(self, _):
        self.send(400, json.dumps({"error": {"message": f"context too long {self.headers['Authorization']}"}}))

    def no_format(self, _):
        self.send(400, json.dumps({"error": {"message": "'response_format' of type 'json_schema' is not supported"}}))

    def held(self, question):
        self.server.release.wait(60)
        time.sleep(0.3)  # behind the reply that released it
        self.fine(question)

    def think(self, _):
        self.say("<think>\nA heist film? " + "Perhaps. " * 1000 + "\n</think>\n\nHeat")

    def thoughts(self, _):
        self.say("<think>\nA heist film, or", "length")

    def forbidden(self, _):
        self.send(403, json.dumps({"error": {"message": "flagged by moderation"}}))

    def unauthorized(self, _):
        self.send(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}))
        self.server.release.set()


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.bodies, made.lock, made.under_way, made.most = [], [], threading.Lock(), 0, 0
    made.release = threading.Event()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.release.set()
    made.shutdown()


@pytest.fixture
def backend(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return lambda **changed: OpenAIBackend("m", 16, url, **({"timeout": 3, "retries": 2} | changed))


def ask(backend, texts, folder, rate=1.0):
    store = AnswerStore(folder / "answers.sqlite")
    questions = Questions(backend, [Request("s", text) for text in texts], store, "t")
    counts = questions.ask(folder / "failures.jsonl", rate)
    names, numbers, _ = questions.answers(lambda answer: [answer.text], 1)
    store.close()
    return counts, {text: names[number] for text, number in zip(texts, numbers[questions.number, 0]) if number >= 0}


PASSING = ["busy*1", "broken*2", "reset*1", "hang*1", "half*1", "malformed*1", "page*2"]  # come right on another try
LASTING = ["broken", "reset", "hang", "half", "malformed", "page", "empty", "bad", "huge", "bomb", "drip", "no_message", "string_message",
    "number", "deep", "no_choices", "key_finish", "escapes", "key"]  # fmt: skip


def test_whatever_goes_wrong_every_prompt_is_answered_or_logged_and_no_key_is_seen(server, backend, tmp_path, caplog):
    fine = [f"fine\nnumber {n}" for n in range(40)]
    passing = [f"{what}\nasked {what}" for what in PASSING]
    lasting = [f"{what}\nnever {what}" for what in LASTING]
    counts, answers = ask(backend(), fine + passing + lasting + ["long\nx"], tmp_path)
    assert counts.calls == len(fine + passing + lasting) + 1
    assert {text: answers[text] for text in fine + passing} == {text: f"echo {text.splitlines()[1]}" for text in fine + passing}
    assert answers["long\nx"] == ("long " * 800)
    logged = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert sorted(each["prompt"] for each in logged) == sorted(lasting)
    assert counts.failures == len(lasting)
    reasons = {each["prompt"].split("\n")[0]: each["reason"] for each in logged}
    assert "content_filter" in reasons["empty"]
    assert "context too long" in reasons["bad"]
    assert counts.prompt_tokens == 7 * (len(fine + passing) + 4)  # long and empty answers and one with the key count too
    times = [at for text, at in server.asked if text.startswith("busy")]
    assert times[1] - times[0] >= 1.0  # Retry-After was kept
    asked_once = ("bad", "huge", "bomb", "empty")  # another try would bring the same
    assert [sum(text.startswith(what) for text, _ in server.asked) for what in asked_once] == [1] * 4
    assert "larger than 4 MB" in reasons["huge"]
    assert "compressed" in reasons["bomb"]
    assert "\x1b" not in reasons["escapes"]
    assert reasons["key"] == "the answer holds the key of OPENAI_API_KEY"
    seen = caplog.text + "".join(path.read_bytes().decode(errors="replace") for path in tmp_path.iterdir())
    assert KEY not in seen
    assert "[key]" in reasons["bad"]


def test_an_answer_is_taken_once_whatever_its_usage_says_and_without_what_is_no_text(server, backend, tmp_path):
    usages = ["7", "[]", '{"prompt_tokens": "x"}', '{"prompt_tokens": -3}', '{"prompt_tokens": 1e999}', '{"completion_tokens": 1e30}',
        '{"prompt_tokens": null, "completion_tokens": 5}', '{"prompt_tokens": 99999999999999999999}']  # fmt: skip
    texts = [f"usage\n{value}" for value in usages] + ["surrogate\nx", "parts\nx"]
    counts, answers = ask(backend(), texts, tmp_path)
    assert counts.calls == len(texts) == len(server.asked)
    assert counts.failures == 0
    assert [answers[text] for text in texts] == ["Heat"] * len(usages) + ["Heat ?", "Heat (1995)"]
    assert (counts.prompt_tokens, counts.answer_tokens) == (2 * 7, 5 + 2 * 3)


@pytest.mark.parametrize("key", ["k", "lamp", "oak-lamp", KEY])
def test_answers_are_kept_as_they_came_whatever_the_key_is_and_messages_hide_it(key, server, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    _, answers = ask(backend(), ["fine\noak lamp, oak-lamp"], tmp_path)
    assert list(answers.values()) == ["echo oak lamp, oak-lamp"]
    for what, said in (("bad", "context too long Bearer [key]"), ("unauthorized", "bad key Bearer [key]")):
        with pytest.raises(UserError) as caught:
            ask(backend(concurrency=1), [f"{what}\n{n}" for n in range(8)], tmp_path / what)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("key", "said", "shown"),
    [
        ("k", "context of 4 k tokens, top-k, ask", "context of 4 k tokens, top-k, ask"),
        ("k", "Incorrect API key provided: k. See api_key='k'", "Incorrect API key provided: [key]. See api_key='[key]'"),
        ("sk-1", "sk-1 and sk-12, not desk-1", "[key] and sk-12, not desk-1"),
        (KEY, f"x{KEY}y", "x[key]y"),
        ("", "nothing to hide", "nothing to hide"),
    ],
)
def test_a_short_key_is_hidden_as_a_word_and_a_long_one_anywhere(key, said, shown):
    assert hide_key(said, key) == shown


def test_an_answer_that_ended_at_the_token_limit_is_cut(backend):
    texts = ["fine\nx", "at_limit\nx", "long\nx"]
    found = {texts[reply.position]: reply for reply in backend().generate([Request("s", text) for text in texts])}
    assert [found[text].cut for text in texts] == [False, True, True]  # what is longer than we keep is cut, too
    assert not any(reply.failure for reply in found.values())


def test_a_prompt_of_several_lines_gets_the_tokens_of_each(server, backend, tmp_path):
    for made in (backend(), backend(extra={"max_tokens": 50})):
        list(made.generate([Request("s", "fine\nx", lines=2), Request("s", "fine\ny")]))
    assert [body["max_tokens"] for body in sorted(server.bodies, key=lambda body: body["messages"][-1]["content"])] == [
        32,
        50,
        16,
        50,
    ]


SCHEMA = PromptTemplate.load("movies").build(["A"], "long", 3, as_json=True).schema


def test_several_titles_are_asked_for_by_a_json_schema(server, backend):
    for made in (backend(), backend(extra={"response_format": {"type": "json_object"}})):
        list(made.generate([Request("s", "fine\nx", lines=4, schema=SCHEMA), Request("s", "fine\ny")]))
    with_schema, *others = sorted((body.get("response_format") for body in server.bodies), key=lambda each: -len(str(each)))
    assert with_schema["type"] == "json_schema"
    assert with_schema["json_schema"]["strict"] is True
    assert with_schema["json_schema"]["schema"] == json.loads(SCHEMA)
    assert others == [{"type": "json_object"}, {"type": "json_object"}, None]
    assert {body["max_tokens"] for body in server.bodies if body["messages"][-1]["content"] == "fine\nx"} == {64}


def test_an_endpoint_that_takes_no_json_schema_is_named_with_the_way_out(backend, tmp_path):
    made = backend()
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*takes no JSON schema: .*not supported.*add --llm_json=false"):
        list(made.generate([Request("s", "no_format\nx", lines=4, schema=SCHEMA)]))
    (plain,) = made.generate([Request("s", "no_format\nx")])  # no schema was sent, so that this is a failure like others
    assert "not supported" in plain.failure
    (other,) = made.generate([Request("s", "bad\nx", lines=4, schema=SCHEMA)])
    assert "context too long" in other.failure
    assert "--llm_json=false" in other.failure
    assert KEY not in other.failure


def test_a_refused_key_ends_the_run_at_once_without_showing_it(server, backend, tmp_path):
    with pytest.raises(UserError, match=r"refuses.*OPENAI_API_KEY") as caught:
        ask(backend(concurrency=2), [f"unauthorized\n{n}" for n in range(100)], tmp_path)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(server.asked) < 10


def test_a_question_that_is_refused_among_answered_ones_fails_alone(server, backend, tmp_path):
    texts = [f"{'forbidden' if n % 3 == 1 else 'fine'}\n{n}" for n in range(9)]
    counts, answers = ask(backend(concurrency=1), texts, tmp_path)
    assert (counts.calls, counts.failures, len(answers)) == (9, 3, 6)
    assert "flagged by moderation" in (tmp_path / "failures.jsonl").read_text()


def test_what_was_under_way_when_a_run_ends_is_kept(server, backend, tmp_path):
    with pytest.raises(UserError, match="refuses"):
        ask(backend(concurrency=3, timeout=60), ["held\n1", "held\n2", "unauthorized\n3", "fine\n4"], tmp_path)
    assert len(server.asked) == 3
    counts, answers = ask(backend(), ["held\n1", "held\n2"], tmp_path)
    assert (counts.calls, len(answers)) == (0, 2)


def test_a_run_ends_when_everything_has_begun_to_fail(server, backend, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm4sbr.intent.questions._IN_A_ROW", 10)
    texts = [f"fine\n{n}" for n in range(5)] + [f"bad\n{n}" for n in range(50)]
    with pytest.raises(
        UserError, match=r"10 calls in a row failed, the last one with: BadRequestError.*only the rest is asked"
    ):
        ask(backend(concurrency=1), texts, tmp_path)
    assert len(server.asked) == 15
    with pytest.raises(
        UserError, match=r"9 of 10 calls failed.*most often: .*BadRequestError.* \(9 times\).*the missing ones$"
    ):
        ask(backend(concurrency=1), ["fine\nnew", *texts[-9:]], tmp_path, 0.1)


def test_answers_do_not_wait_for_slow_ones(server, backend, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm4sbr.intent.backends.openai._PAUSE", 0.1)
    texts = [f"fine\n{n}" for n in range(5)] + ["held\n6"]
    thread = threading.Thread(target=ask, args=(backend(timeout=60), texts, tmp_path))
    thread.start()
    until, kept = time.monotonic() + 40, 0
    while kept < 5 and time.monotonic() < until:
        time.sleep(0.05)
        if (tmp_path / "answers.sqlite").exists():
            with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as store, suppress(sqlite3.OperationalError):
                ((kept,),) = store.execute("SELECT COUNT(*) FROM answers").fetchall()
    assert thread.is_alive(), "the last one is under way"
    assert kept == 5
    server.release.set()
    thread.join()


def test_nobody_who_interrupts_waits_for_the_endpoint(server, backend):
    replies = backend(timeout=5).generate(iter([Request("s", "fine\n1"), Request("s", "held\n2")]))
    next(replies)
    assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]


def test_thoughts_are_no_answer(server, backend, tmp_path):
    _, answers = ask(backend(), ["think\n1", "thoughts\n2"], tmp_path)
    assert answers == {"think\n1": "\n\nHeat"}
    assert "thoughts without an answer; raise --llm_max_new_tokens" in (tmp_path / "failures.jsonl").read_text()


@pytest.mark.parametrize("field", ["model", "messages", "n", "stream"])
def test_what_a_request_is_made_of_is_not_for_extra_fields(backend, field):
    with pytest.raises(UserError, match=f"llm_extra sets '{field}'"):
        backend(extra={"top_p": 0.5, field: 3})


def test_so_many_requests_are_under_way_and_no_more(server, backend, tmp_path):
    counts, _ = ask(backend(concurrency=5), [f"fine\n{n}" for n in range(100)], tmp_path)
    assert counts.calls == 100
    assert 3 <= server.most <= 5


def test_fields_of_the_request_are_ours_but_for_what_extra_says(server, backend, tmp_path):
    changed = backend(extra={"max_tokens": None, "max_completion_tokens": 99, "top_p": 0.5})
    ask(changed, ["fine\nx"], tmp_path)
    body = server.bodies[0]
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "m", "temperature": 0, "max_completion_tokens": 99, "top_p": 0.5,
    }  # fmt: skip
    assert changed.decoding != backend().decoding
    assert backend(name="mine").identity == "mine"


def test_bad_addresses_and_missing_keys_are_named(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        OpenAIBackend("gpt", 16)
    with pytest.raises(UserError, match="not an address"):
        OpenAIBackend("m", 16, "localhost:8000")
    with pytest.raises(UserError, match="password") as caught:
        OpenAIBackend("m", 16, f"http://me:{KEY}@127.0.0.1:8000/v1")
    assert KEY not in str(caught.value)


def test_first_requests_that_are_all_refused_end_the_run_with_the_endpoints_reason(server, backend, tmp_path):
    with pytest.raises(UserError, match=r"refuses the first \d+ requests: BadRequestError.*check --llm, --llm_extra"):
        ask(backend(concurrency=2), [f"bad\n{n}" for n in range(100)], tmp_path)
    assert len(server.asked) < 10
    counts, found = ask(backend(concurrency=1), ["fine\n1", *(f"bad\n{n}" for n in range(20))], tmp_path)
    assert (counts.failures, len(found)) == (20, 1)  # the endpoint answers: these are refused one by one


def test_an_endpoint_that_is_not_there_ends_the_run_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"cannot reach {url} \(.*\); is the server running"):
        ask(OpenAIBackend("m", 16, url), [f"x {n}" for n in range(500)], tmp_path)
    assert time.monotonic() - started < 15  # it waits for nothing: with its six tries a request takes over 20 s


@pytest.fixture(scope="module")
def transformers_server(tiny_llm, tmp_path_factory):
    """`transformers serve` with the tiny model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    with open(tmp_path_factory.mktemp("serve") / "log", "w") as log:
        process = subprocess.Popen([*command, "--dtype", "float32"], stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.2)
        yield f"{url}/v1"
        process.terminate()
        process.wait()


@pytest.mark.skipif(Version(version("transformers")) < Version("5.5"), reason="its server does not say how many tokens it used")
def test_a_real_server_answers_as_the_model_does_here(transformers_server, tiny_llm, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    texts = [f"what comes after {n} {n * n}" for n in range(8)]
    counts, answers = ask(OpenAIBackend(tiny_llm, 6, transformers_server, concurrency=2), texts, tmp_path)
    assert (counts.calls, counts.failures) == (8, 0)
    assert counts.prompt_tokens > 8 * 20
    assert 8 <= counts.answer_tokens <= 8 * 6
    monkeypatch.setattr("recbole_llm4sbr.intent.backends.transformers.compute_dtype", lambda device: torch.float32)
    here = TransformersBackend(tiny_llm, 6, device="cpu").generate([Request("s", text, lines=9) for text in texts])
    expected = {texts[reply.position]: reply.answer for reply in here}
    assert {text: answers[text] for text in texts} == {text: expected[text][: len(answers[text])] for text in texts}
