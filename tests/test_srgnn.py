import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm4sbr.model.session_graphs import packed_graph

SESSIONS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=6)


def padded(sessions, extra=0):
    width = max(map(len, sessions)) + extra
    return torch.tensor([s + [0] * (width - len(s)) for s in sessions]), torch.tensor([len(s) for s in sessions])


@given(SESSIONS, st.integers(0, 3))
@settings(deadline=None)
def test_the_packed_graph_equals_a_construction_by_loops(sessions, extra):
    graph = packed_graph(*padded(sessions, extra))
    node_of = {}  # (row, item) -> node of ours
    for row, node in zip(graph.click_row.tolist(), graph.at_clicks(torch.arange(len(graph.node_item))).tolist()):
        node_of[row, int(graph.node_item[node])] = node
    assert len(node_of) == len(graph.node_item) == sum(len(set(s)) for s in sessions)
    clicks = [(row, item) for row, session in enumerate(sessions) for item in session]
    assert [node_of[click] for click in clicks] == graph.at_clicks(torch.arange(len(graph.node_item))).tolist()
    edges = {(node_of[row, a], node_of[row, b]) for row, s in enumerate(sessions) for a, b in zip(s, s[1:])}
    assert sorted(zip(graph.source.tolist(), graph.target.tolist())) == sorted(edges)
    assert graph.last_node.tolist() == [node_of[row, session[-1]] for row, session in enumerate(sessions)]
    values = torch.randn(len(graph.node_item), 3)
    for node in range(len(values)):
        into = [a for a, b in edges if b == node]
        expected = torch.stack([values[a] for a in into]).mean(0) if into else torch.zeros(3)
        torch.testing.assert_close(graph.mean_from_sources(values)[node], expected)


@pytest.mark.parametrize("name, own", [("SRGNN", {"step": 1}), ("SRGNN", {"step": 2}), ("STAMP", {})])
def test_scores_and_gradients_equal_recboles(tiny, name, own):
    from recbole.model import sequential_recommender

    from recbole_llm4sbr.model.backbones import BACKBONES
    from recbole_llm4sbr.training.run import load_data

    config, _, (train, _, _) = load_data(tiny | own | {"llm4sbr": False, "model": name, "train_targets": "last"})
    torch.manual_seed(1)
    original = getattr(sequential_recommender, name)(config, train.dataset)
    torch.manual_seed(1)
    ours = BACKBONES[name](config, train.dataset)
    if name == "STAMP":  # the same start, too
        torch.testing.assert_close(dict(ours.state_dict()), dict(original.state_dict()))
        for parameter in original.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
    ours.load_state_dict(original.state_dict())
    for interaction in [*train, train.dataset[:1]]:
        torch.testing.assert_close(
            ours.full_sort_predict(interaction), original.full_sort_predict(interaction), atol=1e-5, rtol=1e-5
        )
        losses = [model.calculate_loss(interaction) for model in (ours, original)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
        theirs = dict(original.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("sessions", [[[1]], [[2, 2, 2, 2]], [[1, 2, 1, 2, 1, 2, 1, 2]], [[1], [1, 2, 3, 4, 5, 1, 2, 3]]])
def test_edge_cases_equal_recboles_srgnn(tiny, sessions):
    from recbole.model.sequential_recommender import SRGNN as Original

    from recbole_llm4sbr.model.backbones import SRGNN
    from recbole_llm4sbr.training.run import load_data

    config, dataset, _ = load_data(tiny | {"llm4sbr": False})
    original, ours = Original(config, dataset), SRGNN(config, dataset)
    ours.load_state_dict(original.state_dict())
    seq, length = padded(sessions, extra=2)
    batch = {"item_id_list": seq, "item_length": length}
    torch.testing.assert_close(ours.full_sort_predict(batch), original.full_sort_predict(batch), atol=1e-6, rtol=1e-5)
