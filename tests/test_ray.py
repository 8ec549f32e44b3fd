"""The `ray` backend on a local Ray: the same answers as without it, also when a worker is killed."""

import os
import signal
import threading
import time

import pytest

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.intent.backends import Request, make_backend
from recbole_llm4sbr.intent.backends.echo import EchoBackend
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.store import AnswerStore

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    yield
    ray.shutdown()


def content(path):
    with AnswerStore(path)._db as db:
        return db.execute(
            "SELECT key, answer, model, template FROM answers JOIN sources ON source = id ORDER BY key"
        ).fetchall()


def run(backend, requests, folder):
    folder.mkdir(parents=True)
    counts = Questions(backend, requests, AnswerStore(folder / "answers.sqlite"), "t").ask(folder / "failures.jsonl", 1.0)
    return counts, content(folder / "answers.sqlite")


def ray_settings(**changed):
    return load_settings(
        dataset="tiny", overrides={"llm_backend": "ray", "ray_cpus_per_worker": 1, "llm_device": "cpu"} | changed
    )


def test_workers_answer_as_one_process_does(tiny_llm, tmp_path):
    requests = [Request("s", f"1. film {n % 90}") for n in range(100)]
    settings = ray_settings(llm=tiny_llm, llm_max_new_tokens=4, ray_workers=2)
    counts, stored = run(make_backend(settings), requests, tmp_path / "ray")
    alone, expected = run(make_backend(settings | {"llm_backend": "transformers"}), requests, tmp_path / "alone")
    assert stored == expected
    assert len(stored) > 50  # the rest of this model's answers is empty
    assert counts.calls == alone.calls == 90
    assert (counts.failures, counts.prompt_tokens) == (alone.failures, alone.prompt_tokens)


def test_workers_are_held_to_titles_too(tiny_llm, tmp_path):
    titles = [f"film {n}" for n in range(9)]
    requests = [Request("s", f"1. film {n}", excluded=(f"film {n}",)) for n in range(9)]
    settings = ray_settings(llm=tiny_llm, llm_beams=True, intent_answers=3, llm_titles="new", ray_workers=1)
    counts, stored = run(make_backend(settings, titles), requests, tmp_path / "ray")
    _, expected = run(make_backend(settings | {"llm_backend": "transformers"}, titles), requests, tmp_path / "alone")
    assert stored == expected and counts.failures == 0
    assert all(line[3:] in titles for _, answer, *_ in stored for line in answer.split("\n"))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch):
    from recbole_llm4sbr.intent.backends import ray as module

    folder = tmp_path / "pids"
    folder.mkdir()

    class SlowEcho(EchoBackend):
        """Echo that leaves word of its process and takes its time. (Local classes travel to the workers by value.)"""

        def generate(self, requests):
            for reply in super().generate(requests):
                (folder / f"{os.getpid()}.pid").touch()
                time.sleep(0.003)
                yield reply

    class Worker(module._Worker):
        def __init__(self, settings, titles):
            self._backend = SlowEcho()

    monkeypatch.setattr(module, "_Worker", Worker)
    monkeypatch.setattr(module, "_BLOCK", 50)
    requests = [Request("s", f"1. film {n}") for n in range(1500)]
    killed = []

    def kill():
        for _ in range(600):
            time.sleep(0.1)
            if pids := [int(path.stem) for path in folder.iterdir()]:
                time.sleep(0.5)
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
                return

    killer = threading.Thread(target=kill)
    killer.start()
    counts, stored = run(make_backend(ray_settings(ray_backend="echo", ray_workers=2)), requests, tmp_path / "ray")
    killer.join()
    assert killed
    assert len(list(folder.iterdir())) >= 3  # two workers and the one in the dead one's place
    assert (counts.calls, counts.failures) == (1500, 0)
    assert sorted(answer for _, answer, *_ in stored) == sorted(f"film {n}" for n in range(1500))


@pytest.mark.slow
def test_workers_that_cannot_start_or_keep_dying_end_the_run(monkeypatch):
    from recbole_llm4sbr.intent.backends import ray as module

    class Unfit(module._Worker):
        def __init__(self, settings, titles):
            raise UserError("no such model")

    class Dying(module._Worker):
        def __init__(self, settings, titles):
            pass

        def answer(self, block):
            os._exit(1)

    backend = make_backend(ray_settings(ray_backend="echo", ray_workers=1))
    for kind, said in (
        (Unfit, r"a worker of Ray cannot start: .*no such model"),
        (Dying, "3 workers of Ray died one after the other"),
    ):
        monkeypatch.setattr(module, "_Worker", kind)
        with pytest.raises(UserError, match=said):
            list(backend.generate([Request("s", "1. film")]))


def test_more_workers_than_the_cluster_carries_are_refused(tmp_path, monkeypatch):
    from recbole_llm4sbr.intent.backends import ray as module

    monkeypatch.setattr(module, "_BLOCK", 1)
    backend = make_backend(ray_settings(ray_backend="echo", ray_workers=5000))
    with pytest.raises(UserError, match=r"ray_workers=5000 .* do not fit a cluster of"):
        list(backend.generate([Request("s", f"{n}") for n in range(5001)]))
    assert list(backend.generate([])) == []


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    ray.shutdown()
    with pytest.raises(UserError, match="no Ray cluster answers at ray_address='auto'"):
        list(make_backend(ray_settings(ray_backend="echo", ray_address="auto")).generate([Request("s", "x")]))
