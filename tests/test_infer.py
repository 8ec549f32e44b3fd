import multiprocessing
import random
import time
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
from conftest import file_of, session_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.checks import check_run_files
from recbole_llm4sbr.data.folders import asked_files, dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items, read_sessions
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.infer import describe_counts, infer
from recbole_llm4sbr.intent.llm_intents import STORE, _spread, asked_about
from recbole_llm4sbr.intent.prompts import item_texts
from recbole_llm4sbr.intent.store import AnswerStore

FILES = ("tiny.itememb", "tiny.sessemb", "tiny.intentemb", "infer.json")


def content(settings):
    return {name: file_of(settings, name).read_bytes() for name in FILES}


def table(settings, name):
    frame = pd.read_csv(file_of(settings, name), sep="\t", dtype=str, keep_default_na=False)
    return frame.rename(columns=lambda column: column.partition(":")[0])


def rows_of(settings):
    return {row: prefix for row, prefix, _ in session_rows(dataset_folder(settings), "tiny", *asked_files(settings))}


def test_answers_that_were_cut_are_missing_and_the_summary_names_the_remedy(settings_for, tiny_llm):
    settings = settings_for(llm=tiny_llm, llm_backend="transformers", llm_device="cpu", llm_max_new_tokens=12, max_sessions=40)
    prepare(settings)
    counts = infer(settings).counts
    rows = read_sessions(dataset_folder(settings), "tiny", *asked_files(settings))
    asked = [each for views in asked_about(settings, rows) for each in views.values() if each.raw is not None]
    assert not any(end in each.raw for each in asked if each.cut for end in '"\n')
    assert not any(each.names for each in asked if each.cut)
    with closing(AnswerStore(dataset_folder(settings).parent / STORE)) as store:
        assert 0 < len(store.rows("SELECT * FROM cut")) < len(store)
    assert 0 < counts.cut <= counts.no_intent
    assert f"of these {counts.cut:,} with an answer that was cut (raise --llm_max_new_tokens)" in describe_counts(counts)
    again = infer(settings | {"rebuild": True}).counts
    assert (again.calls, again.cut) == (0, counts.cut)
    assert infer(settings).counts.cut == counts.cut  # as the files say
    with pytest.raises(UserError, match=r"names anything; [0-9]+ were cut: raise --llm_max_new_tokens"):
        infer(settings | {"rebuild": True, "llm_max_new_tokens": 1})


def test_every_session_gets_the_items_nearest_to_its_answer(tiny):
    items = read_items(dataset_folder(tiny) / "tiny.item")
    vectors = Encoder(tiny["encoder"]).encode(item_texts(items, tiny)).astype(float)
    names = dict(zip(items["item_id"], items["title"]))
    sessions = table(tiny, "tiny.sessemb")
    prefixes = rows_of(tiny)
    assert set(sessions["sid"]) == set(prefixes)
    for row in sessions.itertuples():
        answer = Encoder(tiny["encoder"]).encode([names[prefixes[row.sid][-1]]])[0]  # echo answers with the last item
        similar = vectors @ answer
        shown = [items["item_id"].tolist().index(token) for token in row.long_items.split()]
        np.testing.assert_allclose(np.sort(similar)[::-1][:10], [float(x) for x in row.long_sims.split()], atol=1e-4)
        np.testing.assert_allclose(similar[shown], [float(x) for x in row.long_sims.split()], atol=1e-4)
        if row.Index > 15:
            break


def test_item_vectors_survive_writing_and_reading(tiny):
    items = read_items(dataset_folder(tiny) / "tiny.item")
    vectors = Encoder(tiny["encoder"]).encode(item_texts(items, tiny))
    written = table(tiny, "tiny.itememb")
    assert written["iid"].tolist() == items["item_id"].tolist()
    np.testing.assert_allclose(np.array([row.split(" ") for row in written["item_emb"]], float), vectors, atol=1e-6)


def test_a_second_run_makes_no_call_and_other_settings_are_refused_until_rebuild(tiny):
    before = content(tiny)
    again = infer(tiny).counts
    assert (again.calls, again.reused) == (0, again.distinct_prompts)
    assert content(tiny) == before
    with pytest.raises(UserError, match=r"intent_k_max was 10, now 5.*--rebuild"):
        infer(tiny | {"intent_k_max": 5, "intent_k": 3})
    with pytest.raises(UserError, match="intent_k_max"):
        check_run_files(tiny | {"intent_k_max": 5, "intent_k": 3})
    remade = infer(tiny | {"intent_k_max": 5, "intent_k": 3, "rebuild": True}).counts
    assert (remade.calls, remade.k_max) == (0, 5)


def test_refresh_asks_anew_and_never_over_the_files_of_other_settings(tiny):
    before = content(tiny)
    with pytest.raises(UserError, match=r"prompt differs in system, background.*--rebuild"):
        infer(tiny | {"llm_refresh": True, "prompt": "movies"})
    assert content(tiny) == before
    counts = infer(tiny | {"llm_refresh": True}).counts
    assert counts.calls == counts.distinct_prompts > 0
    assert content(tiny) == before


def test_a_killed_refresh_goes_on_where_it_was(tiny, monkeypatch):
    from recbole_llm4sbr.intent.backends.echo import EchoBackend

    whole, original = infer(tiny).counts.distinct_prompts, EchoBackend.generate

    def generate(self, requests):
        for number, reply in enumerate(original(self, requests)):
            if number == 70:
                raise KeyboardInterrupt
            yield reply

    monkeypatch.setattr(EchoBackend, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        infer(tiny | {"llm_refresh": True})
    monkeypatch.undo()
    monkeypatch.chdir(dataset_folder(tiny).parent)
    assert infer(tiny).counts.calls == 0  # without a refresh the files serve as they are
    counts = infer(tiny | {"llm_refresh": True}).counts
    assert (counts.calls, counts.reused) == (whole - 70, 70)
    assert infer(tiny | {"llm_refresh": True}).counts.calls == whole  # the next refresh is a new one


def test_feature_files_of_other_sessions_are_refused(tiny):
    prepare(tiny | {"split": "paper", "rebuild": True})
    infer(tiny | {"split": "paper"})
    old = file_of(tiny, "infer.json").read_text()
    prepare(tiny | {"rebuild": True})
    infer(tiny)
    file_of(tiny, "infer.json").write_text(old)
    with pytest.raises(UserError, match="session files are others"):
        check_run_files(tiny)


def test_max_sessions_asks_for_so_many_and_leaves_the_others_without_an_intent(settings_for):
    settings = settings_for(max_sessions=20)
    prepare(settings)
    counts = infer(settings).counts
    assert counts.prompts == 40
    sessions = table(settings, "tiny.sessemb")
    assert (sessions["long_items"] != "").sum() == 20
    assert (counts.not_asked, counts.no_intent) == (2 * (len(sessions) - 20), 0)


def test_a_subset_is_spread_over_all_parts():
    assert _spread(100, 0) == _spread(100, 1000) == list(range(100))
    chosen = np.array(_spread(100, 10))
    assert len(chosen) == 10
    assert [((low <= chosen) & (chosen < high)).sum() for low, high in ((0, 80), (80, 90), (90, 100))] == [8, 1, 1]


def test_session_text_needs_no_llm_and_is_the_mean_of_the_items(settings_for):
    settings = settings_for(intent_source="session_text")
    prepare(settings)
    counts = infer(settings).counts
    assert counts.calls == counts.prompts == 0
    assert not (dataset_folder(settings).parent / "answers.sqlite").exists()
    items = read_items(dataset_folder(settings) / "tiny.item")
    vector = dict(zip(items["item_id"], Encoder(settings["encoder"]).encode(item_texts(items, settings)), strict=True))
    prefixes, sessions = rows_of(settings), table(settings, "tiny.sessemb")
    for row in sessions.head(30).itertuples():
        for view, shown in (("long", prefixes[row.sid]), ("short", prefixes[row.sid][-3:])):
            mean = np.mean([vector[item] for item in shown], 0)
            similar = sorted((float(vector[item] @ mean) / np.linalg.norm(mean) for item in vector), reverse=True)
            np.testing.assert_allclose([float(x) for x in getattr(row, f"{view}_sims").split()], similar[:10], atol=1e-4)
    with pytest.raises(UserError, match="intent_k=0"):
        infer(settings | {"intent_k": 0})


def test_an_llm_that_does_not_load_leaves_no_folder(settings_for, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    settings = settings_for(llm_backend="transformers", llm=str(tmp_path / "broken"))
    prepare(settings)
    with pytest.raises(UserError, match="cannot load the model"):
        infer(settings)
    assert [path.name for path in dataset_folder(settings).iterdir() if path.is_dir()] == []


def test_infer_without_prepare_says_so(settings_for):
    with pytest.raises(UserError, match="run `recbole-llm4sbr prepare"):
        infer(settings_for())


def test_an_item_without_a_text_is_never_an_intent(settings_for, raw, tmp_path):
    import shutil

    shutil.copytree(raw / "tiny", tmp_path / "gap" / "tiny")
    path = tmp_path / "gap" / "tiny" / "tiny.item"
    path.write_text(
        "\n".join(line if not line.startswith("m3\t") else "m3\t\t" for line in path.read_text().splitlines()) + "\n"
    )
    settings = settings_for(data_path=str(tmp_path / "gap"))
    prepare(settings)
    with pytest.raises(UserError, match="item 'm3' has no 'title'"):
        infer(settings)
    settings = settings | {"missing_item_text": "unknown"}
    infer(settings)
    sessions = table(settings, "tiny.sessemb")
    assert not any("m3" in row.split() for view in ("long", "short") for row in sessions[f"{view}_items"])


def test_kill_at_any_moment_and_the_next_run_finishes_with_the_same_files(settings_for, tmp_path):
    settings = settings_for()
    prepare(settings)
    infer(settings)
    expected = content(settings)
    rng = random.Random(11)
    quick = multiprocessing.get_context("forkserver")  # imports once, not in every process
    quick.set_forkserver_preload(["recbole_llm4sbr.intent.infer"])
    for attempt in range(5):
        changed = settings | {"atomic_path": str(tmp_path / f"killed{attempt}")}
        prepare(changed)
        process = quick.Process(target=infer, args=(dict(changed),))
        process.start()
        time.sleep(rng.uniform(0.0, 0.5) + (2.0 if attempt == 0 else 0.0))
        process.kill()
        process.join()
        infer(changed)
        assert content(changed) == expected
