import pytest
import yaml

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.settings import CHOICES, describe, load_settings, parse_value, recbole_keys
from recbole_llm4sbr.cli.console import parse_arguments


def load(**overrides):
    return load_settings(dataset="ml-100k", overrides=overrides)


def test_the_command_line_wins_over_files_and_files_win_over_our_properties(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("intent_k: 1\nepochs: 3\nsession_gap: 60\n")
    second.write_text("intent_k: 2\nepochs: 4\n")
    settings = load_settings(dataset="ml-100k", config_files=[first, second], overrides={"intent_k": 3})
    assert (settings["intent_k"], settings["epochs"], settings["session_gap"]) == (3, 4, 60)
    assert settings["prompt"] == "movies"  # properties/dataset/ml-100k.yaml over properties/overall.yaml
    assert settings["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5", 5),
        ("true", True),
        ("[long]", ["long"]),
        ("~", None),
        ("ml-1m", "ml-1m"),
        ("0.1", 0.1),
        ("{a", "{a"),
    ],
)
def test_values_are_read_as_yaml(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_both_forms_of_an_argument_mean_the_same():
    assert parse_arguments(["--epochs=3", "--model", "NARM"]) == (None, [], {"epochs": 3, "model": "NARM"})
    assert parse_arguments(["train", "--config_files=a.yaml,b.yaml"]) == ("train", ["a.yaml", "b.yaml"], {})
    assert parse_arguments(["--item_name={title}", "--llm=7"])[2] == {"item_name": "{title}", "llm": "7"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epochs"], "--epochs"),
        (["--epochs", "--model=X"], "--epochs"),
        (["-x"], "-x"),
        (["--epochs=1", "--epochs=2"], "twice"),
    ],
)
def test_a_malformed_command_line_is_named(arguments, says):
    with pytest.raises(UserError, match=says):
        parse_arguments(arguments)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"intent_kk": 3}, "did you mean 'intent_k'"),
        ({"learing_rate": 1}, "did you mean 'learning_rate'"),
        ({"zzzzqqqq": 1}, "zzzzqqqq"),
        ({"session_rule": "buckett"}, "did you mean 'bucket'.*bucket, gap, user, column"),
        ({"intent_k": "five"}, "intent_k='five' must be of type int"),
        ({"intent_k": True}, "must be of type int"),
        ({"intent_k": -1}, "at least 0"),
        ({"intent_k": 11}, "intent_k=11 is larger than the 10"),
        ({"views": []}, "views"),
        ({"views": ["long", "long"]}, "views"),
        ({"split_ratio": [0.8, 0.1]}, "split_ratio"),
        ({"llm4sbr": "maybe"}, "must be of type bool"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_remedy(overrides, says):
    with pytest.raises(UserError, match=says):
        load(**overrides)


def test_settings_of_recbole_are_known_and_those_of_an_own_model_are_passed_on():
    assert load(gpu_id="", stopping_step=3)["stopping_step"] == 3
    assert {"n_heads", "seed", "clip_grad_norm"} <= recbole_keys("SASRec")
    own = load_settings("mine.models:Mine", "ml-100k", overrides={"walk_depth": 3})
    assert own["walk_depth"] == 3


def test_a_bad_config_file_is_named(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1\n")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_settings(dataset="ml-100k", config_files=[bad])
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_settings(dataset="ml-100k", config_files=[tmp_path / "none.yaml"])


def test_help_explains_every_setting_and_every_choice_is_documented():
    overall = (PROPERTIES / "overall.yaml").read_text()
    text = describe()
    for key in yaml.safe_load(overall):
        assert f"--{key}=" in text, key
    of_models = "".join(path.read_text() for path in sorted((PROPERTIES / "model").glob("*.yaml")))
    for key, choices in CHOICES.items():
        line = (text.split(f"--{key}=")[1:] + of_models.split(f"\n{key}: ")[1:])[0].split("\n  --")[0]
        assert all(choice in line for choice in choices), key
