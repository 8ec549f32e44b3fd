"""What `prepare` and `infer` were told need not be told again; what is given anew still counts, and is refused where files differ."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import file_of
from test_bad_input import refused

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data import remembered
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.remembered import of_files, of_files_alone, of_prepared
from recbole_llm4sbr.intent.infer import infer

TOLD = {
    "session_gap": 700,
    "min_item_count": 3,
    "views": ["short"],
    "item_name": "{title} {year}",
    "prompt": "movies",
    "intent_k_max": 7,
}


@pytest.fixture
def told(settings_for, given):
    """The settings with which files were made, and what a later verb is given: where things are and how to train, and no more."""
    settings = settings_for(**TOLD)
    infer(settings, prepare(settings))
    now = {
        key: value for key, value in given.items() if key not in {*TOLD, "session_rule", "encoder", "llm_backend", "item_text"}
    }
    return settings, now | {"atomic_path": settings["atomic_path"]}


def load(now, recall, **changed):
    return load_settings(dataset="tiny", overrides=now | changed, recall=recall)


@pytest.mark.parametrize("recall", [of_files, of_files_alone])
def test_what_was_told_is_taken_from_the_files_and_decides_as_it_did(told, recall, caplog):
    settings, now = told
    found = load(now, recall)
    assert {key: found[key] for key in TOLD} == TOLD
    for artefacts in (["prepared"], ["items"], ["items", "intents"], ["training"]):
        assert deciding(found, *artefacts) == deciding(settings, *artefacts)
    assert (found["encoder"], found["llm_backend"], found["session_rule"]) == (settings["encoder"], "echo", "bucket")


def test_that_few_sessions_were_asked_about_is_a_warning(settings_for, given, caplog):
    remembered._warn.cache_clear()  # it is said once a process
    settings = settings_for(max_sessions=6)
    infer(settings, prepare(settings))
    now = given | {"atomic_path": settings["atomic_path"]}
    with caplog.at_level("WARNING"):
        assert load(now, of_files_alone)["max_sessions"] == 6
    assert "the LLM was asked about 6 sessions only (max_sessions=6)" in caplog.text


def test_infer_takes_what_prepare_was_told_and_nothing_of_its_own(told):
    _, now = told
    found = load(now, of_prepared)
    assert (found["session_gap"], found["min_item_count"], found["session_rule"]) == (700, 3, "bucket")
    assert (found["prompt"], found["views"], found["intent_k_max"]) == ("generic", ["long", "short"], 10)


def test_what_is_given_now_stays_and_is_refused_alone(told, tmp_path, capsys):
    _, now = told
    found = load(now, of_files, min_item_count=5)
    assert (found["session_gap"], found["min_item_count"]) == (700, 5)
    Path("now.yaml").write_text(yaml.safe_dump(now))
    Path("own.yaml").write_text("session_gap: 60\n")
    refused(
        ["train", "--dataset=tiny", "--config_files=now.yaml,own.yaml"], capsys, "otherwise: session_gap was 700, now 60; run"
    )
    refused(["train", "--dataset=tiny", "--config_files=now.yaml", "--prompt=products"], capsys, "otherwise: prompt differs in")


def test_prepare_itself_complains_as_ever_and_rebuild_starts_from_the_defaults(told):
    _, now = told
    with pytest.raises(UserError, match=r"min_item_count was 3, now 5.*session_gap was 700, now 1800"):
        prepare(load_settings(dataset="tiny", overrides=now | {"item_text": "{title}"}))
    assert load(now, of_files, rebuild=True)["session_gap"] == 1800


def test_train_needs_the_name_of_the_dataset_alone_and_records_the_true_settings(told, capsys):
    _, now = told
    Path("now.yaml").write_text(yaml.safe_dump(now))
    assert main(["train", "--dataset=tiny", "--config_files=now.yaml", "--result_file=out.json"]) == 0
    settings = json.loads(Path("out.json").read_text())["settings"]
    assert {key: settings[key] for key in TOLD} == TOLD


def test_further_views_in_the_files_are_not_taken_and_a_plain_model_reads_no_intents(told, settings_for):
    _, now = told
    both = settings_for(**TOLD | {"views": ["long", "short", "normal"]})
    infer(both, prepare(both))
    assert load(now, of_files)["views"] == ["long", "short"]
    assert load(now, of_files, llm4sbr=False)["prompt"] == "generic"
    assert load(now, of_files, llm4sbr=False)["session_gap"] == 700


def test_whether_items_repeat_is_no_matter_of_intents_alone_and_is_not_taken(told):
    settings, now = told
    assert settings["repeatable"] is True
    assert load({key: value for key, value in now.items() if key != "repeatable"}, of_files)["repeatable"] == "auto"


def test_an_address_is_taken_by_train_alone(told):
    settings, now = told
    path = file_of(settings, "infer.json")
    value = json.loads(path.read_text())
    value["settings"] |= {"llm_backend": "openai", "llm_url": "http://elsewhere/v1"}
    path.write_text(json.dumps(value))
    assert load(now, of_files)["llm_url"] is None
    assert load(now, of_files_alone)["llm_url"] == "http://elsewhere/v1"


@pytest.mark.parametrize(
    "harm", [{"views": [[1]]}, {"session_gap": "x"}, {"llm_backend": ["x"]}, {"prompt": 7}, {"item_name": "\x1b"}]
)
def test_values_that_no_setting_has_are_a_damaged_manifest(told, harm, capsys):
    settings, now = told
    for name in ("prepare.json", "infer.json"):
        path = file_of(settings, name)
        value = json.loads(path.read_text())
        value["settings"] |= harm
        path.write_text(json.dumps(value))
    Path("now.yaml").write_text(yaml.safe_dump(now))
    refused(["train", "--dataset=tiny", "--config_files=now.yaml"], capsys, "are damaged")
