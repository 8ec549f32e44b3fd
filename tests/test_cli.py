"""The command line as a user meets it: in a process of its own."""

import json
import subprocess
import sys

import pytest


def run(arguments, cwd):
    command = [sys.executable, "-m", "recbole_llm4sbr.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def words(given, atomic, **changed):
    return [
        f"--{key}={value if value is not None else '~'}" for key, value in (given | {"atomic_path": atomic} | changed).items()
    ]


def test_one_command_walks_the_whole_line_and_ends_with_a_table_and_a_result_file(given, tmp_path):
    atomic = str(tmp_path / "atomic")
    done = run(["--model=SRGNN", "--dataset", "tiny", *words(given, atomic), "--result_file", "out.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "LLM4SBR(SRGNN) on tiny" in done.stdout
    for column in ("Hit@5", "MRR@10", "NDCG@20"):
        assert column in done.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["infer"]["calls"] == result["infer"]["distinct_prompts"] > 0
    assert f"{result['test_result']['hit@5']:.4f}" in done.stdout
    assert {"settings", "versions", "prepare", "seconds_per_epoch", "peak_memory_mb", "best_epoch", "checkpoint"} <= set(result)
    plain = run(["train", "--model=SRGNN", "--dataset=tiny", *words(given, atomic, llm4sbr="false")], tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "SRGNN, plain on tiny" in plain.stdout


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
    (["--dataset=tiny"], {"encoder": "./no-such-folder"}, "no such folder"),
    (["--dataset=tiny", "--llm=./no-such-folder"], {"llm_backend": "transformers"}, "no such folder"),
    (["--dataset=tiny", "--views=[sideways]"], {}, "view 'sideways' is unknown"),
    (["--dataset=tiny", "--config_files=missing.yaml"], {}, "missing.yaml"),
    (["train", "--dataset=tiny"], {}, "run `recbole-llm4sbr prepare"),
    (["--epochs=1"], {}, "no dataset was named"),
    (["dance"], {}, "verb 'dance' is unknown"),
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


def test_help_and_version_need_no_dataset(tmp_path):
    shown = run(["--help"], tmp_path)
    assert shown.returncode == 0
    assert "--intent_lambda=0.1" in shown.stdout
    assert run(["--version"], tmp_path).stdout.strip() == "0.1.0"
