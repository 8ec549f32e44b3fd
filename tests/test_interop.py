"""Drop-in comparison in both directions: stock RecBole reads our files with a config file that we ship, over the same items."""

import re
import shutil
from pathlib import Path

import yaml
from conftest import file_of, session_rows
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.utils import data_preparation
from recbole.model.sequential_recommender import SRGNN, GRU4Rec
from recbole.trainer import Trainer

import recbole_llm4sbr.base.recbole  # noqa: F401  (gives numpy the names that RecBole reads)
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.model.backbones import SRGNN as Ours
from recbole_llm4sbr.training.run import load_data, train


class StockConfig(Config):
    """RecBole's Config under the mends alone (docs/data.md)."""

    def compatibility_settings(self):
        pass

    def _load_cmd_line(self):
        return {}


def stock(tiny, model, **changed):
    given = {
        "data_path": tiny["atomic_path"],
        "MAX_ITEM_LIST_LENGTH": 12,
        "gpu_id": "",
        "epochs": 2,
        "embedding_size": 8,
        "hidden_size": 8,
    }
    return StockConfig(
        model=model, dataset="tiny", config_file_list=[PROPERTIES / "stock_recbole.yaml"], config_dict=given | changed
    )


def test_stock_recbole_reads_the_files_and_has_our_catalogue_and_rows(tiny):
    config = stock(tiny, GRU4Rec)
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    folder = dataset_folder(tiny)
    assert set(dataset.field2id_token["item_id"][1:]) == set(read_items(folder / "tiny.item")["item_id"])
    for part, loader in (("train", train_data), ("valid", valid_data), ("test", test_data)):
        ids, prefixes, targets = zip(*session_rows(folder, "tiny", part))
        feat = loader.dataset.inter_feat
        assert dataset.field2id_token["session_id"][feat["session_id"]].tolist() == list(ids)
        assert dataset.field2id_token["item_id"][feat["item_id"]].tolist() == list(targets)
        for seq, length, prefix in zip(feat["item_id_list"], feat["item_length"], prefixes):
            assert dataset.field2id_token["item_id"][seq[:length].numpy()].tolist() == list(prefix)
    enhanced = load_data(tiny)[1]
    assert set(enhanced.field2id_token["item_id"]) == set(dataset.field2id_token["item_id"])
    assert enhanced.item_num == dataset.item_num


def test_stock_models_train_and_test_on_the_files(tiny, tmp_path):
    for model in (GRU4Rec, SRGNN):
        config = stock(tiny, model, checkpoint_dir=str(tmp_path / "saved"))
        train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, model(config, train_data.dataset))
        trainer.fit(train_data, valid_data, saved=False)
        assert trainer.evaluate(test_data, load_best_model=False)["hit@20"] > 0


def test_stock_metrics_equal_ours_for_the_same_weights(tiny, tmp_path):
    config = stock(tiny, SRGNN, checkpoint_dir=str(tmp_path / "saved"))
    train_data, _, test_data = data_preparation(config, create_dataset(config))
    original = SRGNN(config, train_data.dataset)
    theirs = Trainer(config, original).evaluate(test_data, load_best_model=False)
    our_config, _, (our_train, _, our_test) = load_data(tiny | {"llm4sbr": False})
    ours = Ours(our_config, our_train.dataset)
    theirs_to_ours = train_data.dataset.token2id("item_id", our_train.dataset.field2id_token["item_id"])  # ours are sorted
    weights = original.state_dict()
    weights["item_embedding.weight"] = weights["item_embedding.weight"][theirs_to_ours]
    ours.load_state_dict(weights)
    mine = Trainer(our_config, ours).evaluate(our_test, load_best_model=False)
    assert {key: round(float(value), 4) for key, value in mine.items()} == {key: float(value) for key, value in theirs.items()}


def test_feature_files_survive_a_round_trip_through_recboles_reader(tiny):
    import numpy as np
    import torch

    from recbole_llm4sbr.model import SessionIntents

    columns = [f"{view}_{part}" for view in ("long", "short") for part in ("items", "sims")]
    load = {"inter": ["session_id", "item_id_list", "item_id"], "itememb": ["iid", "item_emb"], "sessemb": ["sid", *columns]}
    config = stock(
        tiny,
        GRU4Rec,
        load_col=load,
        additional_feat_suffix=["itememb", "sessemb"],
        alias_of_user_id=["sid"],
        alias_of_item_id=["item_id_list", "iid", "long_items", "short_items"],
    )
    shutil.copy(file_of(tiny, "tiny.sessemb"), dataset_folder(tiny))  # RecBole reads one folder
    dataset = create_dataset(config)
    dataset.build()
    our_config, ours, _ = load_data(tiny | {"intent_k": 10})
    assert dataset.item_num == ours.item_num  # the files hold the catalogue and no more
    intents = SessionIntents.from_dataset(our_config, ours)
    for token, vector in zip(dataset.id2token("item_id", dataset.itememb_feat["iid"]), dataset.itememb_feat["item_emb"]):
        torch.testing.assert_close(intents.item_emb[ours.token2id("item_id", token)], vector.float())
    feat = dataset.sessemb_feat
    ids = ours.token2id("session_id", dataset.id2token("session_id", feat["sid"]))
    for number, view in enumerate(("long", "short")):
        mine = ours.field2id_token["item_id"][intents.nearest[ids, number].numpy()]
        assert np.array_equal(mine, dataset.field2id_token["item_id"][feat[f"{view}_items"].numpy()])
        torch.testing.assert_close(intents.sims[ids, number], feat[f"{view}_sims"].float())


def test_a_stock_model_runs_through_our_command_untouched(tiny):
    result = train(tiny | {"model": "STAMP", "llm4sbr": False}, saved=False)
    assert result.infer is None
    assert result.test_result["hit@20"] >= 0


def test_the_shipped_config_uses_recboles_keys_only():
    from recbole_llm4sbr.base.settings import recbole_keys

    given = yaml.safe_load((PROPERTIES / "stock_recbole.yaml").read_text())
    assert set(given) <= recbole_keys("GRU4Rec")


def test_the_block_in_the_documentation_runs_for_ml_100k(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare(load_settings(dataset="ml-100k", overrides={"atomic_path": "atomic_data/", "llm4sbr": False}))
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.setattr("sys.argv", ["python"])
    exec(
        compile(
            block.replace(
                '"epochs": 5', '"epochs": 1, "gpu_id": "", "embedding_size": 8, "hidden_size": 8, "train_batch_size": 2048'
            ),
            "docs/data.md",
            "exec",
        ),
        {},
    )
    assert "hit@20" in capsys.readouterr().out
