"""Statistics of a comparison, against hand numbers and scipy on hand-made data."""

import math

import numpy as np
import pytest
from scipy import stats

from recbole_llm4sbr.report.statistics import holm, improvement, paired_p, session_metric


def test_metrics_of_single_sessions_by_hand():
    rank = np.array([1, 3, 20, 21, 0], np.int32)
    assert session_metric(rank, "Hit@20").tolist() == [1, 1, 1, 0, 0]
    assert session_metric(rank, "mrr@5").tolist() == [1, pytest.approx(1 / 3), 0, 0, 0]
    assert session_metric(rank, "NDCG@20").tolist() == pytest.approx([1, 0.5, 1 / math.log2(21), 0, 0])
    with pytest.raises(ValueError, match="Recall"):
        session_metric(rank, "Recall@5")


def test_p_of_hits_is_the_sign_tests_up_to_its_normal_approximation():
    a, b = np.zeros(400), np.zeros(400)
    a[:40], b[20:100] = 1, 1  # 20 sessions lost, 60 won
    exact = stats.binomtest(20, 80).pvalue
    z = (60 - 20) / math.sqrt(80)
    assert paired_p(a, b) == pytest.approx(2 * stats.norm.sf(z), rel=1e-6)
    assert abs(math.log10(paired_p(a, b)) - math.log10(exact)) < 0.5


def test_no_difference_is_no_effect():
    a = np.array([0.0, 1.0, 0.5])
    assert paired_p(a, a) == 1
    assert improvement(a, a) == (0, 0, 0)
    assert math.isnan(improvement(np.zeros(3), a)[0])


def test_the_interval_holds_the_true_improvement_and_shrinks_with_the_sessions():
    rng = np.random.default_rng(5)
    widths = []
    for size in (300, 30_000):
        a = (rng.random(size) < 0.2).astype(float)
        b = (rng.random(size) < 0.3).astype(float)
        percent, low, high = improvement(a, b)
        assert percent == pytest.approx(100 * (b.mean() / a.mean() - 1))
        assert low < 50 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_shuffled_labels_are_seldom_significant():
    """Two models of equal quality: which of the two a result belongs to is drawn by lot in every session."""
    rng = np.random.default_rng(11)
    found = 0
    for _ in range(100):
        ranks = rng.integers(0, 60, (2, 500)).astype(np.int32)
        ranks[ranks > 20] = 0
        a, b = session_metric(ranks, "MRR@20")
        swap = rng.random(500) < 0.5
        found += paired_p(np.where(swap, b, a), np.where(swap, a, b)) < 0.05
    assert found <= 6


def test_a_real_difference_is_found():
    rng = np.random.default_rng(3)
    a = (rng.random(3000) < 0.10).astype(float)
    b = np.maximum(a, rng.random(3000) < 0.05)
    assert paired_p(a, b) < 1e-6
