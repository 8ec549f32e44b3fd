import pytest

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.schema import describe_settings, model_schema, models_with_settings, read_yaml, schema
from recbole_llm4sbr.base.settings import load_settings, parse_value, recbole_keys
from recbole_llm4sbr.cli.main import VERBS
from recbole_llm4sbr.cli.parsing import parse_arguments


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
    ("key", "value", "says"),
    [
        ("eval_args", {"mode": "uni100"}, "every session ranks the whole catalogue here"),
        ("eval_args", {"split": {"RS": [8, 1, 1]}}, "--split"),
        ("eval_args", {"order": "RO"}, "--split"),
        ("eval_neg_sample_args", {"distribution": "uniform", "sample_num": 100}, "ranks the whole catalogue"),
        ("user_inter_num_interval", "[5,inf)", "--min_session_length"),
        ("benchmark_filename", ["a", "b", "c"], "--split"),
    ],
)
def test_settings_of_recbole_that_would_have_no_effect_are_refused(key, value, says):
    with pytest.raises(UserError, match=f"{key}=.* is not possible here.*{says}"):
        load(**{key: value})
    load(eval_args={"mode": "full", "group_by": "user", "order": "TO"})


def test_a_class_may_be_given_for_its_name():
    from recbole.model.sequential_recommender import NARM

    assert load_settings(NARM, "ml-100k")["model"] == "recbole.model.sequential_recommender.narm:NARM"


def test_an_unknown_setting_is_named_with_the_file_that_it_stands_in(tmp_path):
    right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
    right.write_text("intent_k: 1\n")
    wrong.write_text("intent_kk: 2\n")
    with pytest.raises(UserError, match=r"wrong.yaml': setting 'intent_kk' does not exist; did you mean 'intent_k'"):
        load_settings(dataset="ml-100k", config_files=[right, wrong])
    with pytest.raises(UserError, match=r"^setting 'intent_kkk' does not exist"):
        load_settings(dataset="ml-100k", config_files=[right], overrides={"intent_kkk": 2})


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


def parsed(arguments, verb=""):
    found = parse_arguments(VERBS[verb], arguments)
    return found.config_files, found.settings


def test_both_forms_of_an_argument_mean_the_same():
    assert parsed(["--epochs=3", "--model", "NARM"]) == ([], {"epochs": 3, "model": "NARM"})
    assert parsed(["--config_files=a.yaml,b.yaml"], "train") == (["a.yaml", "b.yaml"], {})
    assert parsed(["--item_name={title}", "--llm=7"])[1] == {"item_name": "{title}", "llm": "7"}
    assert parsed(["--epochs=3", "--epochs=3.0"])[1] == {"epochs": 3}
    assert parsed(["--dry_run", "--epochs=3", "--rebuild"])[1] == {"dry_run": True, "epochs": 3, "rebuild": True}
    assert parsed(["--dry_run", "false"])[1] == {"dry_run": False}


def test_a_verbs_own_options_are_no_settings():
    found = parse_arguments(VERBS["compare"], ["--seeds=[1,2]", "--variants=plain, llm4sbr", "--epochs=2"])
    assert (found.options["seeds"], found.options["variants"], found.settings) == ([1, 2], ["plain", "llm4sbr"], {"epochs": 2})
    found = parse_arguments(VERBS["tune"], ["--paper", "--trials", "3"])
    assert (found.options["paper"], found.options["trials"], found.options["out"]) == (True, 3, "tuning")
    assert parse_arguments(VERBS["report"], ["a", "b", "--html=x.html"]).words == ["a", "b"]


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("compare", ["--variant=plain"], "did you mean --variants"),
        ("ablate", ["--tables=contrls"], "did you mean 'controls'"),
        ("tune", ["--trials=many"], "number of at least 1"),
        ("tune", ["--serach=grid"], "did you mean --search"),
        ("report", ["--epochs=1"], "no option --epochs"),
        ("report", ["--htm=x"], "did you mean --html"),
        ("train", ["word"], "'word' is not understood"),
    ],
)
def test_a_mistake_in_a_verbs_options_is_named(verb, arguments, says):
    with pytest.raises(UserError, match=says):
        parse_arguments(VERBS[verb], arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own_with_all_its_options(verb):
    text = VERBS[verb].help()
    assert all(f"--{option.name}" in text for option in VERBS[verb].options)
    assert verb in text


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
        parsed(arguments)


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
    text = describe_settings()
    every = [*schema().values()] + [each for name in models_with_settings() for each in model_schema(name).values()]
    for setting in every:
        section = text.split(f"\n{setting.section}\n")[1]  # a model may declare a setting of all runs anew
        line = section.split(f"  --{setting.key}=")[1].split("\n  --")[0]
        assert setting.help in line
        assert all(str(choice) in line for choice in setting.choices), setting.key


def test_a_shipped_recipe_is_named_like_a_file_and_the_command_line_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = {path.stem: read_yaml(path) for path in (PROPERTIES / "recipe").glob("*.yaml")}
    assert set(recipes) == {"paper", "strong", "strong-plain"}
    for name, given in recipes.items():
        settings = load_settings(dataset="ml-100k", config_files=[name])
        assert {key: settings[key] for key in given} == given
        assert set(given) <= set(schema())  # ours, every one
    assert load_settings(dataset="ml-100k", config_files=["paper"], overrides={"intent_k": 1})["intent_k"] == 1
    (tmp_path / "paper.yaml").write_text("intent_k: 2\n")
    assert load_settings(dataset="ml-100k", config_files=["paper.yaml"])["intent_k"] == 2  # a file of one's own has an ending


def test_repeatable_takes_auto_true_and_false_from_the_command_line():
    assert [parse_value(text, "repeatable") for text in ("auto", "true", "false")] == ["auto", True, False]
    for value in ("yes please", 7, None):
        with pytest.raises(UserError, match="repeatable"):
            load(repeatable=value)
