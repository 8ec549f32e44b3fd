"""TAGNN, GCE-GNN and DHCN against slow references written from the papers' formulas, and their graphs against brute force."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import session_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import sigmoid, tanh

from recbole_llm4sbr.base.schema import model_defaults
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.model import build_model
from recbole_llm4sbr.model.backbones import BACKBONES, gcegnn, tagnn
from recbole_llm4sbr.model.session_graphs import BOTH, IN, OUT, SELF, packed_graph, session_overlap, softmax_by, typed_edges
from recbole_llm4sbr.model.training_graphs import Hypergraph, cooccurrence, training_sessions
from recbole_llm4sbr.training.run import load_data

SESSIONS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=1, max_size=6)
HAND = [[1], [2, 2, 2], [1, 2, 1, 3, 2, 1], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [3, 1, 4, 1, 5]]


def padded(sessions, extra=0):
    width = max(map(len, sessions)) + extra
    return torch.tensor([s + [0] * (width - len(s)) for s in sessions]), torch.tensor([len(s) for s in sessions])


def packed(sessions, extra=0):
    return packed_graph(*padded(sessions, extra))


@given(SESSIONS, st.integers(0, 3))
@settings(deadline=None)
def test_typed_edges_equal_brute_force(sessions, extra):
    graph = packed(sessions, extra)
    where = list(zip(graph.node_row.tolist(), graph.node_item.tolist()))
    assert sorted(where) == sorted({(row, item) for row, session in enumerate(sessions) for item in session})
    expected = set()
    for row, session in enumerate(sessions):
        steps = set(zip(session, session[1:]))
        for a in set(session):
            for b in set(session):
                kind = {
                    (True, True): BOTH,
                    (True, False): OUT,
                    (False, True): IN,
                }.get(((a, b) in steps, (b, a) in steps))
                if a == b:
                    kind = SELF
                if kind is not None:
                    expected.add(((row, a), (row, b), kind))
    found = [(where[a], where[b], kind) for a, b, kind in zip(*(each.tolist() for each in typed_edges(graph)))]
    assert len(found) == len(set(found))
    assert set(found) == expected


@given(SESSIONS)
@settings(deadline=None)
def test_clicks_know_how_far_from_the_end_they_are_and_overlaps_are_shares_of_common_items(sessions):
    graph = packed(sessions)
    assert graph.click_back.tolist() == [len(s) - 1 - place for s in sessions for place in range(len(s))]
    expected = [[len(set(a) & set(b)) / len(set(a) | set(b)) for b in sessions] for a in sessions]
    torch.testing.assert_close(session_overlap(graph), torch.tensor(expected))
    values = torch.randn(sum(map(len, sessions)), 3)
    parts = values.split([len(s) for s in sessions])
    torch.testing.assert_close(graph.session_mean(values), torch.stack([part.mean(0) for part in parts]))


@given(SESSIONS.filter(lambda each: sum(map(len, each)) > 1), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None)
def test_the_global_graph_equals_brute_force(sessions, distance, most):
    counts = np.zeros((7, 7), int)
    for session in sessions:
        for i, a in enumerate(session):
            for b in session[i + 1 : i + 1 + distance]:
                if a != b:
                    counts[a, b] += 1
                    counts[b, a] += 1
    if not counts.any():
        return
    near, weights = cooccurrence([np.array(s) for s in sessions], 7, distance, most)
    for item in range(7):
        ranked = sorted((n for n in range(7) if counts[item, n]), key=lambda n: (-counts[item, n], n))[:most]
        assert near[item].tolist() == ranked + [0] * (most - len(ranked))
        np.testing.assert_allclose(weights[item, : len(ranked)], [counts[item, n] / counts[item].max() for n in ranked])
        assert not weights[item, len(ranked) :].any()


@given(SESSIONS, st.integers(0, 3), st.integers(1, 4))
@settings(deadline=None)
def test_hypergraph_convolutions_are_their_matrix_formula(sessions, layers, piece):
    incidence = np.zeros((7, len(sessions)))
    for number, session in enumerate(sessions):
        incidence[session, number] = 1
    degree, size = incidence.sum(1), incidence.sum(0)
    once = np.diag(1 / np.maximum(degree, 1)) @ incidence @ np.diag(1 / size) @ incidence.T
    mean = sum(np.linalg.matrix_power(once, power) for power in range(layers + 1)) / (layers + 1)
    values, upstream = np.random.default_rng(0).normal(size=(2, 7, 3))
    given = torch.from_numpy(values).requires_grad_()
    found = Hypergraph([np.array(s) for s in sessions], 7, piece).double()(given, layers)
    np.testing.assert_allclose(found.detach().numpy(), mean @ values, atol=1e-6)
    found.backward(torch.from_numpy(upstream))
    np.testing.assert_allclose(given.grad.numpy(), mean.T @ upstream, atol=1e-6)


def test_softmax_by_groups():
    values, index = torch.tensor([1.0, 100.0, 2.0, 101.0, -5.0]), torch.tensor([0, 1, 0, 1, 3])
    expected = torch.cat([torch.tensor([1.0, 2.0]).softmax(0), torch.tensor([100.0, 101.0]).softmax(0), torch.ones(1)])
    torch.testing.assert_close(softmax_by(values, index, 4), expected[[0, 2, 1, 3, 4]])


def built(tiny, name, **changed):
    given = tiny | model_defaults(name) | {"model": name, "llm4sbr": False, "train_targets": "last"} | changed
    config, _, (train, _, _) = load_data(given)
    torch.manual_seed(4)
    model = BACKBONES[name](config, train.dataset)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)  # large enough that every term counts
    return model.eval(), config, train.dataset


def batch_of(sessions):
    seq, length = padded(sessions, extra=12 - max(map(len, sessions)))
    return {"item_id_list": seq, "item_length": length, "item_id": torch.ones(len(sessions), dtype=torch.long)}


def sessions_of_training(dataset):
    feat = dataset.inter_feat
    return [
        [*seq[:length].tolist(), int(target)]
        for seq, length, target in zip(feat["item_id_list"], feat["item_length"], feat["item_id"])
    ]


def ggnn(model, session):
    """SR-GNN's node states (Wu et al. 2019, eq. 1-5), one session with dense matrices; one row per click."""
    nodes = sorted(set(session))
    out = torch.zeros(len(nodes), len(nodes))
    for a, b in zip(session, session[1:]):
        out[nodes.index(a), nodes.index(b)] = 1
    into = out.T.clone()  # into[v, u] = 1 where u -> v
    h, gnn = model.item_embedding.weight[nodes], model.gnn
    for _ in range(gnn.step):
        a_in = into / into.sum(1, keepdim=True).clamp(min=1) @ gnn.linear_edge_in(h) + gnn.b_iah
        a_out = out / out.sum(1, keepdim=True).clamp(min=1) @ gnn.linear_edge_out(h) + gnn.b_ioh
        i_r, i_i, i_n = (torch.cat([a_in, a_out], 1) @ gnn.w_ih.T + gnn.b_ih).chunk(3, 1)
        h_r, h_i, h_n = (h @ gnn.w_hh.T + gnn.b_hh).chunk(3, 1)
        z = sigmoid(i_i + h_i)
        h = (1 - z) * h + z * tanh(i_n + sigmoid(i_r + h_r) * h_n)
    return torch.stack([h[nodes.index(item)] for item in session])


@pytest.mark.parametrize("piece", [tagnn._PIECE, 200])
def test_tagnn_equals_its_formulas(tiny, monkeypatch, piece):
    monkeypatch.setattr(tagnn, "_PIECE", piece)
    model, _, dataset = built(tiny, "TAGNN")
    scores = model.full_sort_predict(batch_of(HAND))
    w3 = torch.cat([model.linear_mix.weight, model.linear_transform.weight], 1)  # over [target ; global ; local]
    for row, session in enumerate(HAND):
        h = ggnn(model, session)
        alpha = [model.linear_three(sigmoid(model.linear_one(h[-1]) + model.linear_two(each))) for each in h]
        s_global = sum(a * each for a, each in zip(alpha, h))
        for item in range(1, dataset.item_num):
            v = model.item_embedding.weight[item]
            beta = torch.stack([v @ model.linear_target.weight @ each for each in h]).softmax(0)  # eq. 5
            s_target = sum(b * each for b, each in zip(beta, h))  # eq. 6
            s = w3 @ torch.cat([s_target, s_global, h[-1]]) + model.linear_transform.bias  # eq. 8
            torch.testing.assert_close(scores[row, item], s @ v, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_target_attention_is_that_of_its_formula():
    torch.manual_seed(0)
    row = torch.tensor([0, 0, 0, 1, 2, 2])
    items, keys, values = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 6, 6))
    assert torch.autograd.gradcheck(
        lambda *given: tagnn._TargetScores.apply(*given, row, 3, torch.float64), (items, keys, values)
    )


def gce_reference(model, config, sessions, near, weights, session):
    """GCE-GNN's session embedding for one session, by loops."""
    table, slope = model.item_embedding.weight, config["leaky_slope"]
    mean = table[session].mean(0)

    def global_level(item, layers):
        """Embedding of an item after all of `layers` (eq. 2-6): it and its neighbours went through the layers before."""
        if not layers:
            return table[item]
        layer, before = layers[-1], layers[:-1]
        own = global_level(item, before)
        there = [n for n in range(len(near[item])) if weights[item][n] > 0]
        context = torch.zeros_like(own)
        if there:
            others = [global_level(near[item][n], before) for n in there]
            shares = [torch.tensor([weights[item][n]]) for n in there]
            leaky = torch.nn.functional.leaky_relu
            pi = torch.cat(
                [layer.attend(leaky(layer.linear_pair(torch.cat([mean * h, w])), slope)) for h, w in zip(others, shares)]
            ).softmax(0)
            context = sum(p * h for p, h in zip(pi, others))
        return torch.relu(layer.aggregate(torch.cat([own, context])))

    steps = set(zip(session, session[1:]))
    hidden = {}
    for a in set(session):
        logits, others = [], []
        for b in set(session):
            out, into = (a, b) in steps, (b, a) in steps
            kind = SELF if a == b else {(1, 1): BOTH, (1, 0): OUT, (0, 1): IN}.get((out, into))
            if kind is not None:
                logits.append(torch.nn.functional.leaky_relu(model.edge_kinds[kind] @ (table[a] * table[b]), slope))
                others.append(table[b])
        alpha = torch.stack(logits).softmax(0)
        hidden[a] = sum(x * h for x, h in zip(alpha, others)) + global_level(a, list(model.global_layers))
    clicks = [hidden[item] for item in session]
    about = torch.stack(clicks).mean(0)
    result = 0
    for place, h in enumerate(clicks):
        z = tanh(model.linear_place(torch.cat([h, model.position_embedding.weight[len(session) - 1 - place]])))
        result += model.attend(sigmoid(model.linear_click(z) + model.linear_mean(about))) * h
    return result, clicks[-1]


@pytest.mark.parametrize(("hop", "piece"), [(1, gcegnn._PIECE), (2, gcegnn._PIECE), (2, 500)])
def test_gcegnn_equals_its_formulas(tiny, monkeypatch, hop, piece):
    monkeypatch.setattr(gcegnn, "_PIECE", piece)
    model, config, dataset = built(tiny, "GCEGNN", hop=hop, neighbors=3)
    near, weights = cooccurrence([np.array(s) for s in sessions_of_training(dataset)], dataset.item_num, 3, 3)
    weights[[3, 5], 1:], weights[4] = 0, 0  # items with fewer neighbours, and one without any
    model.near_weights.copy_(torch.from_numpy(weights))
    embeddings = model.encode(batch_of(HAND))
    scores = model.full_sort_predict(batch_of(HAND))
    for row, session in enumerate(HAND):
        expected, last = gce_reference(model, config, None, near.tolist(), weights.tolist(), session)
        torch.testing.assert_close(embeddings.global_emb[row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(embeddings.local_emb[row], last, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores[row], model.item_embedding.weight @ expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kept", [gcegnn._KEPT, 0])
@pytest.mark.parametrize("piece", [gcegnn._PIECE, 40])
def test_the_gradient_of_a_global_layer_is_that_of_its_formula(monkeypatch, piece, kept):
    monkeypatch.setattr(gcegnn, "_PIECE", piece)
    monkeypatch.setattr(gcegnn, "_KEPT", kept)
    torch.manual_seed(0)
    layer = gcegnn.GlobalLayer(5, 0.2).double()
    own, table, session = (torch.randn(rows, 5, dtype=torch.double, requires_grad=True) for rows in (9, 7, 9))
    near, weights = torch.randint(0, 7, (9, 3)), torch.rand(9, 3, dtype=torch.double)
    weights[2, 1:], weights[4] = 0, 0

    def by_formula(own, table, session):
        pair = torch.cat([session[:, None] * table[near], weights[..., None]], -1)
        logits = layer.attend(torch.nn.functional.leaky_relu(layer.linear_pair(pair), 0.2)).squeeze(-1)
        attention = logits.masked_fill(weights == 0, -1e300).softmax(-1) * (weights > 0)
        return torch.relu(layer.aggregate(torch.cat([own, (attention[..., None] * table[near]).sum(1)], -1)))

    given = (own, table, session, *layer.parameters())
    found, expected = layer(own, table, near, weights, session), by_formula(own, table, session)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(torch.autograd.grad(found, given, upstream), torch.autograd.grad(expected, given, upstream))


@pytest.mark.parametrize("detach", [False, True])
def test_dhcn_equals_its_formulas(tiny, monkeypatch, detach):
    model, config, dataset = built(tiny, "DHCN", detach_line=detach)
    incidence = torch.zeros(dataset.item_num, len(dataset.inter_feat))
    for number, session in enumerate(sessions_of_training(dataset)):
        incidence[session, number] = 1
    d, b = incidence.sum(1).clamp(min=1), incidence.sum(0)
    convolve = (incidence / d.unsqueeze(1)) @ (incidence / b).T
    layers = [model.item_embedding.weight]
    for _ in range(config["layers"]):
        layers.append(convolve @ layers[-1])
    items = sum(layers) / len(layers)
    expected, means = [], []
    for session in HAND:
        x = items[session]
        total = 0
        for place, each in enumerate(x):
            placed = tanh(model.linear_place(torch.cat([each, model.position_embedding.weight[len(session) - 1 - place]])))
            total += model.attend(sigmoid(model.linear_mean(x.mean(0)) + model.linear_click(placed))) * each
        expected.append(total)
        means.append(model.item_embedding.weight[session].mean(0))
    expected = torch.stack(expected)
    embeddings = model.encode(batch_of(HAND))
    torch.testing.assert_close(embeddings.global_emb, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.full_sort_predict(batch_of(HAND)), expected @ items.T, atol=1e-4, rtol=1e-5)
    overlap = torch.tensor([[len(set(p) & set(q)) / len(set(p) | set(q)) for q in HAND] for p in HAND])
    line = [torch.stack(means)]
    for _ in range(config["layers"]):
        line.append(overlap / overlap.sum(1, keepdim=True) @ line[-1])
    line = sum(line) / len(line)
    orders = iter([torch.tensor([3, 0, 4, 1, 2]), torch.arange(8).flip(0)])
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(orders))
    loss = model.extra_loss(embeddings, None)
    shuffled = expected[torch.tensor([3, 0, 4, 1, 2])].flip(1)
    by_hand = sum(
        -torch.log(sigmoid(h @ t)) - torch.log(1 - sigmoid(c @ t))
        for h, t, c in zip(expected.double(), line.double(), shuffled.double())
    )
    torch.testing.assert_close(loss.double(), config["beta"] * by_hand, atol=1e-5, rtol=1e-5)
    line_only = model._line_graph(embeddings.memo[1]).sum()
    assert line_only.requires_grad != detach  # the switch of the authors' code


@pytest.mark.parametrize("train_targets", ["all", "last"])
@pytest.mark.parametrize("longest", [3, 12])
def test_every_training_session_is_in_the_graphs_once_and_whole(tiny, longest, train_targets):
    settings = tiny | {"MAX_ITEM_LIST_LENGTH": longest, "train_targets": train_targets, "rebuild": True, "llm4sbr": False}
    prepare(settings)
    config, _, (train_data, _, _) = load_data(settings)
    tokens = train_data.dataset.field2id_token["item_id"]
    whole = {}
    for name, prefix, target in session_rows(dataset_folder(settings), "tiny", "train"):  # prefixes of 1, 2, 3, ... clicks
        session, _, length = name.rpartition(".")
        whole.setdefault(session, prefix[:1]).append(target)
        assert len(whole[session]) == int(length) + 1
    found = training_sessions(config, train_data.dataset)
    assert sorted(tokens[each].tolist() for each in found) == sorted(whole.values())
    assert max(map(len, whole.values())) > 5


def test_importing_recboles_models_leaves_anomaly_detection_as_it_was():
    code = (
        "import torch\nfrom recbole_llm4sbr.model import model_class\n"
        "model_class('GRU4Rec')\nassert not torch.is_anomaly_enabled()\n"
        "import recbole.model.sequential_recommender.sine as sine, importlib\nimportlib.reload(sine)\n"
        "assert torch.is_anomaly_enabled()\n"  # what RecBole does, and what is undone above
        "model_class('recbole.model.sequential_recommender:STAMP')\nassert torch.is_anomaly_enabled()\n"  # the user's own choice stays
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sklearn_comes_when_recbole_computes_with_it():
    code = (
        "import sys\nfrom recbole_llm4sbr.base import recbole\nassert not any(name.startswith('sklearn') for name in sys.modules)\n"
        "from recbole.evaluator import metrics\nassert metrics.sk_auc([0, 0.5, 1], [0, 1, 1]) == 0.75\n"
        "assert metrics.mean_absolute_error([1, 2], [2, 4]) == 1.5 and metrics.mean_squared_error([1, 2], [2, 4]) == 2.5\n"
        "import sklearn.metrics\nassert sklearn.metrics is sys.modules['sklearn.metrics']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("hop", [1, 2])
def test_gcegnn_has_no_nan_where_an_item_has_no_neighbour(tiny, hop):
    model, _, _ = built(tiny, "GCEGNN", hop=hop)
    model.near_weights[:10] = 0.0  # as items that no session shows beside another one
    batch = batch_of(HAND)
    with torch.autograd.detect_anomaly(check_nan=True):
        model.calculate_loss(batch).backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("model", ["TAGNN", "DHCN", "GCEGNN", "SRGNN"])
@pytest.mark.parametrize("low", [False, True])
def test_backbones_train_in_double_and_in_half_precision(tiny, monkeypatch, model, low):
    """`low`: under autocast, as RecBole's enable_amp trains; else with all weights in float64."""
    monkeypatch.setattr(tagnn, "_PIECE", 50)  # the way over pieces too
    made, _, _ = built(tiny, model)

    def loss_of():
        torch.manual_seed(6)  # DHCN shuffles
        found = made.calculate_loss(batch_of(HAND))
        return sum(found) if isinstance(found, tuple) else found

    reference = loss_of().item()
    if not low:
        made = made.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = loss_of()
    loss.backward()
    assert loss.item() == pytest.approx(reference, rel=0.1 if low else 0.02)
    assert all(torch.isfinite(each.grad).all() for each in made.parameters() if each.grad is not None)


@pytest.mark.parametrize("name", ["SRGNN", "TAGNN", "GCEGNN", "DHCN", "wrapper"])
def test_parameters_start_evenly_on_both_sides_of_zero_within_one_over_the_root_of_the_size(tiny, name):
    model = "GRU4Rec" if name == "wrapper" else name
    # Of the wrapper there is the projection alone: its layers beside GRU4Rec start at zero.
    size = 1024 if name == "wrapper" else 64
    given = tiny | model_defaults(model) | {"model": model, "embedding_size": size, "hidden_size": size}
    given |= {"llm4sbr": name == "wrapper", "fusion": "residual"}
    config, _, (train, _, _) = load_data(given)
    torch.manual_seed(3)
    made = build_model(config, train.dataset)
    own = [
        each for key, each in made.named_parameters() if not key.startswith("backbone.")
    ]  # of the wrapper, where there is one
    values = torch.cat([each.detach().flatten() for each in own])
    assert len(values) > 9_000
    ten = np.histogram(values.numpy(), 10, (-(size**-0.5), size**-0.5))[0] / len(values)
    assert ten.sum() == pytest.approx(1)
    assert abs(ten - 0.1).max() < 0.01


def test_layers_have_a_bias_where_the_papers_formulas_have_one(tiny):
    of_srgnn = {f"gnn.{each}" for each in ("b_ih", "b_hh", "b_iah", "b_ioh", "linear_edge_in.bias", "linear_edge_out.bias")}
    of_srgnn |= {"linear_one.bias", "linear_two.bias", "linear_transform.bias"}  # as RecBole's SRGNN has them
    expected = {
        "SRGNN": of_srgnn,
        "TAGNN": of_srgnn,
        "GCEGNN": {"linear_place.bias", "linear_click.bias"},
    }  # b_3, b_4 (eq. 11-12)
    expected["DHCN"] = {"linear_place.bias", "linear_click.bias"}  # b, c (eq. 6-7)
    for name, biases in expected.items():
        model = built(tiny, name)[0]
        names = [each for each, _ in model.named_parameters()]
        assert set(names) == set(model.state_dict())  # graphs are made of the data and stand in no checkpoint
        assert {each for each in names if "bias" in each or ".b_" in each} == biases
        assert model.item_embedding.padding_idx == 0  # any other row's lookups would never be trained
