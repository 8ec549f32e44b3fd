import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import file_of, session_rows
from torch.utils.data.distributed import DistributedSampler

from recbole_llm4sbr import run_recbole_llm4sbr
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.cli.summary import summary
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.training.evaluation import rows_of_all
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import load_data, train
from recbole_llm4sbr.training.trainer import read_checkpoint, session_trainer


def scores(loaded):
    return torch.cat([loaded.model.full_sort_predict(batch).view(len(batch), -1) for batch, *_ in loaded.test_data])


def test_a_run_selects_on_validation_and_its_checkpoint_gives_the_same_scores_in_a_new_process(tiny, tmp_path):
    results = [train(tiny | {"model": model, "epochs": 3}) for model in ("SRGNN", "GRU4Rec")]
    code = (
        "import sys, torch\nfrom recbole_llm4sbr import load_model\n"
        "for path in sys.argv[1:]:\n    m = load_model(path)\n"
        "    found = [m.model.full_sort_predict(b).view(len(b), -1) for b, *_ in m.test_data]\n"
        "    torch.save(torch.cat(found), path + '.scores')\n"
    )
    command = [sys.executable, "-c", code, *(result.checkpoint for result in results)]
    subprocess.run(command, check=True, capture_output=True)
    for result in results:
        assert result.best_valid_score == max(result.valid_scores) == result.valid_scores[result.best_epoch]
        assert result.best_valid_result["mrr@20"] == pytest.approx(result.best_valid_score)
        assert len(result.seconds_per_epoch) == 3
        loaded = load_model(result.checkpoint)
        # another process may have another number of threads, and add in another order
        torch.testing.assert_close(torch.load(result.checkpoint + ".scores"), scores(loaded), rtol=1e-5, atol=1e-6)
        with torch.no_grad():  # the test metrics are those of these scores: Hit@5 by hand
            hits, rows = 0, 0
            for batch, _, _, target in loaded.test_data:
                ranked = loaded.model.full_sort_predict(batch).view(len(batch), -1)
                ranked[:, 0] = -torch.inf
                hits += (ranked.topk(5).indices == target.view(-1, 1)).any(1).sum().item()
                rows += len(batch)
        assert result.test_result["hit@5"] == pytest.approx(hits / rows, abs=1e-6)


def test_the_same_seed_gives_the_same_result_and_another_seed_another(tiny):
    results = [train(tiny | {"seed": seed}, saved=False).test_result for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_loss_parts_are_shown_separately(tiny, caplog):
    with caplog.at_level(logging.INFO):
        train(tiny, saved=False)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "train_loss1" in text
    assert "train_loss2" in text


def test_checkpoints_hold_plain_types_only_and_foreign_files_are_refused(tiny, tmp_path):
    result = train(tiny)
    assert set(read_checkpoint(result.checkpoint)) >= {"config", "state_dict", "optimizer"}
    assert not any("intents" in key for key in read_checkpoint(result.checkpoint)["state_dict"])
    (tmp_path / "bad.pth").write_bytes(b"rubbish")
    torch.save({"x": 1}, tmp_path / "other.pth")
    for name in ("bad.pth", "other.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)


def test_a_run_that_is_interrupted_leaves_no_checkpoint_under_the_name_of_a_finished_one(tiny):
    def interrupt(epoch, score):
        raise KeyboardInterrupt

    folder = Path(tiny["checkpoint_dir"])
    before = set(folder.rglob("*.pth"))
    with pytest.raises(KeyboardInterrupt):
        train(tiny | {"epochs": 3}, on_epoch=interrupt)
    assert [each.name for each in set(folder.rglob("*.pth")) - before] == ["SRGNN.unfinished.pth"]
    train(tiny, saved=False)
    result = train(tiny)
    assert set(folder.rglob("SRGNN.pth")) - before == {Path(result.checkpoint)}


def test_settings_that_a_model_class_refuses_are_a_users_mistake(tiny):
    with pytest.raises(UserError, match=r"SASRec cannot be made with these settings: The hidden size \(8\) is not a multiple"):
        train(tiny | {"model": "SASRec", "n_heads": 3, "llm4sbr": False})


def test_a_plain_model_of_recbole_is_trained_against_sampled_items_and_no_other_is(tiny):
    plain = tiny | {"llm4sbr": False, "loss_type": "BPR"}
    gru = {"model": "GRU4Rec", "num_layers": 1, "dropout_prob": 0.1}
    losses = [train(tiny | {"llm4sbr": False} | gru | more).train_losses for more in ({}, {"loss_type": "BPR"})]
    assert losses[0][0] > 3 * losses[1][0]  # log of the number of items, and log 2
    for changed in ({}, gru | {"llm4sbr": True}, gru | {"session_dropout": 0.5}):
        with pytest.raises(UserError, match="is trained by cross-entropy over the catalogue here"):
            train(plain | changed)


def test_bert4rec_trains_through_a_batch_in_which_nothing_is_masked(tiny):
    layers = {
        "n_layers": 1,
        "n_heads": 1,
        "inner_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
    }
    bert = layers | {
        "model": "BERT4Rec",
        "llm4sbr": False,
        "mask_ratio": 0.2,
        "hidden_dropout_prob": 0.1,
        "attn_dropout_prob": 0.1,
    }
    result = train(tiny | bert | {"train_batch_size": 1, "epochs": 2})
    assert all(loss > 0 for loss in result.train_losses)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"learning_rate": 1e30}, "the loss is nan"),
        (
            {"model": "GRU4RecF", "selected_features": ["year"]},
            r"'year' is not loaded; add --load_col='\{item: \[item_id, year\]\}'",
        ),
    ],
)
def test_training_that_cannot_go_on_says_what_to_change(tiny, changed, says):
    with pytest.raises(UserError, match=says):
        train(tiny | {"llm4sbr": False} | changed)


def test_recboles_own_resume_continues_from_the_checkpoint(tiny):
    from recbole_llm4sbr.model import build_model
    from recbole_llm4sbr.training.trainer import session_trainer

    result = train(tiny | {"epochs": 2})
    config, _, (train_data, valid_data, _) = load_data(tiny | {"epochs": 3})
    trainer = session_trainer(config, build_model(config, train_data.dataset))
    trainer.resume_checkpoint(result.checkpoint)
    trainer.fit(train_data, valid_data, saved=False)
    assert len(trainer.epoch_seconds) == 3 - (result.best_epoch + 1)


def test_feature_files_changed_after_training_are_noticed(tiny):
    result = train(tiny)

    with open(file_of(tiny, "tiny.sessemb"), "a") as handle:
        handle.write("x\n")
    with pytest.raises(UserError, match=r"tiny\.sessemb"):
        load_model(result.checkpoint)


def test_the_whole_line_as_a_function_makes_no_second_call(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [run_recbole_llm4sbr("SRGNN", "tiny", config_dict=given | {"atomic_path": str(tmp_path / "a")}) for _ in range(2)]
    assert runs[0]["infer"]["calls"] > 0 == runs[1]["infer"]["calls"]
    assert runs[0]["test_result"] == runs[1]["test_result"]
    assert {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"} <= set(runs[0])
    json.dumps(runs)


def test_long_sessions_keep_their_newest_clicks(tiny):
    config, dataset, _ = load_data(tiny | {"MAX_ITEM_LIST_LENGTH": 3})
    whole = load_data(tiny)[1]
    tokens = {}
    for name, each in (("cut", dataset), ("whole", whole)):
        feat = each.inter_feat
        tokens[name] = {
            each.field2id_token["session_id"][s]: each.field2id_token["item_id"][seq[:n].numpy()].tolist()
            for s, seq, n in zip(feat["session_id"], feat["item_id_list"], feat["item_length"])
        }
    assert tokens["cut"] == {key: value[-3:] for key, value in tokens["whole"].items()}
    assert any(len(value) > 3 for value in tokens["whole"].values())
    assert dataset.inter_feat["item_id_list"].shape[1] == config["MAX_ITEM_LIST_LENGTH"]


def test_the_items_ranked_are_the_catalogue_though_some_stand_only_in_clicks_that_are_cut_off(tiny):
    folder = dataset_folder(tiny)
    rows = session_rows(folder, "tiny", "train")
    path = folder / "tiny.train.inter"
    first = rows[0]
    path.write_text(path.read_text().replace(f"{first[0]}\t", f"{first[0]}\told ", 1))
    for length in (1, 12):
        dataset = load_data(tiny | {"MAX_ITEM_LIST_LENGTH": length, "llm4sbr": False})[1]
        assert set(dataset.field2id_token["item_id"]) == {"[PAD]", "old", *read_items(folder / "tiny.item")["item_id"]}


def test_item_numbers_do_not_depend_on_the_order_of_the_rows(tiny):
    before = load_data(tiny | {"llm4sbr": False})[1].field2id_token["item_id"].tolist()
    for part in ("train", "test"):
        path = dataset_folder(tiny) / f"tiny.{part}.inter"
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    assert (
        load_data(tiny | {"llm4sbr": False})[1].field2id_token["item_id"].tolist() == before == ["[PAD]", *sorted(before[1:])]
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 8))
def test_rows_dealt_out_to_any_number_of_processes_come_back_in_order_and_once(processes, count, monkeypatch):
    shares = [torch.tensor(list(DistributedSampler(range(count), processes, rank, shuffle=False))) for rank in range(processes)]

    def all_gather(found, mine):
        for place, share in zip(found, shares):
            place.copy_(torch.stack([share, -share], 1))

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    for share in shares:
        found = rows_of_all(torch.stack([share, -share], 1), count, torch.device("cpu"))
        assert found.tolist() == [[row, -row] for row in range(count)]


def test_two_processes_train_and_have_the_metrics_of_one_though_the_rows_are_odd(settings_for):
    metrics = ["Hit", "MRR", "GAUC", "ItemCoverage", "GiniIndex"]  # the last two are no means over rows
    given = {"split_ratio": [0.66, 0.17, 0.17], "cold_items": True, "metrics": metrics}
    settings = settings_for(llm4sbr=False, nproc=2, epochs=2, **given)
    rows = prepare(settings).counts["rows"]
    assert rows["valid"] % 2
    assert rows["test"] % 2
    two = train(settings)
    loaded = load_model(two.checkpoint)
    one = session_trainer(loaded.config, loaded.model)
    one.eval_collector.data_collect(loaded.train_data)
    found = [one.evaluate(data, load_best_model=False) for data in (loaded.valid_data, loaded.test_data)]
    for mine, alone in zip((two.best_valid_result, two.test_result), found):
        assert mine == pytest.approx({key: float(value) for key, value in alone.items()}, abs=1e-5)
    assert sum(bucket.rows for bucket in two.by_clicks) == rows["test"]
    assert len(two.valid_scores) == 2


def test_the_learning_rate_falls_every_so_many_epochs(tiny, monkeypatch):
    from recbole.trainer import Trainer

    seen, original = [], Trainer._train_epoch

    def watched(self, *args, **kwargs):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", watched)
    train(tiny | {"epochs": 5, "learning_rate_step": 2, "learning_rate": 0.01, "stopping_step": 9}, saved=False)
    train(tiny | {"epochs": 2}, saved=False)
    assert seen == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.001, 0.001])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"misspelt": 1}, "setting 'misspelt' does not exist"),
        ({"atomic_pth": "x"}, "did you mean 'atomic_path'"),
        ({"intent_k": "five"}, "intent_k='five' must be of type int"),
        ({"split": "papr"}, "did you mean 'paper'"),
    ],
)
def test_a_wrong_setting_for_a_loaded_model_is_refused(tiny, changed, says):
    checkpoint = train(tiny).checkpoint
    with pytest.raises(UserError, match=says):
        load_model(checkpoint, **changed)


def test_a_class_that_only_a_checkpoint_names_is_not_imported(tiny, tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(
        "from pathlib import Path\nfrom recbole_llm4sbr.model.backbones import SRGNN\n"
        f"Path({str(tmp_path / 'was_run')!r}).touch()\n\nclass Mine(SRGNN):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = train(tiny | {"model": "stranger:Mine", "step": 1}).checkpoint
    (tmp_path / "was_run").unlink()
    sys.modules.pop("stranger")
    with pytest.raises(UserError, match=r"names the model class 'stranger:Mine'.*model='stranger:Mine'"):
        load_model(checkpoint)
    with pytest.raises(UserError, match="names the model class"):
        load_model(checkpoint, model="SRGNN")
    assert not (tmp_path / "was_run").exists()
    assert load_model(checkpoint, model="stranger:Mine").model is not None
    assert (tmp_path / "was_run").exists()


def test_classes_of_recbole_are_loaded_without_asking(tiny):
    checkpoint = train(tiny | {"model": "recbole.model.sequential_recommender:STAMP", "llm4sbr": False}).checkpoint
    assert load_model(checkpoint).model is not None


def test_a_checkpoint_is_not_loaded_with_data_that_were_prepared_anew(tiny, raw, tmp_path):
    settings = tiny | {"llm4sbr": False}
    checkpoint = train(settings).checkpoint
    assert load_model(checkpoint).model is not None
    data = tmp_path / "raw"
    shutil.copytree(raw, data)
    head, *lines = (data / "tiny" / "tiny.inter").read_text().splitlines()
    (data / "tiny" / "tiny.inter").write_text("\n".join([head, *reversed(lines)]) + "\n")  # the same clicks in another order
    prepare(settings | {"data_path": str(data), "rebuild": True})
    with pytest.raises(UserError, match=r"was trained on another tiny\.\w+.*train again"):
        load_model(checkpoint)
    (data / "tiny" / "tiny.inter").write_text("\n".join([head, *lines]).replace("\tm1\t", "\tn1\t") + "\n")
    (data / "tiny" / "tiny.item").write_text((data / "tiny" / "tiny.item").read_text().replace("m1\t", "n1\t", 1))
    prepare(settings | {"data_path": str(data), "rebuild": True})
    with pytest.raises(UserError, match=r"other items \(item 'm1' and 1 others"):
        load_model(checkpoint)


def test_the_items_that_are_printed_are_those_that_are_ranked(settings_for, raw, tmp_path):
    folder = tmp_path / "raw" / "tiny"
    shutil.copytree(raw / "tiny", folder)
    with open(folder / "tiny.inter", "a") as clicks:
        for n in range(6):  # the newest session clicks an item that no other one knows
            clicks.write(f"u1\t{['m1', 'late'][n % 2]}\t{10**7 + n}\n")
    with open(folder / "tiny.item", "a") as items:
        items.write("late\tlate title\t2001\n")
    settings = settings_for(data_path=str(folder.parent), llm4sbr=False)
    counts = prepare(settings).counts
    assert counts["items"] == counts["catalogue"] + 1
    ranked = load_data(settings)[1].item_num - 1
    assert ranked == counts["catalogue"] == len(read_items(folder.parent.parent / "atomic" / "tiny" / "tiny.item"))
    assert f"items ranked {ranked}," in summary(train(settings, saved=False))
