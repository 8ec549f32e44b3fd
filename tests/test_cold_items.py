"""Cold items (`cold_items: true`): items without a training click are ranked by their texts, and training knows nothing of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import file_of, session_rows, title
from test_contract import built

from recbole_llm4sbr import Recommender, load_ensemble, load_model, run_ensemble
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.metrics import session_metric
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.schema import model_defaults
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.cli.summary import summary
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.item_vectors import encode_items
from recbole_llm4sbr.model.cold_items import trained_part
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.run import load_data, train

pytestmark = pytest.mark.usefixtures("one_thread")

LATE, NEVER = [f"m{n}" for n in range(30, 34)], ["m34", "m35"]  # items of the last days alone, and items that nobody clicks


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """RecBole writes its logs into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def late(given, tmp_path_factory):
    """Settings of `tiny` with items that come late or never, prepared with and without `cold_items`: by its value."""
    folder = tmp_path_factory.mktemp("late")
    raw, source = folder / "raw" / "tiny", Path(given["data_path"]) / "tiny"
    raw.mkdir(parents=True)
    head, *clicks = (source / "tiny.inter").read_text().splitlines()
    lines, last = [head], np.quantile([int(line.split("\t")[2]) for line in clicks], 0.84)
    for number, line in enumerate(clicks):
        user, item, time = line.split("\t")
        if int(time) > last and number % 2:
            item = LATE[number // 2 % 4]
        lines.append(f"{user}\t{item}\t{time}")
    (raw / "tiny.inter").write_text("\n".join(lines) + "\n")
    head, *items = (source / "tiny.item").read_text().splitlines()
    items += [f"{token}\t{title(int(token[1:]))}\t{1950 + int(token[1:])}" for token in [*LATE, *NEVER]]
    (raw / "tiny.item").write_text("\n".join([head, *items]) + "\n")
    found = {}
    for cold in (False, True):
        own = {"data_path": str(folder / "raw"), "atomic_path": str(folder / f"atomic-{cold}"), "cold_items": cold}
        own |= {"checkpoint_dir": str(folder / "saved"), "intent_source": "session_text", "epochs": 2, "valid_metric": "MRR@20"}
        own["encoder_batch_size"] = 1  # a text has the same vector, to the last digit, beside whatever others
        found[cold] = load_settings(dataset="tiny", overrides=given | own)
        prepare(found[cold])
        infer(found[cold])
    return found


def counts_of(settings):
    return PreparedCounts.from_json(json.loads((dataset_folder(settings) / "prepare.json").read_text())["counts"])


def test_prepare_keeps_late_clicks_and_the_whole_catalogue_and_train_is_as_it_was(late):
    rows = {cold: session_rows(dataset_folder(late[cold]), "tiny", "train") for cold in late}
    assert rows[True] == rows[False]
    trained = {item for _, clicks, target in rows[True] for item in (*clicks, target)}
    assert not trained & {*LATE, *NEVER}
    without, counts = counts_of(late[False]), counts_of(late[True])
    assert (without.cold_items, without.cold_targets) == (0, {}) and without.unseen_items == len(LATE)
    tokens = read_items(dataset_folder(late[True]) / "tiny.item")["item_id"].tolist()
    assert sorted(tokens) == sorted({*trained, *LATE, *NEVER}) and counts.catalogue == len(tokens)
    assert counts.cold_items == len(tokens) - len(trained) and counts.unseen_items == counts.dropped_clicks == 0
    for part in ("valid", "test"):
        targets = [target for *_, target in session_rows(dataset_folder(late[True]), "tiny", part)]
        assert counts.cold_targets[part] == sum(target in LATE for target in targets)
        assert counts.rows[part] == len(targets) >= without.rows[part]
    assert counts.cold_targets["test"] > 5


def test_files_made_without_are_refused_with_the_setting_and_its_value(late):
    with pytest.raises(UserError, match="cold_items was None, now True"):
        check_runnable(late[False])
        prepare(late[False] | {"cold_items": True})


def test_cold_items_are_numbered_behind_the_others_and_models_are_built_without_them(late):
    datasets = {cold: load_data(late[cold])[1] for cold in late}
    tokens = {cold: list(datasets[cold].field2id_token["item_id"]) for cold in late}
    count = len(tokens[False])
    assert tokens[True][:count] == tokens[False] and tokens[True][count:] == sorted([*LATE, *NEVER])
    assert trained_part(datasets[False]) is datasets[False]
    assert list(trained_part(datasets[True]).field2id_token["item_id"]) == tokens[False]


SAME = [
    ("SRGNN", {"llm4sbr": False}),
    ("SRGNN", {"llm4sbr": False, "items": "text"}),
    ("SRGNN", {"fusion": "gate+late", "item_init": "text"}),
    ("SRGNN", {"fusion": "gate+boost"}),
    ("SRGNN", {"fusion": "gate+late", "items": "text", "item_init": "pca"}),
    ("SRGNN", {"intent_source": "random", "control_of": "session_text"}),
    ("GCEGNN", {"llm4sbr": False, "items": "text"}),
    ("DHCN", {"llm4sbr": False}),
    ("DHCN", {"items": "text"}),
    ("GRU4Rec", {"items": "text", "llm4sbr": False}),
]


@pytest.mark.parametrize(("name", "own"), SAME)
def test_training_is_the_same_with_and_without_cold_items(late, name, own):
    """Parameters, losses and all that is kept: nothing of valid, test or the rest of the catalogue reaches training."""
    states = []
    for cold in (False, True):
        model, _, train_data, _ = built(late[cold], name, **own)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)  # Adam makes whole steps of a gradient's rounding
        torch.manual_seed(1)
        for rows in torch.split(torch.arange(len(train_data.dataset)), 25):
            loss = model.train().calculate_loss(train_data.dataset[rows])
            optimizer.zero_grad()
            (sum(loss) if isinstance(loss, tuple) else loss).backward()
            optimizer.step()
        states.append(model.state_dict())
    torch.testing.assert_close(*states, atol=1e-6, rtol=1e-5)  # products of more rows may round otherwise


def model_and_batch(settings, name, **own):
    model, _, train_data, test_data = built(settings, name, **own)
    model.eval()
    return model, train_data.dataset, test_data.dataset.inter_feat


@pytest.mark.parametrize("name", ["SRGNN", "TAGNN", "GCEGNN", "DHCN", "BSARec", "STAMP", "GRU4Rec", "SASRec", "CORE", "FEARec"])
@pytest.mark.parametrize("llm4sbr", [False, True])
def test_a_tower_ranks_cold_items_as_a_model_would_that_had_always_known_their_texts(late, name, llm4sbr):
    """The same projection over a catalogue in which nothing is cold: brute force, but for DHCN's and GCE-GNN's graphs, which agree too."""
    own = {"items": "text", "llm4sbr": llm4sbr}
    model, dataset, rows = model_and_batch(late[True], name, **own)
    scores = model.full_sort_predict(rows)
    assert scores.shape == (len(rows), dataset.item_num) and torch.isfinite(scores[:, 1:]).all()
    tower = model.backbone.item_module if llm4sbr else model.item_module
    vectors = np.loadtxt([line.split("\t")[1] for line in file_of(late[True], "tiny.itememb").read_text().splitlines()[1:]])
    ids = [line.split("\t")[0] for line in file_of(late[True], "tiny.itememb").read_text().splitlines()[1:]]
    of = dict(zip(ids, vectors))
    tokens = dataset.field2id_token["item_id"][1:]
    known = trained_part(dataset).item_num
    trained = np.array([of[token] for token in tokens[: known - 1]])
    centred = trained - trained.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(trained))
    kept = variances > 1e-10 * variances.max()
    inverse = directions[:, kept] / np.sqrt(variances[kept])
    all_of = np.array([of[token] for token in tokens])
    gram = (all_of - trained.mean(0)) @ inverse @ inverse.T @ (all_of - trained.mean(0)).T / kept.sum()
    places = tower.space()[1:].double().numpy()
    assert np.allclose(places @ places.T, gram, atol=1e-3)  # whatever the signs of the components
    table = tower.weight.detach()[1:].double().numpy()
    assert np.allclose(table, places @ tower.project.weight.detach().double().numpy().T, atol=1e-5)


@pytest.mark.parametrize("name", ["SRGNN", "GRU4Rec", "DHCN"])
@pytest.mark.parametrize("llm4sbr", [False, True])
def test_a_model_of_ids_reads_sessions_without_their_cold_clicks_and_never_ranks_a_cold_item(late, name, llm4sbr):
    own = {"llm4sbr": llm4sbr, "repeatable": False}
    model, dataset, rows = model_and_batch(late[True], name, **own)
    known = trained_part(dataset).item_num
    scores = model.full_sort_predict(rows)
    assert scores.shape == (len(rows), dataset.item_num) and (scores[:, known:] == -torch.inf).all()
    clicks = rows["item_id_list"].tolist()
    assert any(item >= known for row in clicks for item in row)
    for number, row in enumerate(clicks):
        left = [item for item in row if 0 < item < known]
        alone = {key: rows[key][number : number + 1] for key in ("session_id", "item_id_list", "item_length")}
        alone["item_id_list"] = torch.tensor([left + [0] * (len(row) - len(left))])
        alone["item_length"] = torch.tensor([max(len(left), 1)])
        expected = model.full_sort_predict(alone).flatten()
        torch.testing.assert_close(scores[number], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "own", [{"llm4sbr": False}, {"llm4sbr": False, "items": "text"}, {"items": "text", "fusion": "gate+late"}]
)
def test_buckets_add_up_to_the_test_and_a_model_of_ids_misses_every_cold_target(late, own):
    looked = []
    result = train(late[True] | {"model": "SRGNN"} | own, on_test=looked.append)
    (rows,) = looked
    counts = counts_of(late[True])
    trained = [
        item
        for _, clicks, target in session_rows(dataset_folder(late[True]), "tiny", "train-last")
        for item in (*clicks, target)
    ]
    targets = {name: target for name, _, target in session_rows(dataset_folder(late[True]), "tiny", "test")}
    assert rows.clicks.tolist() == [trained.count(targets[name]) for name in rows.session]
    found = {each.clicks: each for each in result.by_clicks}
    assert found["no click"].rows == counts.cold_targets["test"]
    assert sum(each.rows for each in result.by_clicks) == counts.rows["test"]
    for name, whole in result.test_result.items():
        mean = sum(each.rows * each.result[name] for each in result.by_clicks) / counts.rows["test"]
        assert mean == pytest.approx(whole, abs=1e-5)
        assert session_metric(rows.rank, name).mean() == pytest.approx(whole, abs=1e-5)
    hit = found["no click"].result["hit@20"]
    assert hit > 0 if "items" in own else hit == 0
    assert RunResult.from_json(json.loads(json.dumps(result.to_json()))).by_clicks == result.by_clicks
    said = summary(result)
    assert f"no click ({counts.cold_targets['test']} rows): Hit@5" in said
    assert ("items by their text" in said) is ("items" in own)


@pytest.mark.parametrize("own", [{"llm4sbr": False}, {"fusion": "gate+late"}, {"model": "DHCN", "llm4sbr": False}])
def test_new_items_are_ranked_by_a_checkpoint_as_if_the_files_had_held_them(late, own):
    """A tower trained on files without cold items, with `cold_items` when it recommends, against the same weights over files with them."""
    name, own = own.get("model", "SRGNN"), {"items": "text"} | own
    checkpoint = train(late[False] | model_defaults(name) | own).checkpoint
    recommender = Recommender.load(checkpoint, cold_items=True)
    model, dataset, rows = model_and_batch(late[True], name, **{key: own[key] for key in own if key != "model"})
    model.load_state_dict(load_model(checkpoint).model.state_dict())
    assert recommender.catalogue.tokens == list(dataset.field2id_token["item_id"])
    sessions = [row[:length] for row, length in zip(rows["item_id_list"].tolist(), rows["item_length"].tolist())]
    known = trained_part(dataset).item_num
    assert any(item >= known for row in sessions for item in row)
    scores, _ = recommender.scores(sessions)
    torch.testing.assert_close(scores[:, 1:], model.full_sort_predict(rows)[:, 1:].detach(), atol=1e-4, rtol=1e-4)
    table = recommender.recommend([[LATE[0], title(3)]], topn=1000)
    assert {*LATE, *NEVER} <= set(table["item"])
    assert table.set_index("item")["title"]["m35"] == title(35)
    alone = Recommender.load(checkpoint)
    assert not {*LATE, *NEVER} & set(alone.recommend([["m3"]], topn=1000)["item"])
    with pytest.raises(UserError, match="'m30' is neither an id nor a title"):
        alone.recommend([["m30"]])


def test_a_checkpoint_of_ids_cannot_rank_new_items_and_says_what_could(late, capsys):
    checkpoint = train(late[False] | {"model": "SRGNN", "llm4sbr": False}).checkpoint
    with pytest.raises(UserError, match=r"knows the items of its training alone.*train with --items=text"):
        Recommender.load(checkpoint, cold_items=True)
    assert main(["recommend", f"--checkpoint={checkpoint}", "--items=m3", "--cold_items=true"]) == 2
    assert "knows the items of its training alone" in capsys.readouterr().err
    with pytest.raises(UserError, match="cold_items='yes'"):
        Recommender.load(checkpoint, cold_items="yes")


def test_the_command_ranks_new_items(late, capsys):
    checkpoint = train(late[False] | {"model": "SRGNN", "llm4sbr": False, "items": "text"}).checkpoint
    assert main(["recommend", f"--checkpoint={checkpoint}", "--items=m3; m31", "--topn=1000", "--cold_items=true"]) == 0
    assert title(35) in capsys.readouterr().out


def test_models_of_recbole_that_cannot_be_kept_from_cold_items_are_refused(late):
    with pytest.raises(UserError, match="HGN would rank items that it was never trained on, and cannot be wrapped"):
        check_runnable(late[True] | {"model": "HGN", "llm4sbr": False})
    check_runnable(late[True] | {"model": "recbole.model.sequential_recommender:GRU4Rec", "llm4sbr": False})
    check_runnable(late[True] | {"model": "LLMSeqSim", "llm4sbr": False})


def test_texts_alone_rank_cold_items_too(late):
    model, dataset, rows = model_and_batch(late[True], "LLMSeqSim", llm4sbr=False)
    scores = model.full_sort_predict(rows)
    assert scores.shape[1] == dataset.item_num and torch.isfinite(scores).all()
    assert (scores[:, trained_part(dataset).item_num :].abs().sum(0) > 0).all()


def test_intents_stand_for_items_of_training_alone(late):
    found = {}
    for cold in late:
        lines = [line.split("\t") for line in file_of(late[cold], "tiny.sessemb").read_text().splitlines()]
        columns = [number for number, name in enumerate(lines[0]) if "_items" in name or "_sims" in name]
        found[cold] = {line[0]: [line[number] for number in columns] for line in lines[1:]}
    named = {item for cells in found[True].values() for items in cells[::2] for item in items.split(" ")}
    assert named and not named & {*LATE, *NEVER}
    train_rows = [name for name, *_ in session_rows(dataset_folder(late[True]), "tiny", "train-last")]
    sims = [[[float(each) for each in " ".join(found[cold][name][1::2]).split()] for name in train_rows] for cold in found]
    np.testing.assert_allclose(*sims, atol=1.1e-4)  # items that are almost as near may stand in another order


def test_in_an_ensemble_a_model_of_ids_says_of_cold_items_what_the_tower_says(late):
    runs = [train(late[True] | {"model": "SRGNN", "llm4sbr": False, "items": each}) for each in ("id", "text")]
    loaded = load_ensemble([each.checkpoint for each in runs], [0.25, 0.75])
    rows = loaded.test_data.dataset.inter_feat
    plain, tower = loaded.model.log_probabilities(rows)
    known = trained_part(loaded.dataset).item_num
    assert torch.equal(plain[:, known:], tower[:, known:])
    scores = loaded.model.full_sort_predict(rows)
    torch.testing.assert_close(scores[:, known:], tower[:, known:])
    torch.testing.assert_close(scores[:, 1:known], 0.25 * plain[:, 1:known] + 0.75 * tower[:, 1:known], atol=1e-5, rtol=1e-5)
    together = run_ensemble([each.checkpoint for each in runs], "valid")
    assert {each.clicks for each in together.by_clicks} >= {"no click"}
    assert np.isfinite([each.weight for each in together.members]).all()


def test_items_without_a_text_are_left_out_when_they_are_new(late, tmp_path):
    checkpoint = train(late[False] | {"model": "SRGNN", "llm4sbr": False, "items": "text"}).checkpoint
    raw = tmp_path / "tiny"
    raw.mkdir()
    source = Path(late[False]["data_path"]) / "tiny"
    (raw / "tiny.inter").write_text((source / "tiny.inter").read_text())
    (raw / "tiny.item").write_text((source / "tiny.item").read_text() + "m99\t\t1999\n")
    tokens = Recommender.load(checkpoint, cold_items=True, data_path=str(tmp_path)).catalogue.tokens
    assert "m35" in tokens and "m99" not in tokens


def test_a_catalogue_with_an_id_that_no_file_can_hold_is_refused(late, tmp_path):
    raw = tmp_path / "tiny"
    raw.mkdir()
    source = Path(late[False]["data_path"]) / "tiny"
    (raw / "tiny.inter").write_text((source / "tiny.inter").read_text())
    (raw / "tiny.item").write_text((source / "tiny.item").read_text() + "NA\tnone\t1999\n")
    own = {"data_path": str(tmp_path), "atomic_path": str(tmp_path / "atomic")}
    prepare(late[False] | own)
    with pytest.raises(UserError, match="item_id='NA' is no id for RecBole"):
        prepare(late[True] | own | {"rebuild": True})


def test_a_grid_shows_cold_targets_apart(late):
    from recbole_llm4sbr.experiment.compare import compare
    from recbole_llm4sbr.report.page import report

    given = {key: late[True][key] for key in late[True] if key not in ("model", "dataset", "config_files")}
    variants = ["plain", "text-tower"]
    results = compare({"Cold": variants}, ["SRGNN"], ["tiny"], 1, given, "out", workers=0)
    assert all(each.ok for each in results), [each.reason for each in results]
    counts = counts_of(late[True])
    report(["out"], "md", None)
    text = Path("md/tiny.md").read_text()
    test, cold = counts.rows["test"], counts.cold_targets["test"]
    assert f"targets with training clicks ({test - cold}) | targets without ({cold})" in text


def test_encoded_items_are_the_whole_catalogue(late):
    assert encode_items(late[True]).counts["items"] == counts_of(late[True]).catalogue
