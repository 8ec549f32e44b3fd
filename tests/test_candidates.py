"""`repeatable: false`: a session's items are no candidates, in losses, scores, evaluation and localization; against loops."""

import numpy as np
import pytest
import torch
from conftest import file_of, session_rows
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_contract import ADAPTED, built

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.checks import PREPARED, settled
from recbole_llm4sbr.data.features import read_vectors
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.localization import ItemIndex
from recbole_llm4sbr.model import AdaptedRecommender, SessionRecommender
from recbole_llm4sbr.model.backbones import BACKBONES
from recbole_llm4sbr.model.candidates import cross_entropy, exclude_clicked
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import train
from recbole_llm4sbr.training.trainer import session_trainer


def of_cross_entropy(model, batch):
    """The model's loss without what it adds to cross-entropy."""
    loss = model.calculate_loss(batch)
    return loss[0] if isinstance(loss, tuple) else loss


def batch_of(dataset):
    """Twelve rows; the targets of the first two are put into their sessions."""
    batch = dataset[:12]
    clicks, targets = batch["item_id_list"].clone(), batch["item_id"]
    clicks[0, 0], clicks[1, 1] = targets[0], targets[1]
    batch.interaction["item_id_list"] = clicks
    return batch


def by_loops(model, batch):
    """Mean negative log-probability of the targets among the candidates: no padding, no item of the session but the target."""
    embeddings = model.encode(batch)
    scores = model.score(model.fuse(embeddings, batch), embeddings)
    total = 0
    for row, (seq, target) in enumerate(zip(batch["item_id_list"].tolist(), batch["item_id"].tolist())):
        left = [item for item in range(1, scores.size(1)) if item not in seq or item == target]
        total = total - scores[row, left].log_softmax(0)[left.index(target)]
    return total / len(scores)


@pytest.mark.parametrize("llm4sbr", [True, False])
@pytest.mark.parametrize("name", [*BACKBONES, *ADAPTED])
def test_losses_gradients_and_scores_are_those_over_the_items_outside_the_session(tiny, name, llm4sbr):
    model, _, train_data, _ = built(tiny | {"repeatable": False, "train_targets": "last"}, name, llm4sbr=llm4sbr)
    assert isinstance(model, SessionRecommender)  # RecBole's models too: their own loss would rank the session's items
    model.eval()  # no dropout
    batch = batch_of(train_data.dataset)
    loss, expected = of_cross_entropy(model, batch), by_loops(model, batch)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    table = model.item_table
    ours, theirs = (torch.autograd.grad(each, table)[0] for each in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    scores = model.full_sort_predict(batch)
    for row, seq in enumerate(batch["item_id_list"].tolist()):
        assert [item for item in range(scores.size(1)) if scores[row, item] == -torch.inf] == sorted({0, *seq})
    model.repeatable = True
    left = scores > -torch.inf
    torch.testing.assert_close(scores[left], model.full_sort_predict(batch)[left])
    with torch.no_grad():
        embeddings = model.encode(batch)
        everything = model.score(model.fuse(embeddings, batch), embeddings)
    plain = torch.nn.functional.cross_entropy(everything, batch["item_id"])
    torch.testing.assert_close(of_cross_entropy(model, batch), plain, atol=1e-6, rtol=1e-6)


def test_label_smoothing_is_torchs_over_all_items_and_spreads_over_the_candidates_alone():
    torch.manual_seed(1)
    scores, target = torch.randn(5, 9, requires_grad=True), torch.tensor([3, 4, 5, 6, 7])
    expected = torch.nn.functional.cross_entropy(scores, target, label_smoothing=0.2)
    torch.testing.assert_close(cross_entropy(scores, target, 0.2), expected)
    seq = torch.tensor([[1, 2], [1, 0], [8, 8], [2, 0], [7, 1]])  # the last target is in its session
    masked = exclude_clicked(scores.clone(), seq, target)
    loss = cross_entropy(masked, target, 0.2)
    by_hand = []
    for row in range(5):
        left = [item for item in range(1, 9) if item not in seq[row].tolist() or item == target[row]]
        logs = scores[row, left].log_softmax(0)
        by_hand.append(-0.8 * logs[left.index(int(target[row]))] - 0.2 * logs.mean())
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    assert torch.isfinite(torch.autograd.grad(loss, scores)[0]).all()


@pytest.mark.parametrize("name", ["recbole.model.sequential_recommender:GRU4Rec", "SRGNN", "LLMInfer", "LLMSeqSim"])
def test_no_model_is_evaluated_with_the_sessions_items_as_candidates(tiny, name):
    infer(tiny | {"repeatable": False, "rebuild": True})
    settings = tiny | {"repeatable": False, "llm4sbr": False, "topk": [5], "valid_metric": "Hit@5"}
    model, config, _, test_data = built(settings, name)
    if ":" in name:
        assert not isinstance(model, SessionRecommender)  # named by its module: RecBole's own
    model.repeatable = True  # so that the loops below see all scores
    trainer = session_trainer(config, model)
    trainer.evaluate(test_data, load_best_model=False)
    found = dict(zip(*(each.tolist() for each in trainer.ranks())))
    model.eval()
    rows = test_data.dataset.inter_feat
    targets = dict(zip(rows["session_id"].tolist(), rows["item_id"].tolist()))
    for batch, *_ in test_data:
        scores = model.full_sort_predict(batch).view(len(batch), -1)
        for row, session in enumerate(batch["session_id"].tolist()):
            clicked, target = set(batch["item_id_list"][row].tolist()), targets[session]
            left = [item for item in range(1, scores.size(1)) if item not in clicked]
            rank = 0 if target in clicked else sum(scores[row, item] >= scores[row, target] for item in left)
            assert found[session] == (rank if rank <= 5 else 0)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 40))
@hypothesis_settings(deadline=None, max_examples=60)
def test_localization_outside_the_session_equals_brute_force_with_ties(seed, k, number):
    rng = np.random.default_rng(seed)
    corners = unit(rng.choice([-1.0, 1.0], (number, 4)))  # many equal similarities
    corners[rng.integers(number)] = 0  # an item without a text
    if not corners.any():
        return
    answers = unit(rng.choice([-1.0, 1.0], (4, 4)))
    sessions = [rng.integers(0, number, rng.integers(1, number + 3)) for _ in range(9)]
    answer = rng.integers(0, 4, 9)
    starts = np.cumsum([0, *map(len, sessions)])
    found, sims = ItemIndex(corners).nearest_outside(answers, answer, np.concatenate(sessions), starts, k)
    known = [item for item in range(number) if corners[item].any()]
    for row, session in enumerate(sessions):
        similar = {item: round(float(answers[answer[row]] @ corners[item]), 6) for item in known if item not in session}
        expected = sorted(similar, key=lambda item: (-similar[item], item))[: min(k, len(known))]
        width = found.shape[1]
        assert width == min(k, len(known))
        missing = width - len(expected)
        assert found[row].tolist() == expected + ([expected[-1]] if expected else [-1]) * missing
        np.testing.assert_allclose(sims[row], [similar[item] for item in expected] + [0] * missing, atol=2e-6)


@pytest.mark.parametrize("source", ["llm", "session_text"])
def test_the_intents_in_the_files_hold_no_item_of_their_session(settings_for, source):
    settings = settings_for(intent_source=source, repeatable=False)
    prepare(settings)
    infer(settings)
    rows = {
        session: set(prefix) for session, prefix, _ in session_rows(dataset_folder(settings), "tiny", "train", "valid", "test")
    }
    vectors = dict(zip(*read_vectors(dataset_folder(settings) / "tiny.itememb")))
    head, *lines = file_of(settings, "tiny.sessemb").read_text().splitlines()
    columns = [cell.partition(":")[0] for cell in head.split("\t")]
    filled = 0
    for line in lines:
        cells = dict(zip(columns, line.split("\t")))
        for view in ("long", "short"):
            items = cells[f"{view}_items"].split()
            assert not set(items) & rows[cells["sid"]]
            assert len(set(items)) == len(items)
            filled += bool(items)
            if source == "session_text" and items:  # the nearest of all items outside, by the definition
                recent = list(
                    next(
                        p
                        for s, p, _ in session_rows(dataset_folder(settings), "tiny", "train", "valid", "test")
                        if s == cells["sid"]
                    )
                )
                mean = np.sum([vectors[item] for item in (recent[-3:] if view == "short" else recent)], 0)
                mean /= np.linalg.norm(mean)
                outside = {item: float(vectors[item] @ mean) for item in vectors if item not in rows[cells["sid"]]}
                best = sorted(outside.values(), reverse=True)[: len(items)]
                np.testing.assert_allclose([float(each) for each in cells[f"{view}_sims"].split()], best, atol=1e-4)
        if filled > 40 and source == "session_text":
            break
    assert filled > 40


def log_of(tmp_path, repeats):
    """A raw dataset of 60 sessions; in those whose numbers are in `repeats` the last click repeats the first."""
    folder = tmp_path / "raw" / "mine"
    folder.mkdir(parents=True)
    lines = ["session_id:token\titem_id:token\ttimestamp:float"]
    for session in range(60):
        items = [(session + step) % 12 for step in (0, 1, 2)]
        items[2] = items[0] if session in repeats else items[2]
        lines += [f"s{session}\ti{item}\t{session * 1000 + place}" for place, item in enumerate(items)]
    (folder / "mine.inter").write_text("\n".join(lines) + "\n")
    overrides = {"data_path": str(folder.parent), "atomic_path": str(tmp_path / "atomic"), "session_rule": "column", "llm4sbr": False,
                 "user_column": None, "min_item_count": 1, "gpu_id": "", "epochs": 1, "embedding_size": 8, "topk": [5],
                 "valid_metric": "Hit@5", "MAX_ITEM_LIST_LENGTH": 5}  # fmt: skip
    return load_settings(dataset="mine", overrides=overrides)


@pytest.mark.parametrize(("repeats", "expected"), [((), False), ((50, 51, 55, 57, 59), False), ((3,), True), ((3, 58), True)])
def test_auto_reads_the_training_part_alone(tmp_path, monkeypatch, repeats, expected):
    monkeypatch.chdir(tmp_path)
    settings = log_of(tmp_path, repeats)
    manifest = prepare(settings)
    assert settled(settings, manifest)["repeatable"] is expected
    counts = PreparedCounts.from_json(manifest.counts)
    bounds = {"train": range(48), "valid": range(48, 54), "test": range(54, 60)}
    assert counts.repeated == {part: sum(each in rows for each in repeats) for part, rows in bounds.items()}
    assert settled(settings | {"repeatable": not expected}, manifest)["repeatable"] is not expected  # what is given stands


def test_one_repeating_target_in_a_thousand_makes_auto_true_and_fewer_do_not():
    def counts(repeated):
        return PreparedCounts(
            1, 1, 1, 1.0, {"train": 2000, "valid": 9, "test": 9}, repeated={"train": repeated, "valid": 9, "test": 9}
        )

    assert [counts(repeated).repeatable for repeated in (0, 1, 2, 3)] == [False, False, True, True]


def test_a_click_that_the_log_holds_twice_does_not_decide_auto_and_is_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    settings = log_of(tmp_path, ()) | {"rebuild": True}
    path = tmp_path / "raw" / "mine" / "mine.inter"
    lines = path.read_text().splitlines()
    last = [line for line in lines if line.endswith("2")]  # of each session, at its second 2
    found = {}
    for name, further in {"plain": [], "twice": last, "again": [f"{line[:-1]}3" for line in last]}.items():
        path.write_text("\n".join([*lines, *further]) + "\n")
        found[name] = PreparedCounts.from_json(prepare(settings).counts)
    assert {name: counts.repeatable for name, counts in found.items()} == {"plain": False, "twice": False, "again": True}
    assert {name: counts.duplicates for name, counts in found.items()} == {"plain": 0, "twice": 60, "again": 0}
    assert found["twice"].repeated == found["again"].repeated == {"train": 48, "valid": 6, "test": 6}
    said = [line for line in caplog.messages if "60 clicks are duplicates" in line]
    assert len(said) == 1


def test_targets_that_occur_in_their_session_are_counted_said_and_never_an_infinite_loss(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    settings = log_of(tmp_path, (3, 10, 50, 58)) | {"repeatable": False, "show_progress": False}
    prepare(settings)
    assert "up to 2 rows of valid and test" in caplog.text
    result = train(settings)
    assert all(np.isfinite(result.train_losses))
    rows = []
    train(settings | {"topk": [11]} | {"valid_metric": "Hit@11"}, on_test=rows.append)  # more than there are candidates
    assert rows[0].rank[rows[0].session == "s58.2"].item() == 0
    assert (rows[0].rank[rows[0].session != "s58.2"] > 0).all()
    assert load_model(result.checkpoint).model.repeatable is False


def test_a_checkpoint_remembers_and_auto_stands_for_a_value_in_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = log_of(tmp_path, ())
    prepare(settings)
    result = train(settings)
    assert result.settings["repeatable"] is False
    loaded = load_model(result.checkpoint)
    batch = next(iter(loaded.test_data))[0]
    scores = loaded.model.full_sort_predict(batch)
    assert (scores.gather(1, batch["item_id_list"]) == -torch.inf).all()
    assert Manifest.read(dataset_folder(settings) / PREPARED).counts["repeated"] == {"train": 0, "valid": 0, "test": 0}


def test_a_plain_model_of_recbole_is_adapted_but_where_its_module_is_named_or_it_is_trained_against_sampled_items(tiny):
    for repeatable in (False, True):
        assert isinstance(built(tiny, "GRU4Rec", llm4sbr=False, repeatable=repeatable)[0], AdaptedRecommender)
    assert type(built(tiny, "recbole.model.sequential_recommender:GRU4Rec", llm4sbr=False)[0]).__name__ == "GRU4Rec"
    sampled = {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
    assert type(built(tiny, "GRU4Rec", llm4sbr=False, repeatable=False, **sampled)[0]).__name__ == "GRU4Rec"


def test_a_class_of_ones_own_is_masked_too_when_it_is_plain(tiny, tmp_path, monkeypatch):
    (tmp_path / "models_without_a_mask.py").write_text(
        "from recbole.model.sequential_recommender import GRU4Rec\nclass Mine(GRU4Rec):\n    pass\n"
        "class Bare(GRU4Rec):\n    def __init__(self, config, dataset):\n        super().__init__(config, dataset)\n"
        "        self.table = self.item_embedding\n        del self.item_embedding\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"llm4sbr": False, "repeatable": False, "dropout_prob": 0.3, "num_layers": 1}
    assert isinstance(built(tiny, "models_without_a_mask:Mine", **own)[0], AdaptedRecommender)
    assert type(built(tiny, "models_without_a_mask:Bare", **own)[0]).__name__ == "Bare"
    assert (
        type(built(tiny, "models_without_a_mask:Mine", **own | {"repeatable": True})[0]).__name__ == "Mine"
    )  # its loss may be its own


def test_a_class_with_scores_or_a_loss_of_its_own_is_not_replaced(tiny, tmp_path, monkeypatch, caplog):
    (tmp_path / "models_of_their_own.py").write_text(
        "import torch\nfrom recbole.model.sequential_recommender import GRU4Rec\n"
        "class Biased(GRU4Rec):\n    def full_sort_predict(self, batch):\n"
        "        return super().full_sort_predict(batch) + torch.arange(self.n_items) / self.n_items\n"
        "class Penal(GRU4Rec):\n    def calculate_loss(self, batch):\n"
        "        return super().calculate_loss(batch) + 1000 * self.item_embedding.weight.pow(2).sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"repeatable": False, "dropout_prob": 0.3, "num_layers": 1}
    for name, ways in (("Biased", "scores and loss"), ("Penal", "loss")):
        model, *_ = built(tiny, f"models_of_their_own:{name}", **own, llm4sbr=False)
        assert type(model).__name__ == name
        assert f"{name} is trained with the session's items as candidates" in caplog.text
        assert f"its {ways} are not the adapter's" in caplog.text
    with pytest.raises(UserError, match=r"Biased cannot be wrapped: its full_sort_predict is not the product"):
        built(tiny, "models_of_their_own:Biased", **own, llm4sbr=True)
    built(tiny, "models_of_their_own:Penal", **own, llm4sbr=True)
    assert "Penal is trained by cross-entropy over the catalogue here, and not by its own calculate_loss" in caplog.text


def test_a_grid_and_a_search_under_auto_are_those_under_what_it_stands_for(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {**given, "atomic_path": str(tmp_path / "atomic"), "repeatable": "auto", "epochs": 1}
    manifest = prepare(load_settings(dataset="tiny", overrides=given))
    stands_for = PreparedCounts.from_json(manifest.counts).repeatable
    grids = [
        compare({"T": ["plain", "llm4sbr"]}, ["SRGNN"], ["tiny"], 1, given | {"repeatable": each}, "out", 0)
        for each in ("auto", stands_for)
    ]
    assert [row.key for row in grids[0]] == [row.key for row in grids[1]]
    assert {row.result.settings["repeatable"] for row in grids[0]} == {stands_for}
    assert len((tmp_path / "out" / "cells.jsonl").read_text().splitlines()) == 2  # nothing ran twice


@pytest.mark.slow
def test_several_processes_train_and_test_without_the_sessions_items(tiny):
    prepare(tiny | {"repeatable": False})
    two = train(tiny | {"repeatable": False, "llm4sbr": False, "nproc": 2, "epochs": 1})
    assert two.settings["repeatable"] is False
    loaded = load_model(two.checkpoint)
    batch = next(iter(loaded.test_data))[0]
    assert (loaded.model.full_sort_predict(batch).gather(1, batch["item_id_list"]) == -torch.inf).all()
