import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.localization import ItemIndex, localize


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(answers, items, k):
    found, sims = [], []
    for answer in answers:
        similar = [round(float(np.dot(answer.astype(float), item.astype(float))), 6) for item in items]
        order = sorted((n for n in range(len(items)) if items[n].any()), key=lambda n: (-similar[n], n))[:k]
        found.append(order)
        sims.append([similar[n] for n in order])
    return np.array(found), np.array(sims)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_top_k_equals_brute_force_in_ids_and_values_with_ties(seed, k, number, copies):
    rng = np.random.default_rng(seed)
    items = unit(rng.integers(-2, 3, (number, 4)) + rng.normal(0, 0.01, (number, 4)))
    items = np.concatenate([items, items[rng.integers(0, number, copies)]])  # exact ties
    items[rng.integers(0, len(items))] = 0  # an item without a text is never found
    if not items.any():
        return
    answers = unit(rng.normal(size=(6, 4)))
    found, sims = localize(answers, items, k)
    expected, expected_sims = brute_force(answers, items, k)
    assert found.shape == expected.shape
    np.testing.assert_allclose(sims, expected_sims, atol=2e-6)
    # ids must agree wherever the similarity is not within rounding of a neighbour's
    for row in range(len(answers)):
        for position, (mine, theirs) in enumerate(zip(found[row], expected[row])):
            if mine != theirs:
                assert abs(expected_sims[row, position] - float(answers[row] @ items[mine])) < 2e-6


def test_equal_items_come_in_catalogue_order():
    items = unit(np.array([[0.0, 1], [1, 0], [1, 0], [1, 0], [1, 1]]))
    found, sims = localize(unit(np.array([[1.0, 0]])), items, 3)
    assert found.tolist() == [[1, 2, 3]]
    assert sims.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
@pytest.mark.parametrize("size", [1, 1000])
def test_items_of_one_text_come_in_catalogue_order_in_batches_of_any_shape(factory, size):
    rng = np.random.default_rng(0)
    texts, answers = unit(rng.normal(size=(40, 384))), unit(rng.normal(size=(1000, 384)))
    text = rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 200), np.full(100, 7)])  # of each item
    index = ItemIndex(texts[text], factory)
    pieces = [index.nearest(answers[start : start + size], 20) for start in range(0, len(answers), size)]
    for found, sims in zip(*(np.concatenate(each) for each in zip(*pieces))):
        for each in set(text[found]):
            mine = text[found] == each
            assert found[mine].tolist() == np.flatnonzero(text == each)[: mine.sum()].tolist()
            assert len(set(sims[mine])) == 1


def test_other_indexes_work_and_a_bad_one_is_named():
    items = unit(np.random.default_rng(0).normal(size=(50, 8)))
    found, _ = localize(items, items, 1, "HNSW16")
    assert (found[:, 0] == np.arange(50)).mean() > 0.9
    with pytest.raises(UserError, match="faiss_index='Nonsense'"):
        localize(items, items, 1, "Nonsense")


def test_k_is_at_most_the_catalogue():
    items = unit(np.eye(3))
    assert localize(items, items, 10)[0].shape == (3, 3)
