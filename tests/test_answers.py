import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Reply, Request
from recbole_llm4sbr.intent.backends.echo import EchoBackend
from recbole_llm4sbr.intent.cleaning import clean
from recbole_llm4sbr.intent.questions import Questions, estimate
from recbole_llm4sbr.intent.store import Answer, AnswerStore, Asker, answer_key, read_answers, shipped_answers, write_answers
from recbole_llm4sbr.intent.titles import TitleReader

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
        ("I Can't Sleep", "I Can't Sleep"),
        ("i can't sleep", "i can't sleep"),
        ("I Don't Want to Talk About It (1993)", "I Don't Want to Talk About It (1993)"),
        ("I Don't Know How She Does It", "I Don't Know How She Does It"),
        ("Sorry, Wrong Number", "Sorry, Wrong Number"),
        ("I'm Sorry, I Love You", "I'm Sorry, I Love You"),
        ("Unknown (2011)", "Unknown (2011)"),
        ("None but the Brave", "None but the Brave"),
        ("I cannot", ""),
        ("i can't provide a title", ""),
        ("I don’t know which movie", ""),
        ("Sorry, I can't help with that", ""),
        ("Sorry, but there is no", ""),
        ("Unfortunately, I do not have", ""),
        ("I am unable to guess", ""),
        ("I'm not sure", ""),
        ("unknown", ""),
        ("N/A", ""),
        ("None.", ""),
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
        *(answer_key("m", {"n": 1}, request._replace(**{field: "x"})) for field in ("system", "user", "answer_start")),
        answer_key("m", {"n": 1}, request._replace(lines=2)),
    }
    assert len(keys) == 7
    assert answer_key("m", {"a": 1, "b": 2}, request) == answer_key("m", {"b": 2, "a": 1}, request)
    renamed = [answer_key(f"{name} (sha256 {digest})", {}, request) for name, digest in (("a", "1f"), ("b", "1f"), ("a", "2e"))]
    assert renamed[0] == renamed[1] != renamed[2]


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


def ask(backend, requests, store, failures=None, rate=0.01, **changed):
    """Counts, and the raw answer of every request (None where there is none)."""
    store = AnswerStore(store)
    questions = Questions(backend, requests, store, "t", **changed)
    counts = questions.ask(failures or store.path.with_name("failures.jsonl"), rate)
    names, numbers, _ = questions.answers(lambda answer: [answer.text], 1)
    store.close()
    return counts, [names[number] if number >= 0 else None for number in numbers[questions.number, 0]]


def test_equal_requests_are_sent_once_and_a_second_run_sends_none(tmp_path):
    requests = [Request("s", f"1. item {n % 7}") for n in range(20)]
    first, answers = ask(EchoBackend(), requests, tmp_path / "store")
    assert (first.prompts, first.distinct, first.calls, first.reused) == (20, 7, 7, 0)
    assert answers == [f"item {n % 7}" for n in range(20)]
    second, again = ask(EchoBackend(), requests, tmp_path / "store")
    assert (second.calls, second.reused, again) == (0, 7, answers)
    assert ask(EchoBackend(), requests, tmp_path / "store", since=int(time.time()) + 1)[0].calls == 7


def test_shipped_answers_serve_only_their_own_model_and_decoding(tmp_path):
    one, two, quoted = b"1" * 16, b"2" * 16, Answer('a "quoted" one', cut=True)
    write_answers(tmp_path / "a.jsonl", {"model": "m", "decoding": {"n": 1}}, [(one.hex(), quoted), (two.hex(), Answer("é"))])
    assert shipped_answers("m", {"n": 1}, tmp_path) == {one: quoted, two: Answer("é")}
    assert shipped_answers("m", {"n": 2}, tmp_path) == shipped_answers("m2", {"n": 1}, tmp_path) == {}


class Short(EchoBackend):
    """Echo whose answers about an even number were cut."""

    def generate(self, requests):
        for reply in super().generate(requests):
            yield reply._replace(cut=reply.answer[-1] in "02468")


def test_a_cut_answer_is_stored_as_such_and_not_asked_again(tmp_path):
    requests = [Request("s", f"1. item {n}") for n in range(10)]
    assert ask(Short(), requests, tmp_path / "store")[0].calls == 10
    assert ask(Short(), requests, tmp_path / "store")[0].calls == 0

    def cut(path):
        questions = Questions(Short(), requests, AnswerStore(path), "t")
        return [questions.answer(n) for n in range(10)], questions.answers(lambda answer: [answer.text], 1)[2].tolist()

    expected = [Answer(f"item {n}", n % 2 == 0) for n in range(10)], [n % 2 == 0 for n in range(10)]
    assert cut(tmp_path / "store") == expected
    store = AnswerStore(tmp_path / "store")
    assert store.export(tmp_path / "out.jsonl", "echo", "t") == 10
    assert AnswerStore(tmp_path / "other").import_answers(tmp_path / "out.jsonl") == 10
    assert cut(tmp_path / "other") == expected
    whole = ask(EchoBackend(), requests, tmp_path / "store", since=int(time.time()) + 1)
    assert whole[0].calls == 10
    assert not any(cut(tmp_path / "store")[1])  # those of the refresh are whole
    assert store.drop("echo", "t") == 10
    assert store.rows("SELECT * FROM cut") == []


def test_a_store_of_an_earlier_version_keeps_its_answers(tmp_path):
    requests = [Request("s", f"1. item {n}") for n in range(4)]
    ask(EchoBackend(), requests, tmp_path / "store")
    with sqlite3.connect(tmp_path / "store") as db:
        db.execute("DROP TABLE cut")  # as stores were before
    counts, answers = ask(EchoBackend(), requests, tmp_path / "store")
    assert (counts.calls, answers) == (0, [f"item {n}" for n in range(4)])
    assert ask(Short(), [Request("s", "1. item 8")], tmp_path / "store")[0].calls == 1


class Faulty(EchoBackend):
    """Echo that fails, or has nothing to say, where the text says so."""

    def generate(self, requests):
        for reply in super().generate(requests):
            if "fails" in reply.answer:
                yield Reply(reply.position, failure="told to fail")
            else:
                yield reply._replace(answer=" \n" if "silent" in reply.answer else reply.answer)


def test_a_failure_is_logged_and_counted_never_stored_and_asked_again(tmp_path):
    texts = [f"1. item {n}" for n in range(97)] + ["1. fails", "1. silent", "1. fails too"]
    requests = [Request("s", text) for text in texts]
    counts, answers = ask(Faulty(), requests, tmp_path / "store", rate=0.03)
    assert (counts.calls, counts.failures) == (100, 3)
    assert answers[97:] == [None] * 3
    logged = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(each["prompt"], each["reason"]) for each in logged] == [
        ("1. fails", "told to fail"), ("1. silent", "an empty answer"), ("1. fails too", "told to fail"),
    ]  # fmt: skip
    assert len(AnswerStore(tmp_path / "store")) == 97
    counts, answers = ask(EchoBackend(), requests, tmp_path / "store")
    assert (counts.calls, counts.reused, answers[97]) == (3, 97, "fails")
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_complete_batch_is_stored_before_the_next_one_is_waited_for(tmp_path):
    stored = []

    class Batches(EchoBackend):
        def generate(self, requests):
            for reply in super().generate(requests):
                yield reply._replace(more=reply.position % 5 < 4)
                if reply.position % 5 == 4:  # asked for the next batch
                    stored.append(len(AnswerStore(tmp_path / "store")))

    ask(Batches(), [Request("s", f"1. item {n}") for n in range(20)], tmp_path / "store")
    assert stored == [5, 10, 15, 20]


def test_too_many_failures_end_in_an_error_after_the_rest_is_done(tmp_path):
    requests = [Request("s", f"1. {'fails' if n == 5 else 'item'} {n}") for n in range(50)]
    with pytest.raises(UserError, match=r"1 of 50 calls failed.*max_failure_rate=0.01.*run again"):
        ask(Faulty(), requests, tmp_path / "store")
    assert len(AnswerStore(tmp_path / "store")) == 49


def test_a_backend_that_never_answers_ends_the_run_early(tmp_path):
    sent = []

    class Dead(EchoBackend):
        def generate(self, requests):
            for position, _ in enumerate(requests):
                sent.append(position)
                yield Reply(position, failure="no")

    with pytest.raises(UserError, match="none of the first 64 calls"):
        ask(Dead(), [Request("s", f"1. item {n}") for n in range(1000)], tmp_path / "store")
    assert len(sent) == 64


def test_an_estimate_makes_no_call_and_counts_what_is_missing(tmp_path):
    class Uncallable(EchoBackend):
        def generate(self, requests):
            raise AssertionError("called")

    requests = [Request("be brief", f"1. item {n}") for n in range(100)]
    ask(EchoBackend(), requests[:40], tmp_path / "store")
    text = estimate(Questions(Uncallable(), requests, AnswerStore(tmp_path / "store"), "t"), (1e4, 0.0))
    assert "100 prompts, 100 distinct; answered already: 40 in the store, 0 shipped" in text
    assert "prompt tokens: about 180\n" in text  # 60 prompts of three words
    assert "cost: about 1.80" in text
    assert "prompts/s as in this model's last run" in text
    assert text.count("--- an example ---") == 3
    several = [request._replace(lines=5) for request in requests]
    text = estimate(Questions(Uncallable(), several, AnswerStore(tmp_path / "store"), "t"), (0.0, 1e4))
    assert f"cost: about {100 * 5 * 16 / 100:.2f}" in text  # none of these is answered; five titles of sixteen tokens each
    Uncallable.decoding = {"max_tokens": 7}
    other = Questions(Uncallable(), requests, AnswerStore(tmp_path / "store"), "t")
    assert "this model has not run here yet" in estimate(other, None)


def test_export_and_import_carry_answers_to_another_store_and_drop_removes_them(tmp_path):
    requests = [Request("s", f"1. item {n}") for n in range(30)]
    ask(EchoBackend(), requests, tmp_path / "one")
    store = AnswerStore(tmp_path / "one")
    assert store.export(tmp_path / "out.jsonl", "echo", "t") == 30
    provenance, rows = read_answers(tmp_path / "out.jsonl")
    assert (provenance["model"], provenance["template"], provenance["answers"]) == (EchoBackend.identity, "t", 30)
    assert len(dict(rows)) == 30
    other = AnswerStore(tmp_path / "two")
    assert (other.import_answers(tmp_path / "out.jsonl"), other.import_answers(tmp_path / "out.jsonl")) == (30, 0)
    assert other.statistics()[0] | {"first": 0, "last": 0} == {
        "model": EchoBackend.identity, "decoding": "{}", "template": "t", "answers": 30, "distinct": 30, "first": 0, "last": 0,
        "calls": None, "seconds": None,
    }  # fmt: skip
    other.close()
    counts, answers = ask(EchoBackend(), requests, tmp_path / "two")
    assert (counts.calls, answers[3]) == (0, "item 3")
    other = AnswerStore(tmp_path / "two")
    with pytest.raises(UserError, match="holds no answers of a model named like 'gpt'"):
        other.drop("gpt", "")
    assert other.drop("echo", "t") == 30
    assert len(other) == 0


def test_answers_of_one_model_that_were_decoded_otherwise_are_exported_and_dropped_apart(tmp_path):
    store = AnswerStore(tmp_path / "store")
    for number, sampling in enumerate(("greedy", "greedy", "5 likeliest by beam search")):
        store.put([(bytes([number]) * 16, Answer(f"answer {number}"))], store.source("m", {"sampling": sampling}, "t"))
    with pytest.raises(UserError, match=r"more than one kind of answers fits.*--decoding=greedy"):
        store.export(tmp_path / "out.jsonl", "m", "t")
    with pytest.raises(UserError, match=r"holds no answers of a model named like 'm'.* and decoding like 'top_p'"):
        store.export(tmp_path / "out.jsonl", "m", "t", "top_p")
    assert store.export(tmp_path / "out.jsonl", "m", "t", "greedy") == 2
    with store.writing():
        store.source("m", {"greedy": True, "max_new_tokens": 99}, "t")  # of an attempt that failed
    assert store.export(tmp_path / "out.jsonl", "m", "t", "greedy") == 2
    assert read_answers(tmp_path / "out.jsonl")[0]["decoding"] == {"sampling": "greedy"}
    assert (store.drop("m", "", "likeliest"), len(store)) == (1, 2)


@pytest.mark.parametrize(
    "lead_in",
    [
        "Here is one thing this person loves:",
        "Sure! Here's a movie that they would enjoy:",
        "Based on the list, I think this person likes:",
        "I would say:",
        "The next item in the session could be:",
        "My recommendation for you:",
        "One movie this person loves is:",
        "Guess one movie this person loves:",
    ],
)
def test_a_sentence_with_a_colon_before_the_name_goes(lead_in):
    names = ["Oak Lamp", "Star Wars: A New Hope", "Mission: Impossible", "101 Dalmatians", "the colour of spring: a jug"]
    for name in names:
        for raw in (f"{lead_in} {name}", f'{lead_in} "{name}".', f"{lead_in} **{name}**", f"{lead_in}\n{name}"):
            assert clean(raw, [QUALIFIER]) == name
            if "\n" not in raw:
                assert TitleReader(["long"], 3, [QUALIFIER], []).read(f"1. {raw}\n2. Heat") == [[name, "Heat"]]


def test_no_title_loses_what_stands_before_its_colon():
    titles = [
        "Star Wars: A New Hope", "Mission: Impossible", "2001: A Space Odyssey", "Alien: Resurrection", "Dr. Strangelove or: How I Learned",
        "Here Is Where We Meet: A Fiction", "The Person You Love Is 72.8% Water: Stories", "oak lamp: small",
        "in the mood for love: the soundtrack", "The one that got away: a novel",
    ]  # fmt: skip
    assert [clean(title, [QUALIFIER]) for title in titles] == titles
    # titles of the catalogue stay, whatever they read like, and so does what a title of the catalogue begins with
    known = ["my next item: heat", "heat", "here is one thing this person loves: oak lamp", "oak lamp"]
    assert [clean(title, [], known) for title in known] == known
    assert clean("my next item: Heat Wave", [], known) == "my next item: Heat Wave"
    assert clean("A thing so fine: Oak Lamp", [], known) == "Oak Lamp"  # what follows is a title of the catalogue
    assert clean("Crimson Lamp Shop: Oak Lamp", [], known) == "Crimson Lamp Shop: Oak Lamp"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a file of exported answers"),
        ('{"provenance": {"model": "m"}}\n', "not a file of exported answers"),
        ('{"provenance": {"model": "m", "decoding": {}}}\n["00", "x"]\n', "line 2, is not a key"),
        (f'{{"provenance": {{"model": "m", "decoding": {{}}}}}}\n["{"0" * 32}", "x"]\n["{"1" * 32}", ', "line 3, is not a key"),
        (f'{{"provenance": {{"model": "m", "decoding": {{}}}}}}\n["{"0" * 32}", "x", "y"]\n', "line 2, is not a key"),
    ],
)
def test_a_broken_file_of_answers_is_refused_and_nothing_of_it_is_taken(tmp_path, text, complaint):
    (tmp_path / "in.jsonl").write_text(text)
    store = AnswerStore(tmp_path / "store")
    with pytest.raises(UserError, match=complaint):
        store.import_answers(tmp_path / "in.jsonl")
    assert len(store) == 0


SLOW_ASK = """
import sys, time
from pathlib import Path
from recbole_llm4sbr.intent.store import AnswerStore
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.echo import EchoBackend
class Slow(EchoBackend):
    def generate(self, requests):
        for reply in super().generate(requests):
            print("called", flush=True)
            time.sleep(0.0005)
            yield reply
store = AnswerStore(sys.argv[1])
Questions(Slow(), [Request("s", f"1. item {n}") for n in range(500)], store, "t").ask(Path(sys.argv[1] + ".failures"))
"""


def test_killed_runs_lose_at_most_one_batch_each(tmp_path):
    store, calls, kills, rng = tmp_path / "store", 0, 0, random.Random(5)
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-c", SLOW_ASK, str(store)], stdout=subprocess.PIPE, text=True)
        began = process.stdout.readline()
        calls += bool(began)
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        calls += process.stdout.read().count("called")
        kills += 1
        assert AnswerStore(store).statistics()
    done = subprocess.run([sys.executable, "-c", SLOW_ASK, str(store)], capture_output=True, text=True, check=True)
    calls += done.stdout.count("called")
    assert len(AnswerStore(store)) == 500
    assert 500 <= calls <= 500 + kills * 64


def test_calls_and_seconds_of_a_killed_run_are_counted(tmp_path):
    """The process ends without a word after 150 of 200 answers; two transactions of 64 are in the store by then."""
    ends = "yield reply\n            if reply.position == 149: __import__('os')._exit(9)"
    dying = SLOW_ASK.replace("yield reply", ends).replace("500", "200")
    process = subprocess.run([sys.executable, "-c", dying, str(tmp_path / "store")], capture_output=True, check=False)
    assert process.returncode == 9
    store = AnswerStore(tmp_path / "store")
    ((calls, seconds, tokens),) = store._db.execute("SELECT calls, seconds, prompt_tokens FROM runs").fetchall()
    assert calls == len(store) == 128
    assert seconds > 0
    assert tokens == sum(len(f"1. item {n}".split()) for n in range(128))


def test_several_processes_on_one_store_ask_every_question_once_altogether(tmp_path):
    store = tmp_path / "store"
    several = [
        subprocess.Popen([sys.executable, "-c", SLOW_ASK, str(store)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    calls = [process.communicate()[0].count("called") for process in several]
    assert [process.returncode for process in several] == [0] * 4
    assert sum(calls) == 500
    counts, answers = ask(EchoBackend(), [Request("s", f"1. item {n}") for n in range(500)], store)
    assert (counts.calls, counts.reused) == (0, 500)
    assert answers == [f"item {n}" for n in range(500)]
    assert AnswerStore(store).claim([b"a"], "me") == {b"a"}


def test_claims_of_the_living_are_kept_and_those_of_the_dead_are_taken_over(tmp_path, monkeypatch):
    store, keys = AnswerStore(tmp_path / "store"), [b"a", b"b", b"c"]
    with Asker(store) as asker:
        assert store.claim(keys[:2], asker.owner) == set(keys[:2]) == store.claim(keys[:2], asker.owner)
        assert store.claim(keys, "elsewhere 1 x") == {b"c"}
        store.release(asker.owner, b"a")
        assert store.claim(keys, "elsewhere 1 x") == {b"a", b"c"}
    assert store.claim(keys, "elsewhere 1 x") == set(keys)
    store.live("elsewhere 1 x")
    assert store.claim(keys, "here 1 y") == set()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31)  # no sign of life for so long
    assert store.claim(keys, "here 1 y") == set(keys)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = f"{socket.gethostname()} {ended.pid} z"
    store.live(dead)
    assert store.claim([b"d"], dead) == {b"d"} == store.claim([b"d"], "here 1 y")


def test_a_question_that_another_process_is_asking_is_waited_for_and_asked_when_that_one_fails(tmp_path):
    request = Request("s", "1. item 7")
    store = AnswerStore(tmp_path / "store")
    key = answer_key(EchoBackend.identity, EchoBackend().decoding, request)
    store.live("elsewhere 1 x")
    store.claim([key], "elsewhere 1 x")
    threading.Timer(0.5, lambda: AnswerStore(tmp_path / "store").release("elsewhere 1 x")).start()
    started = time.monotonic()
    counts, answers = ask(EchoBackend(), [request, Request("s", "1. item 8")], tmp_path / "store")
    assert time.monotonic() - started > 0.4
    assert (counts.calls, answers) == (2, ["item 7", "item 8"])


def test_half_a_surrogate_pair_in_an_answer_does_not_hinder_the_others(tmp_path):
    store = AnswerStore(tmp_path / "store")
    store.put([(b"a", Answer("fine")), (b"b", Answer("half \ud83d"))], store.source("m", {}, "t"))
    assert store.get([b"a", b"b"]) == {b"a": Answer("fine"), b"b": Answer("half ?")}


def test_a_store_that_lost_a_table_is_refused(tmp_path):
    AnswerStore(tmp_path / "store").close()
    with sqlite3.connect(tmp_path / "store") as db:
        db.execute("DROP TABLE answers")
    with pytest.raises(UserError, match="lost a table"):
        AnswerStore(tmp_path / "store")
