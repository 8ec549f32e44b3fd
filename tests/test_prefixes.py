"""Every prefix of a session is trained on: its rows, in one pass where a model reads from left to right, and no test click among them."""

import pytest
import torch
from conftest import session_rows as file_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole import Interaction
from recbole_llm4sbr.data.folders import dataset_folder, part_file
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.model import build_model
from recbole_llm4sbr.model.backbones.srgnn import SRGNN
from recbole_llm4sbr.model.prefixes import TARGETS, session_rows
from recbole_llm4sbr.model.training_graphs import training_sessions
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.loaders import SessionLoader
from recbole_llm4sbr.training.run import load_data, load_dataset

SHARING = ["SRGNN", "GRU4Rec", "SASRec", "NARM", "CORE", "GRU4RecF", "SASRecF", "FDSA"]
FEATURES = {"load_col": {"item": ["item_id", "year"]}, "selected_features": ["year"]}


def without_dropout(model):
    for module in model.modules():
        if hasattr(module, "p") and type(module).__name__ == "Dropout":
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model.double()


def whole_sessions(settings):
    """The prepared sessions of train by name, from the file that holds their last targets."""
    rows = file_rows(dataset_folder(settings), settings["dataset"], part_file("train", "last"))
    return {name.rpartition(".")[0]: [*prefix, target] for name, prefix, target in rows}


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("name", SHARING)
def test_the_loss_of_sessions_is_the_loss_of_their_prefixes_one_by_one(name, repeatable, enhanced, tiny):
    features = FEATURES if name in ("GRU4RecF", "SASRecF", "FDSA") else {}
    settings = tiny | {
        "model": name, "repeatable": repeatable, "llm4sbr": enhanced, "intent_source": "session_text", "intent_refresh": "every",
        "MAX_ITEM_LIST_LENGTH": 5, "rebuild": True, **features,
    }  # fmt: skip
    prepare(settings)
    if enhanced:
        infer(settings)
    config, dataset = load_dataset(settings)
    prefixes = dataset.build()[0]
    _, _, (train_data, _, _) = load_data(settings)
    sessions = train_data.dataset.inter_feat
    assert TARGETS in sessions.interaction and len(sessions) < len(prefixes.inter_feat)
    torch.manual_seed(3)
    model = without_dropout(build_model(config, prefixes)).train()
    apart, together = model.calculate_loss(prefixes.inter_feat), model.calculate_loss(sessions)
    parts = [torch.stack([*each]) if isinstance(each, tuple) else each for each in (apart, together)]
    torch.testing.assert_close(parts[1], parts[0], rtol=1e-6, atol=1e-6)


class Changed(SRGNN):
    """A backbone of somebody's own, which changes how sessions are encoded."""

    def encode(self, interaction):
        return super().encode(interaction)


@pytest.mark.parametrize(("model", "shared"), [("SRGNN", True), ("TAGNN", False), ("GCEGNN", False), (Changed, False)])
def test_a_class_that_changes_encode_alone_is_trained_by_it(model, shared, settings_for):
    name = model if isinstance(model, str) else f"{model.__module__}:{model.__qualname__}"
    settings = settings_for(model=name, llm4sbr=False)
    prepare(settings)
    _, _, (train_data, _, _) = load_data(settings)
    assert (TARGETS in train_data.dataset.inter_feat) is shared


def test_rows_hold_every_prefix_once_with_its_newest_clicks(settings_for):
    settings = settings_for(MAX_ITEM_LIST_LENGTH=3)
    prepare(settings)
    expected = {
        f"{name}.{n}": (clicks[max(0, n - 3) : n], clicks[n])
        for name, clicks in whole_sessions(settings).items()
        for n in range(1, len(clicks))
    }
    assert max(map(len, whole_sessions(settings).values())) > 5
    rows = file_rows(dataset_folder(settings), "tiny", "train")
    assert {name: (prefix, target) for name, prefix, target in rows} == expected and len(rows) == len(expected)


def test_what_is_trained_and_tested_changes_without_new_files(settings_for):
    manifest = prepare(settings_for())
    sizes = {}
    for train in ("all", "last"):
        for tested in ("all", "last"):
            settings = settings_for(train_targets=train, eval_targets=tested, llm4sbr=False, model="TAGNN")
            assert prepare(settings).files == manifest.files
            _, dataset, loaders = load_data(settings)
            ids = [set(dataset.field2id_token["session_id"][part.dataset.inter_feat["session_id"]]) for part in loaders]
            sizes[train, tested] = ids
    every, last = sizes["all", "all"], sizes["last", "last"]
    assert sizes["all", "last"] == [every[0], *last[1:]] and sizes["last", "all"] == [last[0], *every[1:]]
    for more, fewer in zip(every, last):  # a row has one name
        assert fewer < more and {name.rpartition(".")[0] for name in fewer} == {name.rpartition(".")[0] for name in more}
    counts = manifest.counts
    assert [counts["prefixes"][part] for part in ("train", "valid", "test")] == [len(each) for each in every]
    assert [counts["rows"][part] for part in ("train", "valid", "test")] == [len(each) for each in last]


def test_session_targets_sets_both_and_a_setting_beside_it_wins(settings_for):
    def targets(**given):
        settings = settings_for(**given)
        return settings["train_targets"], settings["eval_targets"]

    assert targets() == ("all", "last")
    assert targets(session_targets="last") == ("last", "last") and targets(session_targets="all") == ("all", "all")
    assert targets(session_targets="last", eval_targets="all") == ("last", "all")


@pytest.mark.parametrize("model", ["SRGNN", "TAGNN"])  # rows are sessions, rows are prefixes
@pytest.mark.parametrize("every", [0, 10, 60, 10_000])
def test_rounds_of_eval_every_see_all_rows_before_one_comes_again(every, model, settings_for):
    settings = settings_for(eval_every=every, llm4sbr=False, model=model, train_batch_size=7)
    prepare(settings)
    _, _, (loader, _, _) = load_data(settings)
    assert isinstance(loader, SessionLoader)
    targets = len(file_rows(dataset_folder(settings), "tiny", "train"))
    rounds = max(1, round(targets / every)) if every else 1
    for epoch in range(2):
        seen = []
        for piece in range(rounds):
            loader.round = epoch * rounds + piece
            batches = [batch["session_id"].tolist() for batch in loader]
            assert len(batches) <= len(loader)
            seen += [row for batch in batches for row in batch]
        assert sorted(seen) == sorted(loader.dataset.inter_feat["session_id"].tolist())
        assert seen != sorted(seen)


def test_rounds_are_refused_where_several_processes_share_the_rows(settings_for):
    with pytest.raises(UserError, match=r"eval_every=50 is for one process: with nproc=2"):
        check_runnable(settings_for(eval_every=50, nproc=2, llm4sbr=False))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A log in which every click has an item of its own, so that an item says which click it is: by item its user, place, time and part."""
    folder = tmp_path_factory.mktemp("apart") / "apart"
    folder.mkdir()
    clicks, lines = {}, ["user_id:token\titem_id:token\ttimestamp:float\tpart:token"]
    for user in range(30):
        length = 4 + user % 5
        for place in range(length):
            item, time = f"i{len(clicks)}", 1_000_000 + 977 * user + 5000 * place
            part = "test" if place == length - 1 else "valid" if place == length - 2 and user % 2 else "train"
            clicks[item] = (user, place, time, part, length)
            lines.append(f"u{user}\t{item}\t{time}\t{part}")
    (folder / "apart.inter").write_text("\n".join(lines) + "\n")
    (folder / "apart.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{item}\t{item}\n" for item in clicks))
    return folder.parent, clicks


PROMISES = {  # of a click of train and one that validates or tests, each its user, place, time, part and session's length
    "temporal": lambda train, later: train[0] != later[0],
    "paper": lambda train, later: train[0] != later[0],
    "time_cut": lambda train, later: train[2] < later[2],
    "leave_one_out": lambda train, later: train[1] < train[4] - 2 and later[1] >= later[4] - 2,
    "given": lambda train, later: train[3] == "train" and later[3] != "train",
}


@pytest.mark.parametrize("split", PROMISES)
def test_no_click_of_valid_or_test_is_in_the_training_rows_graphs_or_vocabulary(split, apart, settings_for):
    folder, clicks = apart
    column = {"split_column": "part"} if split == "given" else {}
    settings = settings_for(
        data_path=str(folder), split=split, session_rule="user", min_item_count=1, cold_items=True, llm4sbr=False, model="GCEGNN",
        items="text", item_text="{title}", eval_targets="all", intent_source="none", **column,
    ) | {"dataset": "apart"}  # fmt: skip
    prepare(settings)
    infer(settings)
    _, dataset, (train_data, valid_data, test_data) = load_data(settings)
    tokens = dataset.field2id_token["item_id"]

    def items(feat):
        return set(tokens[feat["item_id"]]) | set(tokens[feat["item_id_list"].unique()]) - {"[PAD]"}

    later = [clicks[token] for part in (valid_data, test_data) for token in tokens[part.dataset.inter_feat["item_id"]]]
    trained = items(train_data.dataset.inter_feat)
    assert len(trained) > 60 and len(later) > 10
    assert all(PROMISES[split](clicks[token], each) for token in trained for each in later)
    config, _ = load_dataset(settings)
    whole = {token for session in training_sessions(config, train_data.dataset) for token in tokens[session]}
    assert whole == trained == set(tokens[1 : dataset.trained_items])


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("kind", ["none twice", "some twice", "all twice"])
def test_sr_gnn_has_the_same_gradients_whether_sessions_share_or_not(kind, step, tiny):
    settings = tiny | {"model": "SRGNN", "llm4sbr": False, "step": step, "MAX_ITEM_LIST_LENGTH": 6}
    config, dataset = load_dataset(settings)
    once, twice = [[5, 6, 7, 8], [9], [4, 3, 2, 1, 9, 8]], [[5, 6, 5, 7], [8, 8], [1, 2, 3, 1, 2, 3]]
    sessions = {"none twice": once, "some twice": [once[0], twice[1], once[1], twice[2], once[2]], "all twice": twice}[kind]
    rows = [(clicks[:n], 10 + n) for clicks in sessions for n in range(1, len(clicks) + 1)]
    prefixes = Interaction({
        "item_id_list": torch.tensor([clicks + [0] * (6 - len(clicks)) for clicks, _ in rows]),
        "item_length": torch.tensor([len(clicks) for clicks, _ in rows]),
        "item_id": torch.tensor([target for _, target in rows]),
        "session_id": torch.arange(len(rows)),
    })  # fmt: skip
    torch.manual_seed(4)
    model = build_model(config, dataset.build()[0]).double().train()
    gradients = []
    for batch in (prefixes, session_rows(prefixes, "item_id_list", "item_length", "item_id", "session_id")):
        model.zero_grad()
        model.calculate_loss(batch).backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters()})
    for name, apart in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], apart, rtol=1e-8, atol=1e-10, msg=name)
