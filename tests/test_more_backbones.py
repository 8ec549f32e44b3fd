"""BSARec against a slow reference written from its paper's formulas; CORE and FEARec against RecBole's own objects and brute force."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import session_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.schema import model_defaults
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.model import AdaptedRecommender, build_model
from recbole_llm4sbr.model.backbones.bsarec import slow_waves
from recbole_llm4sbr.model.fearec import FEARecContrast, SameTarget, info_nce
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.run import load_data

HAND = [[1], [2, 2], [1, 2, 1], [3, 1, 4, 1, 5], [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
RECBOLE = "recbole.model.sequential_recommender:"


pytestmark = pytest.mark.usefixtures("one_thread")  # FEARec's many small Fourier transforms wait for each other's threads


def built(tiny, model, **changed):
    settings = tiny | model_defaults(class_name(model)) | {"model": model, "llm4sbr": False} | changed
    config, _, (train, _, test) = load_data(settings)
    torch.manual_seed(4)
    return build_model(config, train.dataset), config, train, test


def both(tiny, name, **changed):
    """RecBole's own object and an adapter around it, with the training data."""
    original, config, train, _ = built(tiny, RECBOLE + name, **changed)
    return original, AdaptedRecommender(config, train.dataset, original), train


def total(loss):
    return sum(loss) if isinstance(loss, tuple) else loss


def batch_of(sessions, width=12):
    clicks = torch.tensor([session + [0] * (width - len(session)) for session in sessions])
    lengths = torch.tensor([len(session) for session in sessions])
    return {"item_id_list": clicks, "item_length": lengths, "item_id": torch.ones(len(sessions), dtype=torch.long)}


# ---- BSARec


def low_pass(hidden, c):
    """The slow part of a session's clicks [n, H] by the discrete Fourier transform, as the authors' code has it for full sessions."""
    spectrum = torch.fft.rfft(hidden, dim=0, norm="ortho")
    spectrum[c // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, n=len(hidden), dim=0, norm="ortho")


@pytest.mark.parametrize("c", range(1, 10))
def test_slow_waves_are_the_low_pass_filter_of_each_sessions_own_clicks(c):
    torch.manual_seed(0)
    hidden, length = torch.randn(12, 15, 4, dtype=torch.double), torch.arange(1, 13)
    waves = slow_waves(length, 15, c, torch.double)
    found = waves @ (waves.mT @ hidden)
    gram = waves.mT @ waves
    for row, n in enumerate(length.tolist()):
        torch.testing.assert_close(found[row, :n], low_pass(hidden[row, :n], c), atol=1e-13, rtol=0)
        assert not waves[row, n:].any()
        identity = torch.diag(gram[row].diagonal().round())  # orthonormal, or waves of zeros
        torch.testing.assert_close(gram[row], identity, atol=1e-13, rtol=0)


def layer_norm(values, norm):
    return torch.stack([norm.weight * (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() + norm.bias for x in values])


def bsarec_reference(model, config, session):
    """The output at the last click, by loops over places, heads and earlier clicks."""
    places = model.position_embedding.weight[: len(session)].flip(0)  # the last click has the first row: counted from the end
    hidden = layer_norm(model.item_embedding.weight[session] + places, model.norm)
    heads, size = config["n_heads"], hidden.size(1)
    width = size // heads
    for layer in model.layers:
        low = low_pass(hidden, config["c"])
        rescaled = low + layer.rescaler.sqrt_beta**2 * (hidden - low)
        rescaled = layer_norm(rescaled + hidden, layer.rescaler.norm)
        of_queries, of_keys, of_values = layer.attention.query_key_value.weight.split(size)
        query_bias, key_bias, value_bias = layer.attention.query_key_value.bias.split(size)
        query, key = hidden @ of_queries.T + query_bias, hidden @ of_keys.T + key_bias
        value = hidden @ of_values.T + value_bias
        context = torch.zeros_like(hidden)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for place in range(len(session)):
                logits = torch.stack([query[place, part] @ key[before, part] / width**0.5 for before in range(place + 1)])
                weights = logits.exp() / logits.exp().sum()
                context[place, part] = sum(w * value[before, part] for before, w in enumerate(weights))
        attended = layer_norm(layer.attention.dense(context) + hidden, layer.attention.norm)
        mixed = config["alpha"] * rescaled + (1 - config["alpha"]) * attended
        inner = mixed @ layer.inner.weight.T + layer.inner.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))  # gelu
        hidden = layer_norm(inner @ layer.outer.weight.T + layer.outer.bias + mixed, layer.norm)
    return hidden[-1]


@pytest.mark.parametrize(("c", "alpha"), [(1, 0.3), (3, 0.9), (6, 0.5)])
def test_bsarec_equals_its_formulas(tiny, c, alpha):
    model, config, _, _ = built(tiny, "BSARec", c=c, alpha=alpha)
    assert model.layers[0].inner.out_features == 4 * config["embedding_size"]  # inner_size: null
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)  # large enough that every term counts
    model.double().eval()
    embeddings = model.encode(batch_of(HAND))
    for row, session in enumerate(HAND):
        torch.testing.assert_close(embeddings.global_emb[row], bsarec_reference(model, config, session))
        torch.testing.assert_close(embeddings.local_emb[row], model.item_embedding.weight[session[-1]])
    torch.testing.assert_close(model.full_sort_predict(batch_of(HAND)), embeddings.global_emb @ model.item_embedding.weight.T)


def test_bsarec_trains_in_half_precision_and_drops_in_training_alone(tiny):
    model, _, train, _ = built(tiny, "BSARec")
    batch = next(iter(train))
    exact = model.eval().calculate_loss(batch).item()
    assert model.calculate_loss(batch).item() == exact != model.train().calculate_loss(batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.eval().calculate_loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())


def test_bsarec_starts_as_the_authors_start_it(tiny):
    model, _, _, _ = built(tiny, "BSARec", embedding_size=64)
    weights = torch.cat([each.flatten() for name, each in model.named_parameters() if each.dim() == 2 and "beta" not in name])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 0.001
    betas = torch.cat([layer.rescaler.sqrt_beta for layer in model.layers])
    assert betas.std().item() == pytest.approx(1, rel=0.3)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()


def test_bsarec_names_a_size_that_its_heads_do_not_divide(tiny):
    with pytest.raises(UserError, match="embedding_size=8 must be a multiple of n_heads=3"):
        built(tiny, "BSARec", n_heads=3)


# ---- CORE


@pytest.mark.parametrize("net", ["trm", "ave"])
def test_core_has_its_own_training_loss_with_the_dropout_of_the_item_table(tiny, net):
    original, adapted, train = both(tiny, "CORE", dnn_type=net, item_dropout=0.5)
    adapted.ignores_padding = False  # so that both draw as many random numbers
    batch = next(iter(train))
    losses = []
    for model in (original.train(), adapted.train()):
        torch.manual_seed(1)
        losses.append(model.calculate_loss(batch))
    torch.testing.assert_close(*losses)
    original.item_dropout.p = 0.0
    torch.manual_seed(1)
    assert abs(adapted.calculate_loss(batch) - losses[0]) > 0.01  # it was in the loss, and is asked of the model itself


def test_core_scores_any_session_embedding_by_its_cosine(tiny):
    model, config, _, _ = built(tiny, "CORE", temperature=0.2)
    model.eval()
    session = torch.randn(3, config["embedding_size"]) * torch.tensor([[0.1], [1.0], [50.0]])  # as the wrapper fuses one
    expected = [[torch.cosine_similarity(s, v, dim=0) / 0.2 for v in model.item_table] for s in session]
    torch.testing.assert_close(model.score(session, None), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_core_wrapped_scores_by_cosine_too(tiny):
    model, _, _, test = built(tiny, "CORE", llm4sbr=True)
    model.eval()
    batch = next(iter(test))[0]
    session = model.fuse(model.encode(batch), batch)
    expected = torch.cosine_similarity(session.unsqueeze(1), model.item_table.unsqueeze(0), dim=-1) / 0.07
    torch.testing.assert_close(model.full_sort_predict(batch), expected, atol=1e-4, rtol=1e-5)


def test_recboles_core_predicts_other_scores_than_it_sorts_by_and_ours_does_not(tiny):
    original, adapted, train = both(tiny, "CORE")
    original.eval(), adapted.eval()
    batch = train.dataset[:20]
    sorted_by = original.full_sort_predict(batch)[torch.arange(20), batch["item_id"]]
    torch.testing.assert_close(adapted.predict(batch), sorted_by, atol=1e-5, rtol=1e-5)
    assert (original.predict(batch) - sorted_by).abs().max() > 0.1


def test_core_refuses_a_second_cosine_and_its_temperature_decides_training(tiny, settings_for):
    with pytest.raises(UserError, match="CORE scores by cosine as it is"):
        check_runnable(settings_for(model="CORE", similarity="cosine"))  # before anything is made
    with pytest.raises(UserError, match="CORE scores by cosine as it is, over its temperature; leave similarity=dot"):
        built(tiny, "CORE", similarity="cosine")
    cold, warm = (deciding(settings_for(model="CORE", temperature=value), "training") for value in (0.07, 0.2))
    assert {key for key in cold if cold[key] != warm[key]} == {"temperature"}
    assert built(tiny, "CORE", temperature=0.3)[0].temperature == 0.3


# ---- FEARec


def dataset_with(rows):
    """A dataset of (clicks, target) rows."""
    batch = batch_of([clicks for clicks, _ in rows], 4)
    feat = batch | {"item_id": torch.tensor([target for _, target in rows]), "session_id": torch.arange(len(rows)).flip(0) + 1}

    class Rows(dict):
        def __len__(self):
            return len(rows)

    return SimpleNamespace(
        inter_feat=Rows(feat), iid_field="item_id", uid_field="session_id", item_list_length_field="item_length",
        user_num=len(rows) + 1,
    )  # fmt: skip


def test_a_session_with_the_same_target_is_drawn_evenly_from_those_with_other_clicks():
    rows = [([1, 2], 7), ([3], 7), ([1, 2], 7), ([4], 7), ([1, 2], 8), ([5], 9), ([5], 9), ([6], 7), ([2, 1], 8)]
    drawn = SameTarget(dataset_with(rows))
    torch.manual_seed(0)
    for row, (clicks, target) in enumerate(rows):
        allowed = [n for n, (others, same) in enumerate(rows) if same == target and others != clicks]
        found = drawn.draw(torch.full((3000,), len(rows) - row))  # session ids are in another order than the rows
        counts = torch.bincount(found, minlength=len(rows)) / 3000
        expected = torch.tensor([1 / len(allowed) if n in allowed else 0.0 for n in range(len(rows))])
        if not allowed:  # the only session with its target, or all of them are alike: itself
            expected[row] = 1.0
        torch.testing.assert_close(counts, expected, atol=0.04, rtol=0)
        assert ((counts > 0) == (expected > 0)).all()


def test_sessions_with_the_same_target_come_from_the_training_part_alone(tiny):
    model, _, train, _ = built(tiny, "FEARec")
    same, feat = model._contrast._same, train.dataset.inter_feat
    rows = session_rows(dataset_folder(tiny), "tiny", "train")
    assert len(same.clicks) == len(rows)
    names = [train.dataset.field2id_token["session_id"][n] for n in feat["session_id"]]
    assert sorted(names) == sorted(name for name, _, _ in rows)
    for _ in range(20):
        assert feat["item_id"][same.draw(feat["session_id"])].tolist() == feat["item_id"].tolist()


@pytest.mark.parametrize("cosine", [False, True])
def test_info_nce_equals_its_formula(cosine):
    torch.manual_seed(0)
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    rows = [*one, *other]

    def similarity(a, b):
        return (torch.cosine_similarity(a, b, dim=0) if cosine else a @ b) / 0.5

    expected = 0
    for n, row in enumerate(rows):
        others = sum(similarity(row, rows[m]).exp() for m in range(8) if m != n)
        expected -= (similarity(row, rows[(n + 4) % 8]).exp() / others).log() / 8
    torch.testing.assert_close(info_nce(one, other, 0.5, cosine), expected)
    assert info_nce(one[:1], other[:1], 0.5, cosine).item() == 0


MODES = [
    {"contrast": "none"}, {"contrast": "un"}, {"contrast": "su", "sim": "cos", "tau": 0.5}, {"contrast": "us", "lmd": 0.3},
    {"contrast": "us_x"}, {"contrast": "us_x", "dual_domain": False, "global_ratio": 0.3, "sim": "cos"},
    *({"contrast": "us_x", "fredom": True, "fredom_type": each} for each in ("us", "un", "su", "us_x")),
    {"contrast": "us", "fredom": True, "fredom_type": "us"},
]  # fmt: skip


@pytest.mark.parametrize("changed", MODES, ids=lambda each: "-".join(map(str, each.values())))
def test_fearecs_losses_are_the_originals_in_training(tiny, monkeypatch, changed):
    original, adapted, train = both(tiny, "FEARec", **changed)
    batch = next(iter(train))
    rows = SameTarget(train.dataset).draw(batch["session_id"])
    assert (rows != SameTarget(train.dataset)._row[batch["session_id"]]).any()
    monkeypatch.setattr(SameTarget, "draw", lambda *_: rows)
    replayed = iter(rows.tolist())
    monkeypatch.setattr(random, "choice", lambda _: next(replayed))
    losses = []
    for model in (adapted.train(), original.train()):
        torch.manual_seed(1)
        losses.append(model.calculate_loss(batch))
    assert isinstance(losses[0], tuple) == (changed["contrast"] != "none")
    torch.testing.assert_close(total(losses[0]), losses[1], atol=1e-5, rtol=1e-5)


def test_recboles_fearec_never_returns_where_all_sessions_with_a_target_are_alike_and_ours_does(tiny, monkeypatch):
    original, adapted, train = both(tiny, "FEARec")
    batch = train.dataset[:1]
    original.same_item_index[batch["item_id"].item()] = [0, 0]
    tries = iter(range(1000))
    monkeypatch.setattr(random, "choice", lambda _: next(tries) * 0)
    with pytest.raises(StopIteration):  # after 1000 tries
        original.calculate_loss(batch)
    feat = {key: torch.cat([value[:1]] * 2) for key, value in train.dataset.inter_feat.interaction.items()}
    feat["session_id"] = torch.tensor([1, 2])
    alike = dataset_with([([1], 1), ([1], 1)])
    alike.inter_feat.update(feat)
    adapted._contrast = FEARecContrast(original, alike)
    assert torch.isfinite(total(adapted.calculate_loss(feat)))


def test_plain_and_enhanced_fearec_hold_recboles_model_without_its_slow_list_of_sessions(tiny):
    for llm4sbr in (False, True):
        model, _, train, _ = built(tiny, "FEARec", llm4sbr=llm4sbr)
        model = model.backbone if llm4sbr else model
        assert model.model.same_item_index == {}
        original, _, _ = both(tiny, "FEARec")
        assert model.model.state_dict().keys() == original.state_dict().keys()
        loss = model.calculate_loss(next(iter(train)))
        assert len(loss) == 2
        assert loss[1] > 0
    assert built(tiny, "FEARec", contrast="un")[0]._contrast._same is None  # nothing is sorted that nothing reads


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"n_layers": 1}, "n_layers=1: it divides by n_layers - 1; set it to 2 or more"),
        ({"MAX_ITEM_LIST_LENGTH": 11}, "odd MAX_ITEM_LIST_LENGTH=11; make it 12, or set dual_domain=false"),
        ({"topk_factor": 9}, "topk_factor=9 .* adds up 22 delays; change one"),
    ],
)
def test_fearec_names_settings_for_which_recboles_code_has_no_answer(tiny, changed, says):
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        original, _, train, _ = built(tiny, RECBOLE + "FEARec", **changed)
        original.eval().full_sort_predict(train.dataset[:2])
    with pytest.raises(UserError, match=says):
        built(tiny, "FEARec", **changed)
    if "MAX_ITEM_LIST_LENGTH" in changed:
        model, _, train, _ = built(tiny, "FEARec", dual_domain=False, **changed)
        assert torch.isfinite(model.full_sort_predict(train.dataset[:2])).all()


# ---- the adapter


def test_embedding_dropout_reaches_the_clicks_of_an_adapted_model_and_nothing_else(tiny):
    model, _, train, _ = built(tiny, "GRU4Rec", embedding_dropout=0.5)
    batch = next(iter(train))
    clicks = model.train().model.item_embedding(batch["item_id_list"][:, :1])
    assert 0.3 < (clicks == 0).float().mean() < 0.7
    assert (model.item_table != 0).float().mean() > 0.9
    assert (model.eval().model.item_embedding(batch["item_id_list"][:, :1]) != 0).all()


def test_a_subclass_of_a_recbole_model_keeps_what_is_its_own(tiny):
    original, config, train, _ = built(tiny, RECBOLE + "GCSAN")
    mine = type("Mine", (type(original),), {})(config, train.dataset).eval()
    batch = next(iter(train))
    torch.testing.assert_close(
        total(AdaptedRecommender(config, train.dataset, mine).eval().calculate_loss(batch)), mine.calculate_loss(batch)
    )


def test_recboles_own_fearec_is_refused_where_it_may_never_return(settings_for):
    own = {"model": "recbole.model.sequential_recommender:FEARec", "llm4sbr": False}
    with pytest.raises(UserError, match=r"may never return .* --model=FEARec, or set --contrast=un"):
        check_runnable(settings_for(**own))
    check_runnable(settings_for(**own, contrast="un"))
