"""Each of RecBole's settings of data works here as RecBole means it, or is refused by name."""

import re
import shutil
from pathlib import Path

import pytest
import recbole
import torch
from recbole.data import create_dataset
from recbole.model.sequential_recommender import GRU4Rec
from recbole.utils.argument_list import dataset_arguments
from test_interop import stock

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole_settings import SESSION_FILES, check_recbole_settings
from recbole_llm4sbr.base.schema import read_yaml, schema
from recbole_llm4sbr.base.settings import load_settings, recbole_defaults
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.training.run import load_data, train

ROOT = Path(recbole.__file__).parent
FILES = [read_yaml(ROOT / "properties" / "dataset" / f"{name}.yaml") for name in ("sample", "ml-100k")]
READ = {key for path in ROOT.glob("data/**/*.py") for key in re.findall(r"config\[[\"'](\w+)[\"']\]", path.read_text())}
EVERY = sorted({*dataset_arguments, *READ, *(key for file in FILES for key in file)})
DEFAULTS = recbole_defaults("SRGNN")
OF_FEATURES = {  # compared with RecBole's own dataset under the same setting
    "normalize_field": {"normalize_field": ["price"]},
    "normalize_all": {"normalize_all": True},
    "numerical_features": {"numerical_features": ["price"]},
    "discretization": {"numerical_features": ["price"], "discretization": {"price": {"method": "ED", "bucket": 3}}},
    "seq_len": {"seq_len": {"title": 1}},
}
WORKS = {*OF_FEATURES, "NEG_PREFIX", "ITEM_LIST_LENGTH_FIELD", "shuffle"}  # and those of the schema


def load(**overrides):
    return load_settings("SRGNN", "ml-100k", overrides=overrides)


@pytest.mark.parametrize("key", EVERY)
def test_every_setting_that_recboles_data_read_works_or_is_refused_by_name(key):
    if key in WORKS or key in schema():
        return
    for value in (not DEFAULTS.get(key) if isinstance(DEFAULTS.get(key), bool) else "other", ["other"]):
        with pytest.raises(UserError, match=rf"{key}=.*is not possible here: .*; leave it out|setting '{key}' does not exist"):
            load(**{key: value})


def test_the_table_of_what_works_names_settings_of_recbole_alone():
    assert set(EVERY) >= WORKS
    assert not WORKS & set(schema())


@pytest.mark.parametrize("file", FILES)
def test_recboles_own_defaults_and_what_the_session_files_say_may_be_given(file):
    load(**{key: value for key, value in file.items() if key != "load_col"})
    load(**{key: value for key, value in SESSION_FILES.items() if key in DEFAULTS})


@pytest.fixture
def priced(raw, settings_for, tmp_path):
    """Settings of the plain SRGNN over `tiny` with a price of some items, prepared, and with the item features loaded."""
    folder = tmp_path / "raw" / "tiny"
    shutil.copytree(raw / "tiny", folder)
    head, *lines = (folder / "tiny.item").read_text().splitlines()
    rows = [f"{head}\tprice:float", *(f"{line}\t{1.5 * n if n % 7 else ''}" for n, line in enumerate(lines))]
    (folder / "tiny.item").write_text("\n".join(rows) + "\n")
    settings = settings_for(
        data_path=str(folder.parent), llm4sbr=False, load_col={"item": ["item_id", "title", "price"]}, repeatable=True
    )
    prepare(settings)
    return settings


def features(dataset, config):
    """Features of each item by its id."""
    feat = dataset.item_feat
    titles = dataset.field2id_token["title"]
    pairs = zip(dataset.field2id_token["item_id"], feat["title"].numpy(), feat["price"].tolist())
    return {item: ([each for each in titles[words] if each != "[PAD]"], price) for item, words, price in pairs}


@pytest.mark.parametrize("key", OF_FEATURES)
def test_a_setting_of_item_features_does_what_it_does_in_recbole(key, priced):
    load_col = {"inter": ["session_id", "item_id_list", "item_id"], **priced["load_col"]}
    found = []
    for changed in ({}, OF_FEATURES[key]):
        check_recbole_settings(changed, DEFAULTS, own_model=False)
        config = stock(priced, GRU4Rec, load_col=load_col, **changed)
        theirs = create_dataset(config)
        theirs.build()
        ours_config, ours, _ = load_data(priced | changed)
        found.append(features(ours, ours_config))
        assert found[-1] == features(theirs, config)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("key", "value", "context"), [("ITEM_LIST_LENGTH_FIELD", "clicks", {}), ("NEG_PREFIX", "no_", {"loss_type": "BPR"})]
)
def test_a_name_that_recbole_gives_a_field_may_be_another_one(key, value, context, priced):
    gru = {"model": "GRU4Rec", "num_layers": 1, "dropout_prob": 0.1, **context}
    one, other = (train(priced | gru | changed, saved=False) for changed in ({}, {key: value}))
    assert (one.train_losses, one.test_result) == (other.train_losses, other.test_result)
    batch = next(iter(load_data(priced | gru | {key: value})[2][0]))
    assert any(value in field for field in batch.columns)


def test_without_shuffle_the_rows_are_read_in_order(priced):
    for shuffle in (True, False):
        _, _, (train_data, _, _) = load_data(priced | {"shuffle": shuffle})
        seen = torch.cat([batch["session_id"] for batch in train_data])
        assert bool((seen == train_data.dataset.inter_feat["session_id"]).all()) is not shuffle


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seq_separator": ","}, "seq_separator=','.*`prepare` writes tabs between cells and blanks inside sequences"),
        ({"field_separator": None}, "field_separator=None"),
        (
            {"ITEM_LIST_LENGTH_FIELD": "item_id"},
            "ITEM_LIST_LENGTH_FIELD='item_id' must be a text, and no column of the sessions",
        ),
        ({"NEG_PREFIX": ""}, "NEG_PREFIX=''"),
        ({"normalize_all": "no"}, "normalize_all='no' must be true or false"),
        ({"USER_ID_FIELD": "visitor"}, "USER_ID_FIELD='visitor'.*--user_column"),
        ({"TIME_FIELD": "ts"}, "TIME_FIELD='ts'.*--time_column"),
        ({"additional_feat_suffix": "itememb"}, "additional_feat_suffix='itememb'.*load_col"),
        ({"load_col": {"inter": ["user_id", "item_id"]}}, "load_col=.*session_id, item_id_list, item_id and no others"),
        ({"load_col": {"item": ["year"]}}, "load_col=.*with item_id in it"),
        ({"load_col": {"item": "item_id"}}, "load_col=.*with item_id in it"),
        ({"load_col": {"user": ["user_id"]}}, "load_col=.*'user' is not known there"),
        ({"load_col": None}, "load_col=None must be of type dict"),
        ({"normalize_field": "price"}, r"normalize_field='price' must name columns of .item, as \[price\]"),
        ({"seq_len": {"title": 0}}, "seq_len=.*'title' needs a number of at least 1"),
        ({"normalize_field": ["price"], "normalize_all": True}, "contradict"),
        ({"discretization": {"price": {"method": "LD"}}}, "'price' must stand in numerical_features too"),
        ({"discretization": {"price": {"method": "ED"}}, "numerical_features": ["price"]}, "bucket: 10"),
    ],
)
def test_a_setting_that_the_session_files_contradict_says_what_to_use(changed, says):
    with pytest.raises(UserError, match=says):
        load(**changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"load_col": {"item": ["item_id", "pice"]}}, "load_col: .* has no column 'pice'; it has .*; did you mean 'price'"),
        ({"load_col": {"item": ["item_id"]}, "normalize_field": ["price"]}, "'price' is no column of .item that is loaded; add"),
        ({"normalize_field": ["title"]}, "normalize_field: the column 'title' .* is of the type token_seq, and no float"),
        ({"seq_len": {"item_id_list": 3}}, "seq_len: 'item_id_list' is no column of .item that is loaded"),
        ({"ITEM_LIST_LENGTH_FIELD": "price"}, "the sessions have a column 'price' of their own"),
        ({"selected_features": ["price"]}, r"only with --numerical_features=\[price\]"),
    ],
)  # fmt: skip
def test_features_that_the_item_file_cannot_carry_are_refused_before_anything_is_made(changed, says, priced):
    with pytest.raises(UserError, match=says):
        prepare(priced | changed)
    with pytest.raises(UserError, match=says):
        train(priced | changed)


def test_a_class_of_ones_own_may_ask_for_a_transform_of_recbole():
    assert load_settings("mine.models:Mine", "ml-100k", overrides={"transform": "crop_itemseq"})["transform"] == "crop_itemseq"
    with pytest.raises(UserError, match="transform='no'"):
        load_settings("mine.models:Mine", "ml-100k", overrides={"transform": "no"})
