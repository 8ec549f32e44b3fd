"""What a run shows, what it keeps in its log file, and names as people write them."""

import logging
import os
import re
import subprocess
import sys

import pytest

from recbole_llm4sbr.base import screen
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.model_names import canonical_model, model_names, plain_name
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.experiment.variants import EnsembleName
from recbole_llm4sbr.intent import progress
from recbole_llm4sbr.model.registry import OURS, model_class
from recbole_llm4sbr.training.epochs import EpochLines, describe_model
from recbole_llm4sbr.training.epochs import __file__ as epochs_file

# as the console script, whose sys.path holds no working folder
CONSOLE = (
    "import sys; sys.path[:] = [each for each in sys.path if each]; from recbole_llm4sbr.cli.main import main; sys.exit(main())"
)
NUMBER = r"-?\d+\.\d+"


def console(cwd, *words):
    paths = [each for each in sys.path if each]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CONSOLE, *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def words(tiny, **changed):
    keys = (
        "data_path",
        "atomic_path",
        "encoder",
        "llm_backend",
        "min_item_count",
        "item_text",
        "embedding_size",
        "hidden_size",
    )
    given = {key: tiny[key] for key in (*keys, "train_batch_size", "MAX_ITEM_LIST_LENGTH", "repeatable")}
    return [f"--{key}={value}" for key, value in (given | {"dataset": "tiny"} | changed).items()]


def test_a_run_shows_its_head_and_a_line_per_epoch_and_keeps_recboles_log_in_a_file(tiny, tmp_path):
    shown = console(tmp_path, "train", *words(tiny, model="sr-gnn", epochs=3, eval_step=2)).stderr
    (head,) = re.findall(r"^SRGNN \+ echo \(not a language model\) on tiny: .*", shown, re.M)
    assert re.search(r": \d+ training rows, 30 items, (cpu|cuda)$", head)
    epochs = re.findall(r"^epoch .*", shown, re.M)
    losses = rf"{NUMBER} s, cross-entropy {NUMBER}, alignment and uniformity {NUMBER}"
    assert re.fullmatch(f"epoch 0: {losses}", epochs[0])
    assert re.fullmatch(rf"epoch 1: {losses}, MRR@20 {NUMBER} on validation \(best so far\)", epochs[1])
    assert len(epochs) == 3
    for hidden in ("\x1b", "train_loss", "evaluating", "Hyper Parameters", "Trainable parameters"):
        assert hidden not in shown
    (path,) = (tmp_path / "log" / "SRGNN").iterdir()
    kept = path.read_text()
    for line in (
        "learning_rate = ",
        "The number of users",
        "Trainable parameters",
        "epoch 1 evaluating",
        "train_loss2",
        "epoch 2: ",
    ):
        assert line in kept
    assert "\x1b" not in kept
    assert "trained_on" not in kept


def test_verbose_shows_what_is_hidden_and_a_class_in_the_working_folder_is_found(tiny, tmp_path):
    (tmp_path / "my_models.py").write_text(
        "import logging\nfrom recbole_llm4sbr.model.backbones.srgnn import SRGNN\n\n"
        "class Mine(SRGNN):\n    def __init__(self, config, dataset):\n        super().__init__(config, dataset)\n"
        "        logging.getLogger().info('of my own')\n"
    )
    arguments = ["train", *words(tiny, model="my_models:Mine", epochs=1, llm4sbr="false", step=1)]
    shown = console(tmp_path, *arguments, "--verbose").stderr
    for line in ("Mine, plain on tiny", "of my own", "learning_rate = ", "epoch 0 evaluating", "Trainable parameters"):
        assert line in shown
    assert "\x1b" not in shown


def test_the_screen_hides_recboles_lines_but_not_its_warnings_and_no_line_of_anybody_else():
    of_recbole, of_a_user = f"{screen._recboles_files()[0]}trainer/trainer.py", "/home/me/my_models.py"
    for name, path, level, shown in (
        ("root", of_recbole, logging.INFO, False),
        ("root", of_recbole, logging.WARNING, True),
        ("root", of_a_user, logging.INFO, True),
        ("recbole", of_a_user, logging.INFO, False),
        ("recbole_llm4sbr.training.epochs", epochs_file, logging.INFO, True),
    ):
        record = logging.LogRecord(name, level, path, 1, "a line", (), None)
        assert bool(screen.Screen().filter(record)) == shown
        assert screen.Screen(verbose=True).filter(record)


def test_no_file_of_the_working_folder_takes_the_place_of_an_installed_module(tmp_path, monkeypatch):
    (tmp_path / "colorlog.py").write_text("raise SystemExit('imported')")
    (tmp_path / "mine_apart.py").write_text("from torch.nn import Module as Mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    with pytest.raises(UserError, match="cannot be imported"):
        model_class("none_such_module:Mine")
    assert str(tmp_path) not in sys.path
    with pytest.raises(UserError, match="cannot be imported"):
        model_class("colorlog:Mine")
    assert str(tmp_path) not in sys.path
    assert model_class("mine_apart:Mine").__name__ == "Module"
    assert sys.path[-1] == str(tmp_path)


def test_every_model_is_found_however_its_name_is_written():
    assert set(OURS) <= set(model_names())  # a model of ours has its file in properties/model
    assert len({plain_name(name) for name in model_names()}) == len(model_names())
    for name in model_names():
        assert {canonical_model(each) for each in (name, name.lower(), name.upper(), "-".join(name))} == {name}
        assert canonical_model(f"llm2{name.lower()}") == f"LLM2{name}"
        assert model_class(name).__name__ == name
    for name in ("SRGN", "", "LLM2", "llm2", "mine:srgnn", "recbole.model.sequential_recommender:SASRec"):
        assert canonical_model(name) == name
    assert EnsembleName.read("ensemble(plain,plain@gce-gnn)").members[1].model == "GCEGNN"


def test_a_name_that_more_than_one_model_could_mean_means_none(monkeypatch):
    monkeypatch.setattr("recbole_llm4sbr.base.model_names.model_names", lambda: ("SA-Rec", "SARec"))
    assert [canonical_model(name) for name in ("sarec", "SARec", "SA-Rec")] == ["sarec", "SARec", "SA-Rec"]


@pytest.mark.parametrize(("typed", "name"), [("srgnn", "SRGNN"), ("Sas-Rec", "SASRec"), ("LLM2sr_gnn", "SRGNN")])
def test_settings_have_the_name_as_the_class_has_it(typed, name):
    settings = load_settings(typed, "tiny")
    assert settings["model"] == name
    assert settings["item_init"] == ("pca" if typed.startswith("LLM2") else "random")


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(UserError, match="did you mean SRGNN"):
        model_class("sr-gn")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"llm4sbr": False}, "SRGNN, plain"),
        ({}, "SRGNN + smollm2-135m-instruct"),
        ({"llm_backend": "openai", "llm": "m", "llm_name": "served"}, "SRGNN + served"),
        ({"intent_source": "session_text"}, "SRGNN + session_text"),
        ({"intent_source": "shuffled"}, "SRGNN + smollm2-135m-instruct, exchanged between sessions"),
        ({"intent_source": "random"}, "SRGNN + random vectors"),
        ({"intent_source": "none"}, "SRGNN + no intents"),
        ({"model": "LLM2SRGNN"}, "SRGNN, plain, item table started from text (pca)"),
        ({"model": "LLMInfer", "llm4sbr": False}, "LLMInfer + smollm2-135m-instruct"),
    ],
)
def test_the_head_says_whose_intents_enhance_the_model(changed, says):
    assert describe_model(load_settings(None, "tiny", (), {"model": "SRGNN"} | changed)) == says


@pytest.mark.parametrize(("state", "lines"), [(None, 1), ("debug", 1), ("error", 0)])
def test_a_line_has_means_over_the_steps_and_numbers_losses_without_a_name(state, lines, caplog):
    line = EpochLines({"state": state, "valid_metric": "MRR@20", "loss_decimal_place": 2}, ("cross-entropy",))
    line.trained(7, 1.25, (12.0, 2.0), 4)
    with caplog.at_level(logging.INFO):
        line.say(0.5, best=False)
    assert caplog.messages == ["epoch 7: 1.25 s, cross-entropy 3.00, loss 2 0.50, MRR@20 0.5000 on validation"][:lines]


def test_nothing_is_predicted_before_enough_batches_and_loading_does_not_count(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    bar = progress.Progress(100)
    for seconds, size, rate in ((60, 4, None), (4, 20, None), (4, 20, None), (4, 20, 5.0), (2, 10, 5.0)):
        now[0] += seconds
        for number in range(size):
            bar.came(10, number < size - 1)
        assert bar.per_second() == rate
    bar.close()
    assert "5.0 prompts/s, 50 tokens/s, 5 s left" in capsys.readouterr().err


def test_requests_are_not_logged_unless_the_host_asked_for_them(monkeypatch):
    loggers = [logging.getLogger(name) for name in ("httpx", "openai", "urllib3")]
    before = [logger.level for logger in loggers]
    try:
        for logger, level in zip(loggers, (logging.NOTSET, logging.DEBUG, logging.NOTSET)):
            logger.setLevel(level)
        screen.hide_requests()
        assert [logger.level for logger in loggers] == [logging.WARNING, logging.DEBUG, logging.WARNING]
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def test_making_the_openai_backend_hides_its_requests():
    from recbole_llm4sbr.intent.backends.openai import OpenAIBackend

    logger, before = logging.getLogger("httpx"), logging.getLogger("httpx").level
    logger.setLevel(logging.NOTSET)
    try:
        OpenAIBackend("m", 4, "http://127.0.0.1:9/v1")
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


def test_the_first_batch_of_a_local_model_is_small_and_no_answer_is_lost(tiny_llm, monkeypatch):
    from test_backends import answers, requests

    from recbole_llm4sbr.intent.backends.transformers import TransformersBackend

    original, sizes = TransformersBackend._answer, []

    def watched(self, batch, *rest):
        sizes.append(sum(len(each.members) for each in batch))
        yield from original(self, batch, *rest)

    monkeypatch.setattr(TransformersBackend, "_answer", watched)
    got = answers(TransformersBackend(tiny_llm, 4, 0, "cpu"), requests())
    assert sorted(got) == list(range(len(requests())))
    assert 1 <= sizes[0] <= 4 < max(sizes[1:])
