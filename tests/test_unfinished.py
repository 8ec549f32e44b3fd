"""Runs whose best epoch is the last that they were allowed: found in new and old results, said in logs, marked and never judged."""

import csv
import json
import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_llm4sbr.base.files import read_json
from recbole_llm4sbr.base.grids import CellResult, Search, Trial
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.cli.summary import summary
from recbole_llm4sbr.experiment import tune
from recbole_llm4sbr.experiment.compare import _outcome as in_words
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.experiment.ray_search import _outcome as outcome_of_ray
from recbole_llm4sbr.report.figures import figures_of
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.statistics import holm
from recbole_llm4sbr.report.tables import tables_of
from recbole_llm4sbr.training.run import train

PREPARED = {"sessions": 9, "items": 5, "clicks": 30, "average_length": 3.3, "rows": {"train": 5, "valid": 2, "test": 2}}


def as_json(best_epoch, epochs=10, hit=0.1, parameters=1000, model="SRGNN", seed=2020, **settings):
    """A result as version 0.1 wrote it: it does not say whether it is unfinished."""
    trained = 0 if best_epoch is None else min(best_epoch + 3, epochs)
    given = {
        "model": model, "dataset": "d", "llm4sbr": False, "epochs": epochs, "seed": seed, "metrics": ["Hit"], "topk": [20],
        "session_targets": "last", "intent_source": "none", "valid_metric": "Hit@20", **settings,
    }  # fmt: skip
    return {
        "best_valid_score": 0.1, "valid_score_bigger": True, "best_valid_result": {"hit@20": 0.1}, "valid_metric": "Hit@20",
        "best_epoch": best_epoch, "epochs": trained, "valid_scores": [0.1] * trained, "train_losses": [1.0] * trained,
        "seconds_training": 1.0, "seconds_per_epoch": [0.1] * trained, "parameters": parameters, "test_result": {"hit@20": hit},
        "peak_memory_mb": 100.0, "checkpoint": None, "prepare": PREPARED, "infer": None, "settings": given, "versions": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("best_epoch", "epochs", "more", "unfinished"),
    [
        (9, 10, {}, True),
        (8, 10, {}, False),  # one epoch earlier
        (0, 1, {}, True),
        (3, 5, {"eval_step": 2}, True),  # epoch 4 is trained, and not validated
        (1, 5, {"eval_step": 2}, False),
        (5, 6, {"eval_step": 2}, True),
        (0, 1, {"model": "LLMSeqSim", "parameters": 1}, False),  # nothing is trained
        (4, 5, {"model": "LLMInfer", "parameters": 1}, False),  # of equal scores the last
        (None, 10, {}, False),  # nothing was validated
    ],
)
def test_a_run_whose_best_epoch_is_the_last_that_it_was_allowed_is_unfinished(best_epoch, epochs, more, unfinished):
    assert RunResult.from_json(as_json(best_epoch, epochs, **more)).unfinished == unfinished


def test_results_of_earlier_versions_are_judged_and_what_a_file_says_is_not_believed():
    old = as_json(9)
    assert "unfinished" not in old
    read = RunResult.from_json(old)
    assert read.unfinished and read.to_json()["unfinished"] is True
    assert RunResult.from_json(old | {"unfinished": False}) == read
    cell = CellResult.from_json({"status": "ok", "key": "k", "result": old})
    assert cell.to_json()["result"]["unfinished"] is True
    del old["settings"]["epochs"]  # then all that were trained
    assert RunResult.from_json(old).unfinished


def test_an_ensemble_is_unfinished_where_a_member_is_and_says_which():
    members = [
        {"name": f"SRGNN {name}, seed 1", "checkpoint": "m.pth", "weight": 0.5, "unfinished": late}
        for name, late in (("plain", False), ("llm4sbr", True))
    ]
    result = RunResult.from_json(as_json(None, repeatable=True) | {"members": members})
    assert result.unfinished
    said = "training of its members is unfinished (SRGNN llm4sbr, seed 1); raise --epochs"
    assert summary(result).splitlines().count(said) == 1
    assert said in in_words(CellResult("ok", result))
    assert not RunResult.from_json(as_json(None) | {"members": members[:1]}).unfinished


def old_search(**setting):
    """A `search.json` as version 0.1 wrote it: trials at the last epoch, one epoch earlier, stopped by ASHA, failed."""
    done = {"epochs": 4, "parameters": 1000}
    trials = [
        {"score": 0.4, "epochs_seen": 5, "best_epoch": 3, **done},
        {"score": 0.3, "epochs_seen": 5, "best_epoch": 2, **done},
        {"score": 0.2, "epochs_seen": 4, "best_epoch": None},
        {"score": None, "epochs_seen": 0, "error": "ValueError"},
    ]
    of = [{"intent_k": k, "intent_lambda": weight} for k in (1, 3) for weight in (0.1, 0.5)]
    named = [{"trial": str(n), "setting": each | setting} | trial for n, (each, trial) in enumerate(zip(of, trials))]
    best = {"setting": named[0]["setting"], "trial": "0", "score": 0.4, "result": as_json(3, 4)}
    return {
        "dataset": "d", "split": "temporal", "model": "SRGNN", "metric": "Hit@20", "bigger": True, "command": "tune", "machine": "m",
        "asked": {"how": "grid", "settings": {"epochs": 4}}, "counts": PREPARED, "trials": named, "best": best,
    }  # fmt: skip


def test_a_trial_that_used_all_epochs_is_unfinished_and_one_that_was_stopped_early_is_not():
    read = Search.from_json(old_search())
    assert [trial.unfinished for trial in read.trials] == [True, False, False, False]
    assert [trial["unfinished"] for trial in read.to_json()["trials"]] == [True, False, False, False]
    assert read.to_json()["best"]["result"]["unfinished"] is True
    searched = Search.from_json(old_search(epochs=9))  # what a trial drew wins over what all share
    assert not any(trial.unfinished for trial in searched.trials)
    sparse = old_search(epochs=5, eval_step=2)  # validated after epochs 1 and 3
    assert [trial.unfinished for trial in Search.from_json(sparse).trials] == [True, False, False, False]


def write_grid(folder, lines, group="Comparison", sessions=300, settings=None):
    """A grid with hand-made results; `lines` has the best epoch (of 10) and the shift of the ranks for each seed, by variant."""
    ease = np.random.default_rng(1).normal(2.5, 1.5, sessions)
    names = np.array([f"s{n}" for n in range(sessions)])
    (folder / "ranks").mkdir(parents=True)
    entries, cells = [], []
    for variant, runs in lines.items():
        for seed, (best_epoch, shift) in runs.items():
            key = f"{variant}-{seed}"
            noise = np.random.default_rng(seed).normal(0, 0.3, sessions)
            rank = np.maximum(1, np.exp(ease + shift + noise)).astype(np.int32)
            untrained = {"model": "LLMSeqSim", "parameters": 1} if variant == "LLMSeqSim" else {}
            epochs = 1 if untrained else 10
            own = untrained | (settings or {}).get(variant, {})
            result = as_json(best_epoch, epochs, hit=float((rank <= 20).mean()), seed=seed, **own)
            cells.append({"status": "ok", "key": key, "machine": "m", "result": result})
            entries.append(
                {"group": group, "dataset": "d", "split": "temporal", "model": "SRGNN", "variant": variant, "seed": seed, "about": "",
                 "key": key}
            )  # fmt: skip
            rows = {
                "session": names,
                "rank": rank,
                "length": np.full(sessions, 3, np.int32),
                "head": rank < 9,
                "intent": rank < 0,
            }
            np.savez_compressed(folder / "ranks" / f"{key}.npz", **rows)
    (folder / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    (folder / "grid.json").write_text(json.dumps({"commands": ["compare"], "cells": entries}))
    return {table.title: table for table in tables_of(read_grids([folder])[0])}


GRID = {
    "plain": {1: (5, 0.0), 2: (8, 0.0), 3: (4, 0.0)},
    "llm4sbr": {1: (5, -0.6), 2: (9, -0.6), 3: (9, -0.6)},  # the best figures, of seeds that are not trained to their end
    "residual": {1: (5, -0.5), 2: (6, -0.5), 3: (7, -0.5)},
    "LLMSeqSim": {1: (0, 0.5), 2: (0, 0.5), 3: (0, 0.5)},
}


def test_tables_mark_an_unfinished_line_and_name_its_seeds_and_the_setting_to_raise(tmp_path):
    tables = write_grid(tmp_path, GRID)
    table = tables["Comparison"]
    assert table.head == ["model", "variant", "training", "Hit@20"]
    assert [row[1:3] for row in table.rows] == [
        ["plain", ""], ["llm4sbr", "unfinished (2 of 3 seeds)"], ["residual", ""], ["LLMSeqSim", ""],
    ]  # fmt: skip
    said = "the best epoch is the last one validated within epochs=10: SRGNN llm4sbr (seeds 2, 3). Raise --epochs"
    titles = ["Comparison", "Is it more than chance? Comparison", "By popularity, session length and intent",
              "Time and memory (the paper's Table 5)"]  # fmt: skip
    for title in titles:
        assert said in tables[title].how
    for title in titles[2:]:
        assert [row[2] for row in tables[title].rows] == ["", "unfinished (2 of 3 seeds)", "", ""]
        assert tables[title].texts == 3


def test_a_grid_without_unfinished_runs_has_no_column_and_no_note(tmp_path):
    tables = write_grid(tmp_path, {name: {1: (3, 0.0), 2: (4, 0.1)} for name in ("plain", "residual")})
    assert tables["Comparison"].head == ["model", "variant", "Hit@20"]
    for title, table in tables.items():
        assert "nfinished, since" not in table.how, title


def test_an_unfinished_line_is_never_the_bold_one(tmp_path):
    table = write_grid(tmp_path / "some", GRID)["Comparison"]
    means = [float(row[3].split(" ")[0]) for row in table.rows]
    assert int(np.argmax(means)) == 1  # the unfinished one
    assert table.best == {(2, 3)}
    assert "best finished one of each column in bold" in table.how
    late = {name: {1: (9, 0.0)} for name in ("plain", "residual")}
    table = write_grid(tmp_path / "all", late)["Comparison"]
    assert table.best == set()
    assert "none in bold, since none is finished" in table.how


def test_a_comparison_with_an_unfinished_run_on_either_side_is_not_judged_and_stays_in_holms_family(tmp_path):
    table = write_grid(tmp_path, GRID)["Is it more than chance? Comparison"]
    verdicts = {row[1]: row[-1] for row in table.rows}
    assert verdicts == {
        "llm4sbr against plain": "unfinished: not judged",
        "residual against plain": "better",
        "LLMSeqSim against plain": "worse",
    }
    adjusted = [float(row[5]) for row in table.rows]
    assert adjusted == pytest.approx(holm([float(row[4]) for row in table.rows]), rel=0.02)  # the printed ones are rounded
    assert "stay in the family" in table.how
    late = {"plain": {1: (5, 0.0), 2: (9, 0.0)}, "residual": {1: (5, -0.3), 2: (6, -0.3)}}
    (row,) = write_grid(tmp_path / "reference", late)["Is it more than chance? Comparison"].rows
    assert row[-1] == "unfinished: not judged"


def test_one_seed_is_not_judged(tmp_path):
    lines = {"plain": {1: (5, 0.0)}, "residual": {1: (5, -0.9)}}
    (row,) = write_grid(tmp_path, lines)["Is it more than chance? Comparison"].rows
    assert row[-1] == "one seed: not judged"
    lines["residual"] = {1: (9, -0.9)}
    (row,) = write_grid(tmp_path / "unfinished", lines)["Is it more than chance? Comparison"].rows
    assert row[-1] == "unfinished: not judged"


def test_legends_of_figures_name_what_is_unfinished_and_the_page_says_why(tmp_path):
    write_grid(tmp_path / "grid", GRID)
    figures = {each.title: (each.how, each.html()) for each in figures_of(read_grids([tmp_path / "grid"])[0])}
    assert list(figures) == ["Comparison", "Validation by epoch", "Time and memory", "Popular and rare targets"]
    for how, figure in figures.values():
        assert "SRGNN llm4sbr (seeds 2, 3)" in how
        assert "llm4sbr (unfinished)" in figure
        assert "plain (unfinished)" not in figure
    swept = {f"llm4sbr+intent_k={k}": {1: (9 if k == 3 else 5, 0.0)} for k in (1, 3, 5)}
    write_grid(tmp_path / "swept", swept)
    curve = next(figures_of(read_grids([tmp_path / "swept"])[0])).html()
    assert "SRGNN llm4sbr (unfinished: 3)" in curve


def test_tables_and_figures_of_a_search_mark_unfinished_trials(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps(old_search()))
    _, parts = report([tmp_path], tmp_path, tmp_path / "report.html")
    grid, trials, tested = parts["d, temporal split"].tables
    assert grid.rows == [["1", "40.00 (unfinished)", "30.00"], ["3", "20.00", "-"]]
    assert grid.best == {(0, 2)}  # the best of those that are finished
    assert [row[trials.head.index("training")] for row in trials.rows] == ["unfinished", "", "", ""]
    for table in (grid, trials):
        assert "last that they were allowed: 1, each marked; raise --epochs" in table.how
    assert dict(zip(tested.head, tested.rows[0])) == {"training": "unfinished", "hit@20": "10.00"}
    assert "the best epoch is the last of epochs=4, so training is unfinished; raise --epochs" in tested.how
    page = (tmp_path / "report.html").read_text().split("<body>")[1]
    assert "a trial (unfinished)" in page


def test_a_run_says_once_at_its_end_and_in_its_summary_that_it_is_unfinished(tiny, settings_for, caplog):
    result = train(tiny, saved=False)
    assert result.unfinished
    said = "the best epoch is the last of epochs=1, so training is unfinished; raise --epochs"
    told = [(record.levelno, record.getMessage()) for record in caplog.records if "unfinished" in record.getMessage()]
    assert told == [(logging.WARNING, f"SRGNN: {said}")]
    assert summary(result).splitlines().count(said) == 1
    caplog.clear()
    baseline = train(settings_for(model="LLMSeqSim"), saved=False)
    assert (baseline.best_epoch, baseline.unfinished) == (0, False)
    assert "unfinished" not in caplog.text + summary(baseline)


def test_the_line_of_a_cell_says_that_it_is_unfinished(given, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "recbole_llm4sbr.experiment.compare")
    here = given | {"atomic_path": str(tmp_path / "atomic")}
    compare({"Comparison": ["plain", "LLMSeqSim"]}, ["SRGNN"], ["tiny"], 1, here, "out", 0)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[")]
    assert ["unfinished; raise --epochs" in line for line in lines] == [True, False]
    sparse = CellResult.from_json({"status": "ok", "result": as_json(3, 5, eval_step=2)})
    assert "; the best epoch is the last validated one of epochs=5, so training is unfinished" in in_words(sparse)


def test_a_search_says_at_its_end_that_its_best_is_unfinished_and_writes_it_for_every_trial(
    given, tiny, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.hyper").write_text("intent_k choice [1, 2]\n")
    done = {"score": 0.2, "best_epoch": 0, "epochs": 1, "parameters": 9, "training_iteration": 2}
    stopped = {"score": 0.1, "valid_score": 0.1, "epoch": 0, "training_iteration": 1}

    def trials(settings, plan, out):
        ended = [
            SimpleNamespace(metrics=each, error=None, path=f"ray/{n}", config={"intent_k": n})
            for n, each in ((1, done), (2, stopped))
        ]
        return [outcome_of_ray(each, ["intent_k"]).judged(settings) for each in ended]

    monkeypatch.setattr(tune, "run_trials", trials)
    monkeypatch.setattr(tune, "connect", lambda *args, **more: None)
    values = given | {"model": "SRGNN", "dataset": "tiny", "atomic_path": tiny["atomic_path"]}
    found = tune.search(values, "out", "my.hyper", how="grid")
    assert [trial.unfinished for trial in found.trials] == [True, False]
    assert [trial.epochs_seen for trial in found.trials] == [1, 1]
    assert found.best.result.unfinished
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("tune: the best")]
    assert told == [
        "tune: the best trial and its setting, trained again: the best epoch is the last of epochs=1, so training is unfinished; "
        "raise --epochs"
    ]
    kept = read_json("out/search.json")
    assert [trial["unfinished"] for trial in kept["trials"]] == [True, False]
    assert kept["best"]["result"]["unfinished"] is True
    rows = list(csv.DictReader(Path("out/trials.csv").read_text().splitlines()))
    assert [row["unfinished"] for row in rows] == ["True", "False"]
    assert Search.from_json(kept) == found


def test_the_comparison_of_equal_runs_leaves_unfinished_ones_out_and_judges_no_single_run(tmp_path, monkeypatch):
    write_grid(tmp_path / "grid", {"plain": {seed: (9 if seed == 3 else 5, 0.0) for seed in range(1, 6)}}, sessions=50)
    script = Path(__file__).parents[1] / "benchmarks" / "aa.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "grid"), "--markdown", str(tmp_path / "aa.md")])
    runpy.run_path(str(script), run_name="__main__")
    lines = (tmp_path / "aa.md").read_text().splitlines()
    assert lines[0] == "SRGNN, plain, 4 runs, 50 test rows; unfinished runs, left out: 1"
    assert [line.split(" | ")[:4] for line in lines[4:]] == [
        ["| 1", "Hit@20", "6", "one seed: not judged"],
        ["| 2", "Hit@20", "3", "0 (0.0 %)"],
    ]


def test_a_trial_in_memory_is_not_unfinished_before_it_is_judged():
    assert not Trial("t", {}).unfinished
    assert Trial("t", {"epochs": 3}, best_epoch=2, epochs=3, parameters=9).judged({"epochs": 50}).unfinished
