"""The search: spaces, shared data, trials that see validation only, resumption."""

import csv
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import file_of

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES, is_own, mark_own, read_json
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.experiment import tune
from recbole_llm4sbr.experiment.shared_data import dataloaders, share
from recbole_llm4sbr.experiment.space import read_space
from recbole_llm4sbr.model import IntentFiles, SessionIntents, build_model
from recbole_llm4sbr.training.fit import fit
from recbole_llm4sbr.training.run import load_data, train

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as a trial has


def test_spaces_are_read_as_recbole_reads_them(tmp_path):
    path = tmp_path / "my.hyper"
    path.write_text(
        "# k\nintent_k choice [0, 1,3]\nlearning_rate loguniform -8,-4  # powers of e\n\nweight_decay uniform 0,0.1\n"
    )
    space = read_space(str(path))
    assert space["intent_k"].values == (0, 1, 3)
    assert space["learning_rate"].values == pytest.approx((np.exp(-8), np.exp(-4)))
    drawn = [space["learning_rate"].of_tune(False).sample() for _ in range(200)]
    assert np.exp(-8) <= min(drawn) <= np.exp(-7) <= np.exp(-5) <= max(drawn) <= np.exp(-4)
    for shipped in (PROPERTIES / "tune").glob("*.hyper"):
        assert read_space(shipped.stem)
    assert read_space("paper")["intent_k"].values == (0, 1, 3, 5)  # the paper's Figure 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("intent_k", r"line 2: 'intent_k' is not understood"),
        ("intent_k pick [1]", r"line 2.*choice, uniform"),
        ("intent_k choice 1,2", r"line 2.*\[a, b, c\]"),
        ("intent_lambda uniform 1", r"line 2.*2 numbers"),
        ("intent_lambda uniform 1,0", r"line 2.*the lower first"),
        ("intent_k choice __import__('os')", r"line 2"),
        ("epochs choice [1]", r"line 2.*names 'epochs' again"),
    ],
)
def test_a_line_that_is_not_understood_is_named(tmp_path, line, said):
    (tmp_path / "my.hyper").write_text(f"epochs choice [1, 2]\n{line}\n")
    with pytest.raises(UserError, match=said):
        read_space(str(tmp_path / "my.hyper"))


def words(given, atomic, out, *more):
    values = {"epochs": 2} | given | {"atomic_path": atomic, "seed": 7, "gpu_id": ""}
    listed = [f"--{key}={value!r}" if value == "" else f"--{key}={value}" for key, value in values.items()]
    return ["tune", "--model=SRGNN", "--dataset=tiny", f"--out={out}", *listed, *more]


@pytest.mark.parametrize(
    ("line", "more", "said"),
    [
        ("intent_kk choice [1, 2]", [], "did you mean 'intent_k'"),
        ("intent_k choice [1, 20]", [], "intent_k=20 is larger"),
        ("session_gap choice [1, 2]", [], "'session_gap' is decided before training"),
        ("fusion choice [gate, gait]", [], "fusion='gait' is not a choice"),
        ("intent_lambda uniform 0,1", ["--search=grid"], "needs `choice"),
        ("intent_k choice [1, 2]", ["--trials=0"], "--trials='0' must be a whole number of at least 1"),
        ("intent_k choice [1, 2]", ["--scheduler=soon"], "choose one of asha, none"),
        ("intent_k choice [1, 2]", ["--ray_address=127.0.0.1:1"], "no Ray cluster answers at ray_address='127.0.0.1:1'"),
    ],
)
def test_mistakes_are_one_line(given, tmp_path, monkeypatch, capsys, line, more, said):
    monkeypatch.chdir(tmp_path)
    Path("my.hyper").write_text(line + "\n")
    assert main(words(given, "atomic", "out", "--space=my.hyper", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.parametrize("name", ["SRGNN", "GCEGNN", "GRU4Rec"])
def test_shared_data_train_as_loaded_data_do_and_are_not_copied(tiny, settings_for, name):
    settings = settings_for(model=name, intent_k=3, epochs=2)
    config, dataset, (train_data, valid_data, _) = load_data(settings)
    expected = fit(config, train_data, valid_data, saved=False)[1]
    shared = share(
        train_data.dataset, valid_data.dataset, IntentFiles.read(config, dataset, ["long", "short"], 5, with_answers=True)
    )
    config, _, _ = load_data(settings)
    loaders = dataloaders(config, shared)
    held = loaders[0].dataset
    assert np.shares_memory(held.inter_feat["item_id_list"].numpy(), shared.arrays[0]["inter_feat"]["item_id_list"])
    model = build_model(config, held)
    assert np.shares_memory(model.intents.nearest.numpy(), shared.files["nearest"])
    assert np.shares_memory(model.intents.item_emb.numpy(), shared.files["items"])
    for array in (
        *shared.arrays[0]["inter_feat"].values(),
        shared.files["nearest"],
        shared.files["sims"],
        shared.files["items"],
    ):
        array.flags.writeable = False  # as in Ray's store: a write would end the process
    found = fit(config, *loaders, saved=False)[1]
    assert found.valid_scores == expected.valid_scores


@pytest.mark.parametrize("k", [0, 2])
def test_intents_from_memory_are_those_of_the_files(tiny, settings_for, k):
    config, dataset, _ = load_data(settings_for(intent_k=k, views=["short"]))
    read = SessionIntents.from_dataset(config, dataset)
    dataset.preloaded = IntentFiles.read(config, dataset, ["long", "short"], 5, with_answers=True)
    file_of(tiny, "tiny.sessemb").unlink()
    held = SessionIntents.from_dataset(config, dataset)
    sessions = torch.arange(len(read.nearest))
    for mine, theirs in zip(read(sessions), held(sessions)):
        torch.testing.assert_close(mine, theirs)


def test_a_search_ends_in_a_setting_that_train_takes(ray_cluster, given, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {key: value for key, value in given.items() if key != "min_item_count"}  # the files that are there say 2
    Path("my.hyper").write_text("intent_k choice [0, 3]\nintent_lambda choice [0.0, 0.3]\nembedding_size choice [8, -1]\n")
    with pytest.raises(UserError, match="embedding_size=-1"):
        _search(tiny, given, "my.hyper")
    Path("my.hyper").write_text("intent_k choice [0, 3]\nintent_lambda choice [0.0, 0.3]\n")
    tested = []
    monkeypatch.setattr("recbole.trainer.Trainer.evaluate", _counted(tested))
    assert main(words(given, tiny["atomic_path"], "out", "--space=my.hyper", "--search=grid")) == 0
    found = read_json("out/search.json")
    assert [trial["error"] for trial in found["trials"]] == [None] * 4
    best = max(found["trials"], key=lambda trial: trial["score"])
    assert found["best"]["setting"] == best["setting"]
    # a trial's validation is that of `train` with its setting, and the test is that of `train` with the written file
    for trial in found["trials"]:
        settings = load_settings(None, None, ["out/best.yaml"], trial["setting"])
        assert train(settings, saved=False).best_valid_score == pytest.approx(trial["score"], abs=1e-6)
    again = train(load_settings(config_files=["out/best.yaml"]))
    assert again.test_result == found["best"]["result"]["test_result"]
    assert tested.count("test") == 1 + 4 + 1  # by the search once
    rows = list(csv.DictReader(Path("out/trials.csv").read_text().splitlines()))
    assert sorted((row["intent_k"], row["intent_lambda"]) for row in rows) == [(k, w) for k in "03" for w in ("0.0", "0.3")]
    written = yaml.safe_load(Path("out/best.yaml").read_text())
    assert (written["intent_k"], written["min_item_count"]) == (best["setting"]["intent_k"], 2)  # for where no files are
    assert "--min_item_count=2" in shlex.split(found["command"])
    body = Path("out/report.html").read_text().split("<body>")[1]
    assert "Search: intent_k and intent_lambda (SRGNN)" in body
    capsys.readouterr()
    assert main(words(given, tiny["atomic_path"], "out", "--space=my.hyper", "--search=grid")) == 0  # all there: nothing runs
    with pytest.raises(UserError, match="another search"):
        _search(tiny, given, "my.hyper", epochs=3)


def _counted(tested):
    from recbole.trainer import Trainer

    original = Trainer.evaluate

    def evaluate(self, eval_data, load_best_model=True, *args, **kwargs):
        if kwargs.get("model_file") is None and (load_best_model or not self._in_fit):
            tested.append("test")
        return original(self, eval_data, load_best_model, *args, **kwargs)

    original_fit = Trainer.fit

    def fit(self, *args, **kwargs):
        self._in_fit = True
        try:
            return original_fit(self, *args, **kwargs)
        finally:
            self._in_fit = False

    Trainer.fit = fit
    return evaluate


def _search(tiny, given, space, **changed):
    from recbole_llm4sbr.experiment.tune import search

    values = given | {"model": "SRGNN", "dataset": "tiny", "atomic_path": tiny["atomic_path"], "seed": 7, "epochs": 2} | changed
    return search(values, "out", space, how="grid", scheduler="none")


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_one_that_asks_a_model_fails(ray_cluster, given, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.hyper").write_text("train_batch_size choice [32, 1000000000000000000000]\n")
    found = _search(tiny, given, "my.hyper")
    assert [trial.error is None for trial in found.trials] == [True, False]
    from recbole_llm4sbr.intent import NO_MODELS
    from recbole_llm4sbr.intent.backends import make_backend
    from recbole_llm4sbr.intent.encoder import Encoder

    monkeypatch.setenv(NO_MODELS, "in a trial of tune")
    for ask in (lambda: make_backend(tiny), lambda: Encoder(tiny["encoder"])):
        with pytest.raises(RuntimeError, match="in a trial of tune"):
            ask()


@pytest.mark.slow
def test_data_prepared_anew_make_another_search(ray_cluster, given, tiny, tmp_path, monkeypatch, raw):
    monkeypatch.chdir(tmp_path)
    Path("my.hyper").write_text("intent_k choice [1, 2]\n")
    first = _search(tiny, given, "my.hyper", epochs=1)
    assert _search(tiny, given, "my.hyper", epochs=1) == first  # it is there
    assert _search(tiny, given, "my.hyper", epochs=1, llm_concurrency=3, show_progress=False) == first  # decides nothing
    folder = Path("raw2/tiny")
    folder.mkdir(parents=True)
    for name in ("tiny.inter", "tiny.item"):
        (folder / name).write_text((raw / "tiny" / name).read_text())
    lines = (folder / "tiny.inter").read_text().splitlines()
    (folder / "tiny.inter").write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(UserError, match=r"another search \(the prepared or feature files differ\)"):
        _search(tiny, given, "my.hyper", epochs=1, data_path="raw2", rebuild=True)


@pytest.mark.slow
def test_a_killed_search_goes_on(given, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.hyper").write_text("intent_k choice [1, 2, 3]\nintent_lambda choice [0.0, 0.1, 0.3]\n")
    command = [sys.executable, "-m", "recbole_llm4sbr.cli.main"]
    long = given | {
        "epochs": 150,
        "stopping_step": 150,
    }  # so that the kill comes in the middle, some checkpoints of Ray after the start
    command += words(long, tiny["atomic_path"], "out", "--space=my.hyper", "--search=grid")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if line.startswith("[4/9]"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "going on with the search" in done.stderr
    assert "[9/9]" in done.stderr
    assert done.stderr.count("/9]") < 9  # what was done before is not done again
    assert len(read_json("out/search.json")["trials"]) == 9


def test_whole_numbers_are_drawn_as_whole_numbers(tmp_path):
    (tmp_path / "my.hyper").write_text("embedding_size quniform 32,128,32\nintent_k randint 1,11\n")
    space = read_space(str(tmp_path / "my.hyper"))
    drawn = [space["embedding_size"].of_whole_numbers().of_tune(False).sample() for _ in range(100)]
    assert {type(value) for value in drawn} <= {int, np.int64}
    assert set(drawn) == {32, 64, 96, 128}
    assert space["intent_k"].examples == (1, 10)  # the upper end is never drawn


@pytest.mark.parametrize(
    ("values", "bigger"),
    [
        ({"fusion": ["gate", "concat"], "intent_k": [1, 3]}, True),
        ({"views": [["long"], ["short"]]}, True),
        ({"learning_rate": [0.1, 0.01, 0.001], "intent_k": [1, 2, 3], "weight_decay": [None, 0.1, 0.2]}, False),
    ],
)
def test_searches_over_anything_can_be_reported(tiny, tmp_path, values, bigger):
    import itertools
    import json

    from recbole_llm4sbr.report.page import report

    result = train(tiny, saved=False).to_json()
    settings = [dict(zip(values, each)) for each in itertools.product(*values.values())]
    trials = [
        {"trial": str(n), "setting": each, "score": n / 100, "epochs_seen": 1, "error": None} for n, each in enumerate(settings)
    ]
    trials[-1]["score"] = None
    best = {"setting": settings[0], "trial": "0", "score": 0.0, "result": result}
    found = {"dataset": "tiny", "split": "temporal", "model": "SRGNN", "metric": "MRR@20", "bigger": bigger, "command": "tune",
             "machine": "m", "asked": {"how": "grid"}, "counts": result["prepare"], "trials": trials, "best": best}  # fmt: skip
    (tmp_path / "search.json").write_text(json.dumps(found))
    _, parts = report([tmp_path], tmp_path, tmp_path / "report.html")
    table = parts["tiny, temporal split"].tables[0]
    if len(values) == 2:
        assert [row[0] for row in table.rows] == ["concat", "gate"]
        assert table.rows[1][1:] == ["0.00", "1.00"]


def test_a_best_setting_says_what_the_models_name_implied(tiny):
    from recbole_llm4sbr.experiment.tune import _best_yaml

    settings = load_settings("LLM2SRGNN", "ml-100k")
    again = yaml.safe_load(_best_yaml(settings, {"model": "LLM2SRGNN", "dataset": "ml-100k"}, [], {"learning_rate": 0.1}))
    assert (again["model"], again["llm4sbr"], again["item_init"], again["learning_rate"]) == ("SRGNN", False, "pca", 0.1)
    with pytest.raises(UserError, match="contradicts"):
        load_settings("LLM2SRGNN", "ml-100k", overrides={"llm4sbr": True})


def test_a_strangers_search_is_not_gone_on_with(tiny, given, tmp_path, monkeypatch):
    """Ray unpickles what it finds in the folder; this pickle would make a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_LLM4SBR_CACHE", str(tmp_path / "cache"))
    folder = Path("out/ray")
    folder.mkdir(parents=True)
    (folder / "tuner.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    Path("my.hyper").write_text("intent_k choice [1, 2]\n")
    with pytest.raises(UserError, match=r"out/ray' was not made by you.*another --out"):
        _search(tiny, given, "my.hyper")
    mark_own("out")
    assert is_own("out")
    Path("out").rename("moved")
    assert not is_own("moved")  # a mark is of one place
    Path("cache/key").write_bytes(b"another user's")
    Path("moved").rename("out")
    assert not is_own("out")
    assert not Path("ran").exists()
    pickle.loads((Path("out/ray") / "tuner.pkl").read_bytes())
    assert Path("ran").exists()  # it is dangerous indeed


def test_a_missing_optuna_is_named_before_anything_is_asked_or_made(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(tune, "make_files_of_all", lambda *_: pytest.fail("files were made"))
    with pytest.raises(UserError, match=r"needs the package optuna"):
        tune.search(given | {"dataset": "tiny", "atomic_path": "atomic"}, "out", how="optuna")
    assert not Path("out").exists()
