"""Evaluation: RecBole's metrics of hand-worked scores, equal scores, targets that are no candidates, lists that end early."""

from collections import Counter
from math import log, log2

import numpy as np
import pytest
import torch
from conftest import session_rows
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_candidates import log_of
from test_contract import built

from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.model.candidates import best_candidates, target_ranks
from recbole_llm4sbr.training.ensemble import Ensemble
from recbole_llm4sbr.training.evaluation import SessionCollector, SessionEvaluator
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import train
from recbole_llm4sbr.training.trainer import session_trainer

METRICS = schema()["metrics"].each_of
NO = -torch.inf


class Config(dict):
    """RecBole's: None for what is not set."""

    def __getitem__(self, name):
        return self.get(name)


def measured(scores, targets, topk, clicks=None):
    """All metrics of scores [B, n_items], two rows at a time."""
    config = Config(
        metrics=METRICS, topk=topk, device="cpu", eval_args={"mode": "full"}, USER_ID_FIELD="session", metric_decimal_place=6
    )
    collector, evaluator = SessionCollector(config), SessionEvaluator(config)
    collector.data_struct.set("data.num_items", scores.size(1) - 1)
    collector.data_struct.set("data.count_items", clicks or dict.fromkeys(range(1, scores.size(1)), 1))
    for some, target in zip(scores.split(2), torch.tensor(targets).split(2)):
        rows = torch.arange(len(target))
        collector.eval_batch_collect(some, {"session": rows}, rows, target)
    return evaluator.evaluate(collector.get_data_struct()), collector.ranks[1].tolist()


def test_every_metric_of_a_hand_worked_world():
    scores = torch.tensor(
        [
            [NO, 4, 3, 2, 1, 0],  # the target is 1
            [NO, 1, 2, 2, 0, -1],  # 3, which has the score of 2
            [NO, 1, NO, 3, 2, 0],  # 2, which is no candidate
            [NO, NO, NO, NO, 5, NO],  # 4, the only candidate
        ]
    )
    found, ranks = measured(scores, [1, 3, 2, 4], [2, 5], clicks={1: 10, 2: 4, 3: 6, 4: 2, 5: 1})
    assert ranks == [1, 2, 0, 1]
    gain = (2 + 1 / log2(3)) / 4
    expected = {"gauc": (1 + (5 - 1.5) / 4 + 0) / 3}  # the last row has nothing to be compared with
    expected |= {"hit@2": 3 / 4, "mrr@2": 2.5 / 4, "ndcg@2": gain, "map@2": 2.5 / 4, "recall@2": 3 / 4, "precision@2": 3 / 8}
    expected |= {"hit@5": 3 / 4, "mrr@5": 2.5 / 4, "ndcg@5": gain, "map@5": 2.5 / 4, "recall@5": 3 / 4, "precision@5": 3 / 20}
    # recommended: two at most 1 2, 2 3, 3 4, 4; five at most 1 2 3 4 5, 1 2 3 4 5, 1 3 4 5, 4
    expected |= {"itemcoverage@2": 4 / 5, "itemcoverage@5": 1}
    expected |= {"giniindex@2": (-2 * 1 + 2 * 2 + 4 * 2) / (5 * 7), "giniindex@5": (-4 * 2 - 2 * 3 + 2 * 3 + 4 * 4) / (5 * 15)}
    expected |= {"averagepopularity@2": (7 + 5 + 4 + 2) / 4, "averagepopularity@5": (23 / 5 + 23 / 5 + 19 / 4 + 2) / 4}
    expected |= {"tailpercentage@2": 0, "tailpercentage@5": (1 / 5 + 1 / 5 + 1 / 4 + 0) / 4}
    expected["shannonentropy@2"] = (
        1 / 7 * log(7) + 3 * 2 / 7 * log(7 / 2)
    ) / 4  # as RecBole has it: over the items recommended
    expected["shannonentropy@5"] = sum(count / 15 * log(15 / count) for count in (3, 2, 3, 4, 3)) / 5
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_target_outside_the_candidates_is_never_hit_and_its_auc_is_0():
    scores = torch.tensor([[NO, 3, NO, 1, NO]])
    found, ranks = measured(scores, [2], [1, 4])
    assert ranks == [0]
    assert all(
        found[f"{metric}@{cutoff}"] == 0 for metric in ("hit", "mrr", "ndcg", "map", "recall", "precision") for cutoff in (1, 4)
    )
    assert found["gauc"] == 0


@pytest.mark.parametrize("scores", [[NO, 1, NO], [NO, NO, NO]], ids=["one candidate", "none"])
def test_every_metric_of_one_row_with_at_most_one_candidate_is_a_number_from_0_on(scores):
    found, _ = measured(torch.tensor([scores]), [1], [1, 2])
    assert len(found) == 2 * len(METRICS) - 1  # GAUC has no cut-off
    assert all(np.isfinite(value) and value >= 0 for value in found.values()), found


def test_equal_scores_hit_nothing_before_the_last_place_and_recommend_no_first_numbers():
    found, ranks = measured(torch.tensor([[NO, *[0.5] * 50]]).expand(6, -1).clone(), [1, 2, 3, 25, 49, 50], [10, 49, 50])
    assert ranks == [50] * 6
    assert [found[f"hit@{cutoff}"] for cutoff in (10, 49, 50)] == [0, 0, 1]
    assert found["gauc"] == 0.5  # chance, as the area under a curve is defined
    lists = best_candidates(torch.tensor([[NO, *[0.5] * 50]]).expand(6, -1), 10)[1]
    assert (lists == lists[0]).all() and not set(lists[0].tolist()) <= set(range(1, 26))


near = np.nextafter(np.float32(1), np.float32(2)).item()
floats = st.sampled_from([0.0, -0.0, 1.0, near, -1.0, NO, torch.inf, torch.nan])


@given(st.lists(floats, min_size=1, max_size=8), st.data())
@hypothesis_settings(deadline=None, max_examples=200)
def test_a_rank_is_one_and_the_number_of_candidates_that_do_not_score_less(scores, data):
    target = data.draw(st.integers(1, len(scores)))
    own = scores[target - 1]
    others = [score for item, score in enumerate(scores, 1) if item != target and score != NO]
    expected = 1 + sum(not score < own for score in others) if own > NO else 0
    assert target_ranks(torch.tensor([[NO, *scores]]), torch.tensor([target])).tolist() == [expected]


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_best_candidates_are_a_sorts_and_depend_on_no_other_row_and_no_length(seed, kinds):
    torch.manual_seed(seed)
    scores = torch.randint(kinds, (5, 20)).float()
    scores[:, 0], scores[torch.rand(5, 20) < 0.2] = NO, NO
    best, items = best_candidates(scores, 19)
    assert torch.equal(best, scores.sort(dim=1, descending=True).values[:, :19])
    for row, (values, chosen) in enumerate(zip(best, items)):
        kept = chosen[values > NO]
        assert len(set(kept.tolist())) == len(kept) == (scores[row] > NO).sum()
        assert torch.equal(scores[row, kept], values[values > NO])
        assert (chosen[values == NO] == 0).all()
        assert torch.equal(best_candidates(scores[row : row + 1], 7)[1][0], chosen[:7])


@pytest.mark.parametrize("name", ["SRGNN", "recbole.model.sequential_recommender:GRU4Rec", "LLMSeqSim", "ensemble"])
def test_no_model_is_rewarded_for_scores_that_are_all_equal(tiny, name):
    settings = tiny | {"topk": [10, 29], "valid_metric": "Hit@10", "metrics": ["Hit", "MRR", "GAUC"]}
    model, config, train_data, test_data = built(settings, "SRGNN" if name == "ensemble" else name, llm4sbr=False)
    model.full_sort_predict = lambda rows: torch.ones(len(rows), 31)
    model = Ensemble(config, train_data.dataset, [model, model]) if name == "ensemble" else model
    trainer = session_trainer(config, model)
    found = trainer.evaluate(test_data, load_best_model=False)
    assert found == {"hit@10": 0, "hit@29": 0, "mrr@10": 0, "mrr@29": 0, "gauc": 0.5}
    sessions, ranks = trainer.ranks()
    assert len(sessions) == len(test_data.dataset) and not ranks.any()


def test_a_target_in_its_own_session_is_no_hit_where_topk_is_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = log_of(tmp_path, (50, 58)) | {"repeatable": False, "show_progress": False}  # one row each of valid and test
    settings |= {"metrics": METRICS, "topk": [5, 12], "valid_metric": "MRR@12", "metric_decimal_place": 6}
    prepare(settings)
    rows = []
    result = train(settings, on_test=rows.append)
    ranks = rows[0].rank
    assert (ranks == 0).tolist() == (rows[0].session == "s58.2").tolist() and len(ranks) == 6
    for part, count in (("best_valid_result", 6), ("test_result", 6)):
        found = getattr(result, part)
        assert found["hit@12"] == pytest.approx((count - 1) / count, abs=1e-6)
        assert all(np.isfinite(value) and value >= 0 for value in found.values())
    found = result.test_result
    assert found["mrr@12"] == pytest.approx(sum(1 / rank for rank in ranks if rank) / 6, abs=1e-6)
    loaded = load_model(result.checkpoint)
    areas = []
    for batch, _, _, targets in loaded.test_data:
        scores = loaded.model.full_sort_predict(batch)
        for row, target in enumerate(targets.tolist()):
            others = [scores[row, item] for item in range(1, 13) if item not in [*batch["item_id_list"][row], target]]
            areas.append(float(np.mean([scores[row, target] > other for other in others])))
    assert found["gauc"] == pytest.approx(np.mean(areas), abs=1e-6) and 0 in areas


@pytest.mark.parametrize("targets", ["last", "all"])
def test_padding_is_no_item_and_an_items_popularity_is_its_clicks_in_training(settings_for, targets):
    settings = settings_for(train_targets=targets, llm4sbr=False)
    prepare(settings)
    _, config, train_data, _ = built(settings, "SRGNN", metrics=METRICS)
    collector = SessionCollector(config)
    collector.data_collect(train_data)
    struct = collector.get_data_struct()
    sessions = {}
    for row, prefix, target in session_rows(dataset_folder(settings), "tiny", "train"):  # prefixes of 1, 2, 3, ... clicks
        sessions.setdefault(row.rpartition(".")[0], prefix[:1]).append(target)
    tokens = train_data.dataset.field2id_token["item_id"]
    clicks = {tokens[item]: count for item, count in struct.get("data.count_items").items()}
    assert clicks == Counter(click for session in sessions.values() for click in session)
    assert struct.get("data.num_items") == len(tokens) - 1 == 30
