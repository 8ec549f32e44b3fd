"""Ensembles: log-probabilities added, weights found on validation; against loops and against the members themselves."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from recbole_llm4sbr import load_ensemble, load_model, run_ensemble
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.grids import CellResult
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.experiment import cells
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.experiment.variants import EnsembleName
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.training.ensemble import fit_weights, pooled
from recbole_llm4sbr.training.run import train


@pytest.fixture
def trained(tiny):
    """Results of three models on the same files: plain, enhanced, and RecBole's own."""
    settings = tiny | {"repeatable": False, "epochs": 2}
    infer(settings | {"rebuild": True})
    changes = ({"llm4sbr": False}, {"seed": 7}, {"model": "recbole.model.sequential_recommender:GRU4Rec", "llm4sbr": False,
               "num_layers": 1, "dropout_prob": 0.3})  # fmt: skip
    return [train(settings | changed) for changed in changes]


def logs_of(result, part):
    """Log-probabilities over the candidates by session, and targets, by loops."""
    loaded = load_model(result.checkpoint)
    found = {}
    for batch, *_ in getattr(loaded, part):
        scores = loaded.model.full_sort_predict(batch).view(len(batch), -1).detach().double()
        for row, session in enumerate(batch["session_id"].tolist()):
            scores[row, [0, *batch["item_id_list"][row].tolist()]] = -torch.inf
            found[session] = scores[row].log_softmax(0).numpy()
    rows = getattr(loaded, part).dataset.inter_feat
    return found, dict(zip(rows["session_id"].tolist(), rows["item_id"].tolist()))


def test_an_ensemble_of_one_model_is_that_model(trained):
    for result in trained[:2]:
        rows = []
        alone = run_ensemble([result.checkpoint], on_test=rows.append)
        for part, found, own in (
            ("test", alone.test_result, result.test_result),
            ("valid", alone.best_valid_result, result.best_valid_result),
        ):
            session = 1.1 / result.prepare.rows[part]  # a logarithm may round two scores to one, and rank a session otherwise
            assert found == pytest.approx(own, abs=session)
        assert len(rows[0].rank) == result.prepare.rows["test"]


def test_an_ensemble_has_every_metric_that_its_member_has(tiny):
    settings = tiny | {
        "llm4sbr": False,
        "metrics": ["Hit", "MRR", "GAUC", "ItemCoverage", "GiniIndex", "AveragePopularity", "TailPercentage"],
    }
    result = train(settings)
    alone = run_ensemble([result.checkpoint]).test_result
    assert alone == pytest.approx(result.test_result, rel=0.05, abs=0.02)  # logarithms are rounded, which may swap two items


@pytest.mark.parametrize("weights", ["equal", [0.2, 0.5, 0.0]])
def test_scores_are_the_weighted_sum_of_the_members_log_probabilities(trained, weights):
    loaded = load_ensemble([each.checkpoint for each in trained], weights)
    logs = [logs_of(each, "test_data")[0] for each in trained]
    numbers = [1 / 3] * 3 if weights == "equal" else weights
    for batch, *_ in loaded.test_data:
        scores = loaded.model.full_sort_predict(batch)
        for row, session in enumerate(batch["session_id"].tolist()):
            inside = [0, *batch["item_id_list"][row].tolist()]
            outside = [item for item in range(scores.size(1)) if item not in inside]
            expected = sum(w * each[session][outside] for w, each in zip(numbers, logs) if w)
            np.testing.assert_allclose(scores[row, outside].detach(), expected, atol=1e-4)
            assert (scores[row, inside] == -torch.inf).all()


def test_the_weights_found_on_validation_are_the_best_there(trained):
    loaded = load_ensemble([each.checkpoint for each in trained], "valid")
    parts = [logs_of(each, "valid_data") for each in trained]
    targets = parts[0][1]

    def unlikely(weights):
        total = 0
        for session, target in targets.items():
            logs = np.stack([each[session] for each, _ in parts])
            left = np.isfinite(logs[0])
            if left[target]:
                sums = weights @ logs[:, left]
                total -= weights @ logs[:, target] - np.log(np.exp(sums - sums.max()).sum()) - sums.max()
        return total

    best = minimize(unlikely, np.full(3, 1 / 3), bounds=[(0, 50)] * 3, method="L-BFGS-B", options={"ftol": 1e-12})
    found = loaded.model.weights.numpy()
    assert found.sum() == pytest.approx(1, abs=1e-3) and (found >= 0).all()
    on_line = minimize(lambda scale: unlikely(scale * found), [best.x.sum()], bounds=[(1e-6, 200)])
    assert on_line.fun <= best.fun + 1e-3 * abs(
        best.fun
    )  # the ranking knows the direction only, and its likelihood is the best one


def found_weights(logs, target):
    """Of log-probabilities [members, R, n_items]."""
    ensemble = SimpleNamespace(members=range(len(logs)), log_probabilities=lambda rows: logs[:, rows])
    rows = torch.arange(len(target))
    return fit_weights(ensemble, [(rows, None, rows, target)], "cpu")


def test_a_useless_member_gets_no_weight():
    torch.manual_seed(0)
    target = torch.randint(1, 12, (300,))
    good = torch.randn(300, 12) + 2.0 * torch.nn.functional.one_hot(target, 12)
    logs = torch.stack([good, torch.randn(300, 12) * 5]).log_softmax(-1)
    assert found_weights(logs, target)[1] < 0.1


@pytest.mark.parametrize("members", [1, 3])
def test_members_that_rank_targets_below_chance_get_equal_weights_and_it_is_said(members, caplog):
    torch.manual_seed(0)
    target = torch.randint(1, 12, (80,))
    logs = (torch.randn(members, 80, 12) - 2.0 * torch.nn.functional.one_hot(target, 12)).log_softmax(-1)
    assert found_weights(logs, target) == pytest.approx([1 / members] * members, abs=1e-4)
    assert "equal weights are taken" in caplog.text


def test_a_weight_of_nothing_takes_no_candidate_away():
    logs = torch.tensor([[[-1.0, -torch.inf, -torch.inf]], [[-2.0, -1.0, -torch.inf]]])
    assert pooled(logs, torch.tensor([0.0, 1.0])).tolist() == [[-2.0, -1.0, -torch.inf]]


def test_models_whose_scores_cannot_be_added_are_refused_by_name(tiny, trained):
    other = train(tiny | {"repeatable": True, "llm4sbr": False, "epochs": 1})
    with pytest.raises(UserError, match=r"differ in their repeatable \(False and True\)"):
        load_ensemble([trained[0].checkpoint, other.checkpoint])
    shorter = tiny | {"repeatable": False, "llm4sbr": False, "epochs": 1, "MAX_ITEM_LIST_LENGTH": 3, "atomic_path": "shorter"}
    prepare(shorter)
    short = train(shorter)
    with pytest.raises(UserError, match="differ in their session files"):
        load_ensemble([trained[0].checkpoint, short.checkpoint])
    for weights, said in (
        ("best", "choose equal, valid"),
        ([1.0], "a number from 0 on for each of the 2"),
        ([0, 0], "not all 0"),
    ):
        with pytest.raises(UserError, match=said):
            load_ensemble([each.checkpoint for each in trained[:2]], weights)
    with pytest.raises(UserError, match="at least one checkpoint"):
        load_ensemble([])


def test_the_verb_tests_and_writes_the_result(tiny, trained, capsys):
    paths = [each.checkpoint for each in trained[:2]]
    assert main(["ensemble", *paths, "--weights=valid", "--result_file=out/e.json"]) == 0
    said = capsys.readouterr().out
    assert "ensemble of 2 models" in said and all(path in said for path in paths)
    written = json.loads(Path("out/e.json").read_text())
    assert written["test_result"] == pytest.approx(run_ensemble(paths, "valid").test_result)
    assert main(["ensemble"]) == 2
    for more in (
        "--weights=1",
        "--weights=true",
        "--weights=",
        "--weights=[a,b]",
        "--embedding_size=9",
        "--config_files=paper",
    ):
        assert main(["ensemble", *paths, more]) == 2, more
    assert main(["ensemble", "nowhere.pth"]) == 2
    assert "there is no checkpoint 'nowhere.pth'" in capsys.readouterr().err


def test_names_of_ensembles_are_read_and_bad_ones_refused():
    found = EnsembleName.read("ensemble(w/o AU,text-init+fusion=gate+late@GCEGNN'')+weights=valid")
    assert [(each.variant, each.model, each.again) for each in found.members] == [
        ("w/o AU", None, 0), ("text-init+fusion=gate+late", "GCEGNN", 2)
    ]  # fmt: skip
    assert found.weights == "valid" and EnsembleName.read("plain") is None
    wrong = {"ensemble(plain": "not understood", "ensemble(plain,plain)": "names a member twice"}
    wrong |= dict.fromkeys(["ensemble(plain)+weights=best", "ensemble(ensemble(plain),plain)"], "not understood")
    for name, said in wrong.items():
        with pytest.raises(UserError, match=said):
            EnsembleName.read(name)


def grid(given, variants, seeds=1, out="out", workers=0):
    given = given | {"epochs": 2, "repeatable": False}
    return compare({"Comparison": variants}, ["SRGNN"], ["tiny"], seeds, given, out, workers)


def test_a_grid_trains_what_an_ensemble_needs_once_and_tests_it_beside_its_control(given, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    given = given | {"atomic_path": str(tmp_path / "atomic")}
    results = grid(given, ["plain", "llm4sbr", "ensemble(plain,llm4sbr)"], workers=1)
    assert not list(Path("out").glob("work-*"))
    assert all(each.ok for each in results), [each.reason for each in results]
    lines = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    assert len(lines) == 5  # plain, llm4sbr, plain', two ensembles
    by_name = {entry["variant"]: entry["key"] for entry in json.loads(Path("out/grid.json").read_text())["cells"]}
    assert list(by_name) == ["plain", "llm4sbr", "ensemble(plain,llm4sbr)", "ensemble(plain,plain')"]
    of = {line["key"]: line["result"] for line in lines}
    members = of[by_name["ensemble(plain,llm4sbr)"]]["members"]
    assert [each["name"] for each in members] == ["SRGNN plain, seed 2020", "SRGNN llm4sbr, seed 2020"]
    assert (
        of[by_name["ensemble(plain,llm4sbr)"]]["test_result"]
        == run_ensemble([each["checkpoint"] for each in members]).test_result
    )
    assert {each["name"] for each in of[by_name["ensemble(plain,plain')"]]["members"]} == {
        "SRGNN plain, seed 2020",
        "SRGNN plain, seed 3020",
    }
    grid(given, ["plain", "llm4sbr", "ensemble(plain,llm4sbr)", "ensemble(plain,llm4sbr)+weights=valid"])
    assert len(Path("out/cells.jsonl").read_text().splitlines()) == 6  # members are there: one more ensemble, nothing trained
    report(["out"], "md", "page.html")
    text = Path("md/tiny.md").read_text()
    assert "ensemble(plain,llm4sbr) against ensemble(plain,plain')" in text  # like is compared with like
    assert "nan" not in text
    assert (
        read_grids(["out"])[0].lines[2].ranks[2020]["rank"].shape == read_grids(["out"])[0].lines[0].ranks[2020]["rank"].shape
    )


def test_a_result_that_is_there_outlives_a_member_that_fails_when_it_is_trained_again(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = given | {"atomic_path": str(tmp_path / "atomic"), "llm4sbr": False}
    before = grid(given, ["plain"])
    original = cells.run_cell
    monkeypatch.setattr(cells, "run_cell", lambda *_: (CellResult("failed", reason="killed"), None))
    failed = grid(given, ["plain", "ensemble(plain,plain')"])
    assert failed[0].result == before[0].result and not failed[1].ok
    monkeypatch.setattr(cells, "run_cell", original)
    assert all(each.ok for each in grid(given, ["plain", "ensemble(plain,plain')"]))


def test_a_lost_checkpoint_of_a_member_is_trained_again_and_a_failed_member_is_said(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = given | {"atomic_path": str(tmp_path / "atomic"), "llm4sbr": False}
    first = grid(given, ["plain", "ensemble(plain,plain')"])
    for path in Path("out/checkpoints").iterdir():
        path.unlink()
    again = grid(given, ["ensemble(plain,plain')+weights=valid"])
    assert len(list(Path("out/checkpoints").iterdir())) == 2
    assert again[0].ok and first[1].result.test_result == again[1].result.test_result
    with pytest.raises(UserError, match="two of its members are one model"):
        grid(given, ["ensemble(plain,w/o LLM)"])
    failed = grid(given, ["ensemble(plain,plain-cosine@TAGNN)"], out="other")
    assert not failed[0].ok and "a member has no result" in failed[0].reason


def test_a_weight_that_would_be_negative_is_nothing_and_the_others_are_still_the_best():
    torch.manual_seed(5)
    target = torch.randint(1, 12, (80,))
    good = torch.randn(80, 12) + 2.0 * torch.nn.functional.one_hot(target, 12)
    fair = torch.randn(80, 12) + 1.0 * torch.nn.functional.one_hot(target, 12)
    wrong = torch.randn(80, 12) - 1.5 * torch.nn.functional.one_hot(target, 12)
    logs = torch.stack([wrong, good, fair]).log_softmax(-1)
    found = np.array(found_weights(logs, target))

    def unlikely(weights):
        return -torch.tensordot(torch.tensor(weights), logs.double(), 1).log_softmax(-1)[range(80), target].sum().item()

    best = minimize(unlikely, np.full(3, 1 / 3), bounds=[(0, 50)] * 3, method="L-BFGS-B").x
    assert found[0] == 0
    assert found == pytest.approx(best / best.sum(), abs=0.02)
