"""`train` goes on where a killed run was: the result and the checkpoint are those of a run that nothing interrupted."""

from pathlib import Path

import pytest
import torch
from filelock import FileLock

from recbole_llm4sbr.training import resuming
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = {"seconds_training", "seconds_per_epoch", "checkpoint", "settings", "peak_memory_mb"}


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """A state behind every epoch, however short."""
    monkeypatch.setattr(resuming, "_PAUSE", 0.0)
    monkeypatch.setattr(resuming, "_SHARE", float("inf"))


def killed_after(epoch):
    """Ends a run behind an epoch, as a signal would."""

    def end(now, score):
        if now == epoch:
            raise KeyboardInterrupt

    return end


def interrupted(settings, epoch):
    with pytest.raises(KeyboardInterrupt):
        train(settings, on_epoch=killed_after(epoch))
    (state,) = Path(settings["checkpoint_dir"]).glob("*/training-*.pth")
    return state


def figures(result):
    return {name: value for name, value in result.to_json().items() if name not in TIMES}


@pytest.mark.parametrize(
    "changed",
    [
        {"session_dropout": 0.5, "embedding_dropout": 0.5},
        {"model": "DHCN", "layers": 1, "beta": 0.01, "detach_line": False, "llm4sbr": False},
        {"model": "FEARec", "intent_source": "none", "inner_size": 16, "n_layers": 2, "n_heads": 1},
        {
            "model": "GRU4Rec",
            "llm4sbr": False,
            "loss_type": "BPR",
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        },
        {"llm4sbr": False, "learning_rate": 0.05, "stopping_step": 1, "eval_step": 2},
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(tiny, tmp_path, changed, caplog):
    settings = tiny | {"epochs": 6} | changed
    whole = train(settings | {"checkpoint_dir": str(tmp_path / "whole")})
    here = settings | {"checkpoint_dir": str(tmp_path / "killed")}
    state = interrupted(here, 1 if "eval_step" in changed else 2)
    with caplog.at_level("INFO"):
        result = train(here)
    assert f"going on with {state.parent}, which was interrupted, at epoch" in caplog.text
    assert figures(result) == figures(whole)
    assert len(result.seconds_per_epoch) == len(whole.seconds_per_epoch)
    assert result.seconds_training >= sum(result.seconds_per_epoch)
    one, other = (torch.load(each.checkpoint, weights_only=True)["state_dict"] for each in (result, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert [each.name for each in state.parent.iterdir()] == [
        Path(result.checkpoint).name
    ]  # nothing but the checkpoint is left


def test_other_settings_a_run_that_lives_and_a_class_of_ones_own_start_anew(tiny, tmp_path, caplog):
    settings = tiny | {"epochs": 4, "llm4sbr": False, "checkpoint_dir": str(tmp_path / "runs")}
    state = interrupted(settings, 1)
    with caplog.at_level("INFO"):
        train(settings | {"seed": 7})
        train(settings | {"learning_rate": 0.01})
        with FileLock(state.parent / "owner.lock"):  # as the run does that the folder belongs to
            train(settings)
        own = settings | {"model": "recbole.model.sequential_recommender:GRU4Rec", "num_layers": 1, "dropout_prob": 0.1}
        with pytest.raises(KeyboardInterrupt):
            train(own, on_epoch=killed_after(1))
        train(own)
    assert "going on with" not in caplog.text
    assert list(Path(settings["checkpoint_dir"]).glob("*/training-*.pth")) == [state]


def test_states_are_not_written_all_the_time(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "_PAUSE", 1000.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny | {"epochs": 3, "checkpoint_dir": str(tmp_path / "runs")}, on_epoch=killed_after(1))
    assert not list((tmp_path / "runs").glob("*/training-*.pth"))
