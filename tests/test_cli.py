"""The command line as a user meets it: in a process of its own."""

import json
import subprocess
import sys

import pytest

from recbole_llm4sbr.cli.main import main


def run(arguments, cwd):
    command = [sys.executable, "-m", "recbole_llm4sbr.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def words(given, atomic, **changed):
    return [
        f"--{key}={value if value is not None else '~'}" for key, value in (given | {"atomic_path": atomic} | changed).items()
    ]


def test_one_command_walks_the_whole_line_and_ends_with_a_table_and_a_result_file(given, tmp_path, monkeypatch, capsys):
    atomic = str(tmp_path / "atomic")
    done = run(["--model=SRGNN", "--dataset", "tiny", *words(given, atomic), "--result_file", "out.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "LLM4SBR(SRGNN) on tiny" in done.stdout
    for column in ("Hit@5", "MRR@10", "NDCG@20"):
        assert column in done.stdout
    (log,) = (tmp_path / "log" / "SRGNN").iterdir()
    assert "best eval result in epoch" in log.read_text() or "epoch 0 training" in log.read_text()
    assert "\x1b" not in log.read_text()
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["infer"]["calls"] == result["infer"]["distinct_prompts"] > 0
    assert f"{result['test_result']['hit@5']:.4f}" in done.stdout
    assert {"settings", "versions", "prepare", "seconds_per_epoch", "peak_memory_mb", "best_epoch", "checkpoint"} <= set(result)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--model=SRGNN", "--dataset=tiny", *words(given, atomic, llm4sbr="false")]) == 0
    assert "SRGNN, plain on tiny" in capsys.readouterr().out
    logs = list((tmp_path / "log" / "SRGNN").glob("SRGNN-tiny-*.log"))
    assert len(logs) == 2  # a file for each run
    for path in logs:
        text = path.read_text()
        assert "epoch 0 training" in text
        assert "\x1b" not in text


MISTAKES = [
    (["--dataset=nowhere"], {}, "dataset 'nowhere' is not there"),
    (["--dataset=tiny", "--model=SRGN"], {}, "did you mean SRGNN"),
    (["--dataset=tiny", "--model=BERT4Rec"], {}, "BERT4Rec cannot be wrapped: it predicts masked clicks"),
    (["--dataset=tiny", "--model=Caser"], {}, "Caser cannot be wrapped: its forward() needs user"),
    (["--dataset=tiny", "--intent_k=11"], {}, "intent_k=11 is larger than the 10"),
    (["--dataset=tiny", "--intent_kk=1"], {}, "did you mean 'intent_k'"),
    (["--dataset=tiny", "--session_rule=hour"], {}, "choose one of bucket, gap, user, column"),
    (["--dataset=tiny"], {"min_item_count": 1000}, "no session is left"),
    (["--dataset=tiny"], {"time_column": "when"}, "no column 'when'"),
    (["--dataset=tiny"], {"item_text": "{brand}"}, "no text column 'brand'"),
    (["--dataset=tiny"], {"item_text": "{titel} ({year})"}, "did you mean --item_text='{title} ({year})'?"),
    (["--dataset=tiny"], {"encoder": "./no-such-folder"}, "no such folder"),
    (["--dataset=tiny", "--llm=./no-such-folder"], {"llm_backend": "transformers"}, "no such folder"),
    (["--dataset=tiny", "--views=[sideways]"], {}, "view 'sideways' is unknown"),
    (["--dataset=tiny", "--config_files=missing.yaml"], {}, "missing.yaml"),
    (["train", "--dataset=tiny"], {}, "run `recbole-llm4sbr prepare"),
    (["--epochs=1"], {}, "no dataset was named"),
    (["dance"], {}, "verb 'dance' is unknown"),
    (
        ["prepare", "--config_files=3", "--dataset=tiny"],
        {},
        "config_files='3' is neither a file nor a shipped recipe (paper, strong, strong-plain)",
    ),
    (["tune", "--dataset=tiny", "--trials={a"], {}, "--trials='{a' must be a whole number of at least 1"),
    (["tune", "--dataset=tiny", "--trials=2.5"], {}, "--trials='2.5' must be a whole number of at least 1"),
    (["tune", "--dataset=tiny", "--cpus_per_trial=.nan"], {}, "must be a number of at least 0"),
    (["tune", "--dataset=tiny", "--paper=banana"], {}, "--paper='banana' must be true or false"),
    (["tune", "--dataset=tiny", "--scheduler=ash"], {}, "did you mean 'asha'"),
    (["compare", "--dataset=tiny", "--workers=0.5"], {}, "--workers='0.5' must be a whole number of at least 0"),
    (["compare", "--dataset=tiny", "--seeds=true"], {}, "must be a number of seeds"),
    (["compare", "--dataset=tiny", "--models=SRGNN,"], {}, "must be names with commas between them"),
    (["compare", "--dataset=tiny", "--model=SRGNN", "--models=NARM"], {}, "use one of them"),
    (["compare", "--dataset=[nowhere, tiny]"], {}, "dataset 'nowhere' is not there"),
]


@pytest.mark.parametrize(("arguments", "changed", "says"), MISTAKES, ids=[f"{n}" for n in range(len(MISTAKES))])
def test_a_users_mistake_is_one_line_with_exit_code_2_and_leaves_no_manifest(
    given, tmp_path, arguments, changed, says, capsys, monkeypatch
):
    from recbole_llm4sbr.cli.main import main

    monkeypatch.chdir(tmp_path)
    mine = {
        key: value for key, value in (given | changed).items() if not any(word.startswith(f"--{key}=") for word in arguments)
    }
    code = main([*arguments, *words(mine, str(tmp_path / "atomic"))])
    error = capsys.readouterr().err.splitlines()
    assert code == 2
    assert error[-1].startswith("error: ")
    assert says in error[-1]
    assert "Traceback" not in "\n".join(error)
    assert not list(tmp_path.rglob("infer.json"))
    assert not list(tmp_path.rglob("*.partial"))


def test_an_unwritable_folder_is_named(given, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(["prepare", "--dataset=tiny", *words(given, str(tmp_path / "file" / "atomic"))], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: cannot create the folder")


def test_a_result_file_that_cannot_be_written_is_named_before_anything_runs(given, tmp_path, monkeypatch, capsys):
    from recbole_llm4sbr.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["--dataset=tiny", *words(given, str(tmp_path / "atomic")), "--result_file=file/out.json"]) == 2
    assert "cannot create the folder 'file'" in capsys.readouterr().err
    assert not (tmp_path / "atomic").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["answers"], "names no action that there is; name one of stats, export, import, drop"),
        (["answers", "stat"], "`answers stat` names no action"),
        (["answers", "stats", "--atomic_paht=x"], "did you mean --atomic_path"),
        (["answers", "export"], "needs --file"),
        (["report"], "report needs the folders"),
        (["report", "here", "--htm=x"], "did you mean --html"),
    ],
)
def test_a_mistake_with_a_verb_without_settings_is_one_line_too(arguments, says, capsys, tmp_path, monkeypatch):
    from recbole_llm4sbr.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert says in error[0]


@pytest.mark.parametrize("verb", [[], ["train"]], ids=["line", "train"])
@pytest.mark.parametrize(("result", "says"), [("made", "is a folder"), ("file/out.json", "cannot create the folder")])
def test_a_result_file_that_cannot_be_written_is_refused_before_training(verb, result, says, tiny, tmp_path, capsys):
    from recbole_llm4sbr.cli.main import main

    (tmp_path / "made").mkdir()
    (tmp_path / "file").write_text("")
    given = {key: tiny[key] for key in ("data_path", "atomic_path", "encoder", "llm_backend", "min_item_count", "item_text")}
    changed = {
        "MAX_ITEM_LIST_LENGTH": 12,
        "dataset": "tiny",
        "result_file": tmp_path / result,
        "checkpoint_dir": tmp_path / "saved",
    }
    assert main([*verb, *(f"--{key}={value}" for key, value in (given | changed).items())]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "saved").exists()


VERB_NAMES = ("import", "prepare", "infer", "train", "compare", "ablate", "tune", "report", "answers")


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_help_of_a_verb_is_the_same_however_it_is_asked_for(verb, capsys):
    from recbole_llm4sbr.cli.main import main

    texts = []
    for arguments in ([verb, "--help"], [verb, "-h"], ["help", verb]):
        assert main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"usage: recbole-llm4sbr {verb}")


@pytest.mark.parametrize(("verb", "takes"), [("recommend", False), ("serve", False), ("ensemble", False), ("train", True)])
def test_settings_files_are_offered_where_they_are_taken(verb, takes, capsys):
    main([verb, "--help"])
    assert ("--config_files" in capsys.readouterr().out) == takes
    if not takes:
        assert main([verb, "--config_files=strong"]) == 2
        assert f"`{verb}` takes its settings from checkpoints" in capsys.readouterr().err


def test_help_of_train_lists_the_settings_of_training_as_the_long_help_does(capsys):
    from recbole_llm4sbr.cli.main import main

    main(["--help"])
    everything = capsys.readouterr().out
    main(["train", "--help"])
    train = capsys.readouterr().out
    for line in ("  --intent_lambda=0.1\n", "  --epochs=200\n", "Settings of GCEGNN\n"):
        assert line in train
        assert line in everything
    assert "--session_gap=" not in train


def test_help_and_version_need_no_dataset(tmp_path):
    shown = run(["--help"], tmp_path)
    assert shown.returncode == 0
    assert "--intent_lambda=0.1" in shown.stdout
    assert run(["--version"], tmp_path).stdout.strip() == "0.1.0"
