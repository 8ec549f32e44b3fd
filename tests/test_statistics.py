"""Statistics of a comparison, against hand numbers and scipy on hand-made data."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_llm4sbr.base.metrics import session_metric
from recbole_llm4sbr.report.block import Block, Line, main_lines
from recbole_llm4sbr.report.comparisons import Comparison
from recbole_llm4sbr.report.statistics import holm, improvement, paired_p, verdict


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


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_p_of_few_sessions_is_that_of_all_signs(values):
    differs = np.array([value for value in values if value], float)
    p = paired_p(np.zeros(len(values)), np.array(values, float))
    if not len(differs):
        assert p == 1
        return
    ranks = stats.rankdata(abs(differs))
    centre = ranks.sum() / 2
    sums = [sum(rank for rank, up in zip(ranks, signs) if up) for signs in itertools.product([0, 1], repeat=len(ranks))]
    off = abs(ranks[differs > 0].sum() - centre)
    assert p == pytest.approx(np.mean([abs(each - centre) >= off - 1e-9 for each in sums]))


def test_sums_in_another_order_are_no_difference():
    values = np.array([1 / 3, 1 / 7, 1 / 13, 0.1, 0.7])
    a, b = np.full(50, sum(values)), np.full(50, sum(values[::-1]))
    assert (a != b).any()
    assert paired_p(a, b) == 1
    assert improvement(a[None], b[None]) == (0, 0, 0)


def test_runs_that_collapse_make_an_interval_without_bound_and_no_verdict():
    rng = np.random.default_rng(1)
    collapsed, usual = (
        (rng.random((2, 300)) < np.array([one, other])[:, None]) + 0.0 for one, other in ((0.003, 0.6), (0.05, 0.05))
    )
    for a, b in ((collapsed, usual), (usual, collapsed)):
        _, low, high = improvement(a, b)
        assert -100 <= low < -90  # no metric falls by more than 100 %
        assert high == math.inf
        assert verdict(low, high, 1e-9, 2) == "no"


def test_no_difference_is_no_effect():
    a = np.array([[0.0, 1.0, 0.5]])
    assert paired_p(a[0], a[0]) == 1
    assert improvement(a, a) == (0, 0, 0)
    assert math.isnan(improvement(np.zeros((1, 3)), a)[0])
    assert math.isnan(improvement(a[:, :1] + 1, a[:, :1] + 1)[1])


def test_the_interval_holds_the_true_improvement_and_shrinks_with_the_sessions():
    rng = np.random.default_rng(5)
    widths = []
    for size in (300, 10_000):
        a = (rng.random((1, size)) < 0.2).astype(float)
        b = (rng.random((1, size)) < 0.3).astype(float)
        percent, low, high = improvement(a, b)
        assert percent == pytest.approx(100 * (b.mean() / a.mean() - 1))
        assert low < 50 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_the_interval_of_one_run_is_the_bootstrap_over_its_sessions():
    rng = np.random.default_rng(8)
    a, b = rng.random((2, 200))
    drawn = np.random.default_rng(1).integers(200, size=(20_000, 200))
    expected = np.quantile([100 * (b[each].mean() / a[each].mean() - 1) for each in drawn], [0.025, 0.975])
    _, low, high = improvement(a[None], b[None])
    assert (low, high) == pytest.approx(expected, abs=0.7)


def test_the_interval_by_hand():
    def ends(variance, freedom):
        half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
        return pytest.approx((100 * (ratio * math.exp(-half) - 1), 100 * (ratio * math.exp(half) - 1)))

    a = np.array([[1.0, 0, 1, 0], [1, 0, 1, 0]])  # mean 1/2; relative to it the sessions are 2, 0, 2, 0
    ratio = 1.5
    b = np.array([[1.0, 0, 1, 1], [1, 1, 1, 0]])  # mean 3/4, sessions 4/3, 2/3, 4/3, 2/3, runs alike
    assert improvement(a, b)[1:] == ends((4 * (2 / 3) ** 2 / 3) / 4, 3)
    ratio = 1.0
    b = np.array([[1.0, 0.5, 1, 0.5], [0.5, 0, 0.5, 0]])  # mean 1/2, sessions 3/2, 1/2, 3/2, 1/2, runs 3/2 and 1/2, no noise
    of_sessions, of_runs = (4 * (1 / 2) ** 2 / 3) / 4, (2 * (1 / 2) ** 2 / 1) / 2
    freedom = (of_sessions + of_runs) ** 2 / (of_sessions**2 / 3 + of_runs**2 / 1)
    assert improvement(a, b)[1:] == ends(of_sessions + of_runs, freedom)


def test_where_sessions_are_alike_the_interval_is_welchs_over_runs():
    rng = np.random.default_rng(2)
    for count, spread in ((2, 0.01), (3, 0.001), (5, 0.01), (10, 0.003)):
        a, b = (rng.normal(1, each, count) for each in (spread, 0.01))
        welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
        _, low, high = improvement(*(np.repeat(each[:, None], 1000, 1) for each in (a, b)))
        assert high - low == pytest.approx(100 * (welch.high - welch.low), rel=0.1)


@pytest.mark.parametrize("of_runs", [0.0, 0.01, 0.05])
def test_each_source_of_variance_is_counted_once(of_runs):
    """The width against that of the variance the data were drawn with; with noise counted twice it is 1.4 times as wide."""
    rng = np.random.default_rng(4)
    runs, sessions, of_noise, of_models, ratios = 12, 400, 1.0, 0.2, []
    for _ in range(60):
        ease = rng.exponential(1, sessions)
        own = 1 + ease + rng.normal(0, of_models, (2, 1, sessions))  # the mean is 2
        a, b = own + rng.normal(0, of_runs, (2, runs, 1)) + rng.normal(0, of_noise, (2, runs, sessions))
        _, low, high = improvement(a, b)
        true = 2 * (of_models**2 / sessions + of_noise**2 / (runs * sessions) + of_runs**2 / runs) / 2**2
        ratios.append(math.log((100 + high) / (100 + low)) / (2 * 1.96 * math.sqrt(true)))
    assert 0.85 < np.mean(ratios) < 1.2


def simulated_runs(rng, seeds, sessions, spread, shift=0.0):
    """Ranks of two groups of runs that differ in their seeds alone: each run is better or worse by `spread` in the log of the rank."""
    ease = rng.normal(2.5, 1.5, sessions)
    groups = []
    for extra in (0.0, shift):
        runs = ease + extra + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.4, (seeds, sessions))
        groups.append(np.maximum(1, np.exp(runs)).astype(np.int32))
    return groups


@pytest.mark.parametrize("metric", ["Hit@20", "MRR@20"])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_runs_that_differ_in_their_seeds_alone_are_called_different_in_about_one_of_twenty_cases_at_most(seeds, metric):
    rng = np.random.default_rng(seeds)
    cases, different, by_sessions_alone = 200, 0, 0
    for _ in range(cases):
        a, b = (session_metric(ranks, metric) for ranks in simulated_runs(rng, seeds, 640, 0.1))
        _, low, high = improvement(a, b)
        p = paired_p(a.mean(0), b.mean(0))
        different += verdict(low, high, p, seeds) in ("better", "worse")
        by_sessions_alone += p < 0.05
    assert different <= 0.095 * cases  # 0.05 and three standard errors of 200 cases
    assert by_sessions_alone > cases / 20  # what the test over sessions alone would have said


def test_an_improvement_well_beyond_the_spread_of_runs_is_called_better_and_its_reverse_worse():
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(20):
        a, b = (session_metric(ranks, "MRR@20") for ranks in simulated_runs(rng, 5, 640, 0.05, shift=-0.4))
        for x, y in ((a, b), (b, a)):
            _, low, high = improvement(x, y)
            verdicts.append(verdict(low, high, paired_p(x.mean(0), y.mean(0)), 5))
    assert verdicts.count("better") >= 18
    assert verdicts[1::2].count("worse") >= 18


def test_many_small_losses_and_few_large_gains_are_no_verdict():
    a, b = np.zeros(643), np.zeros(643)
    a[:200], b[:200] = 1 / 2, 1 / 3  # 200 sessions slip from rank 2 to 3 ...
    b[200:240] = 1  # ... and 40 rise from nowhere to 1
    b[300:320], a[300:320] = 1, 1
    percent, low, high = improvement(np.stack([a, a]), np.stack([b, b]))
    p = paired_p(a, b)
    assert percent > 0
    assert p < 1e-6
    assert verdict(low, high, p, 2) == "no"


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


@pytest.mark.parametrize("seeds", [1, 5])
def test_whatever_the_numbers_say_an_unfinished_run_and_a_single_one_are_not_judged(seeds):
    for low, high, p in ((1.0, 4.0, 1e-9), (-4.0, -1.0, 1e-9), (-1.0, 4.0, 0.9), (math.nan, math.nan, 1.0)):
        assert verdict(low, high, p, seeds, unfinished=True) == "unfinished: not judged"
        assert verdict(low, high, p, 1) == "one seed: not judged"


def test_every_pair_is_tested_once_and_a_changed_plain_model_is_still_the_reference():
    def pairs(*variants):
        lines = [Line("G", "SRGNN", variant, "", {0: object()}) for variant in variants]
        return [(line.variant, reference.variant) for line, reference in Block("d", "s", lines).pairs("G")]

    assert pairs("random", "llm4sbr", "shuffled") == [("random", "llm4sbr"), ("llm4sbr", "shuffled")]
    assert pairs("llm4sbr", "plain+session_dropout=0.5", "none") == [
        ("llm4sbr", "plain+session_dropout=0.5"), ("llm4sbr", "none"), ("none", "plain+session_dropout=0.5")
    ]  # fmt: skip
    assert pairs("plain+seed=3", "plain", "concat")[-1] == ("concat", "plain")
    ensembles = ["ensemble(plain,llm4sbr)", "ensemble(plain,plain')"]
    assert pairs("plain", *ensembles) == [tuple(ensembles)]
    own = "ensemble(plain+hop=2,plain+hop=2')"  # where the plain model has settings of its own, so has the control
    assert pairs("plain+hop=2", *ensembles, own) == [(ensembles[0], own), (ensembles[1], own)]


def test_an_improvement_says_over_which_seeds_where_a_side_has_more():
    def interval(ours, theirs):
        line, reference = (Line("G", "SRGNN", "v", "", {}, {seed: {} for seed in seeds}) for seeds in (ours, theirs))
        return Comparison(line, reference, "Hit@20", 1.0, -1.0, 3.0, 0.5, 0.5, 2, "no").interval

    assert interval((1, 2), (2, 1)) == "+1.0 % [-1.0, +3.0]"
    assert interval((1, 2, 3), (1, 3)) == "+1.0 % [-1.0, +3.0] over seeds 1, 3"
    assert interval((2,), (1, 2)) == "+1.0 % [-1.0, +3.0] over seed 2"


def test_the_first_table_with_the_most_seeds_is_looked_at():
    lines = [
        Line(group, "SRGNN", variant, "", dict.fromkeys(range(seeds)))
        for group, variant, seeds in (
            ("settings", "plain", 1),
            ("controls", "plain", 3),
            ("controls", "llm4sbr", 2),  # one of its runs failed
            ("Table 4", "llm4sbr", 3),
        )
    ]
    looked_at = main_lines(Block("d", "temporal", lines))
    assert [(line.group, line.variant) for line in looked_at] == [("controls", "plain"), ("controls", "llm4sbr")]
