"""The text tower (`items: text`) against numpy and against itself without the sharing: every backbone, plain and enhanced."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_contract import ADAPTED, WITH_FEATURES, built
from test_switches import texts_of

from recbole_llm4sbr import Recommender, load_model
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.model import SessionRecommender
from recbole_llm4sbr.model.backbones import BACKBONES
from recbole_llm4sbr.model.text_items import TextItems
from recbole_llm4sbr.model.text_space import Components
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = [*BACKBONES, *ADAPTED, *WITH_FEATURES]


def tower_of(model):
    return next(module for module in model.modules() if isinstance(module, TextItems))


def total(loss):
    return sum(loss) if isinstance(loss, tuple) else loss


@pytest.mark.parametrize("llm4sbr", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_no_parameter_belongs_to_an_item_and_the_projection_learns(tiny, name, llm4sbr):
    model, _, train_data, _ = built(tiny, name, llm4sbr=llm4sbr, items="text")
    items = train_data.dataset.item_num
    of_items = [key for key, each in model.named_parameters() if items in each.shape]
    assert not [key for key in of_items if "feature_embed_layer" not in key]  # every item of `tiny` has a year of its own
    total(model.train().calculate_loss(next(iter(train_data)))).backward()
    assert tower_of(model).project.weight.grad.abs().sum() > 0
    assert torch.isfinite(tower_of(model).project.weight.grad).all()


@pytest.mark.parametrize("name", ["SRGNN", "DHCN", "SASRec"])
def test_the_table_is_a_projection_of_whitened_texts(tiny, name):
    model, _, train_data, _ = built(tiny, name, llm4sbr=False, items="text")
    tower, texts = tower_of(model), texts_of(tiny, train_data.dataset)
    centred = texts[1:] - texts[1:].mean(0)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int((spread**2 > 1e-10 * spread[0] ** 2).sum())
    whitened = tower.space()[1:].double().numpy()
    # the same space as the left singular vectors', each of variance 1 / rank
    assert np.allclose(whitened.T @ whitened, np.eye(rank) * len(centred) / rank, atol=1e-3)
    assert np.allclose(left[:, :rank] @ (left[:, :rank].T @ whitened), whitened, atol=1e-4)
    table = whitened @ tower.project.weight.detach().double().numpy().T
    assert np.allclose(model.item_table[1:].detach().numpy(), table, atol=1e-5)
    assert (model.item_table[0] == 0).all()
    own, _, _, _ = built(tiny, name, llm4sbr=False)
    assert model.item_table[1:].std().item() == pytest.approx(own.item_table[1:].std().item(), rel=0.3)


@pytest.mark.parametrize("start", ["text", "pca"])
def test_a_projection_starts_where_a_table_of_ids_would(tiny, start):
    tower, table = (built(tiny, "SRGNN", llm4sbr=False, item_init=start, items=each)[0] for each in ("text", "id"))
    torch.testing.assert_close(tower.item_table[1:], table.item_table[1:], atol=1e-5, rtol=1e-4)
    assert isinstance(table.item_embedding, torch.nn.Embedding)


@pytest.mark.parametrize("llm4sbr", [False, True])
@pytest.mark.parametrize("name", ["SRGNN", "TAGNN", "GCEGNN", "DHCN", "GRU4Rec", "CORE"])
def test_a_step_projects_once_and_its_gradient_is_that_of_projecting_for_every_use(tiny, name, llm4sbr, monkeypatch):
    found, counts = [], []
    for sharing in (True, False):
        if not sharing:
            monkeypatch.setattr(SessionRecommender, "one_table", lambda _: nullcontext())
        model, _, train_data, _ = built(tiny, name, llm4sbr=llm4sbr, items="text")
        tower_of(model).project.register_forward_hook(lambda *_: counts.append(1))
        torch.manual_seed(5)
        loss = total(model.train().calculate_loss(train_data.dataset[:20]))
        loss.backward()
        found.append(
            {"loss": loss.detach(), **{key: each.grad for key, each in model.named_parameters() if each.grad is not None}}
        )
        assert (len(counts) == 1) is sharing
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_without_gradients_the_table_is_projected_anew_only_when_the_projection_has_changed(tiny):
    model, _, _, test_data = built(tiny, "SRGNN", llm4sbr=False, items="text")
    tower, counts = tower_of(model.eval()), []
    tower.project.register_forward_hook(lambda *_: counts.append(1))
    with torch.no_grad():
        batches = [batch for batch, *_ in test_data]
        before = [model.full_sort_predict(batch) for batch in [*batches, *batches]]
        assert len(counts) == 1
        tower.project.weight.mul_(2.0)
        assert not torch.equal(model.full_sort_predict(batches[0]), before[0])
        model.load_state_dict(model.state_dict())
        model.full_sort_predict(batches[0])
        assert len(counts) == 3


def test_two_losses_may_be_differentiated_one_after_the_other(tiny):
    model, _, train_data, _ = built(tiny, "SRGNN", llm4sbr=False, items="text")
    batch = next(iter(train_data))
    one, two = model.calculate_loss(batch), model.calculate_loss(batch)
    one.backward()
    two.backward()
    assert model.item_embedding.project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "changed",
    [
        {"llm4sbr": False},
        {"llm4sbr": False, "repeatable": False, "similarity": "cosine"},
        {"fusion": "gate+late", "intent_source": "session_text", "item_init": "text"},
        {"llm4sbr": False, "model": "GRU4Rec", "num_layers": 1, "dropout_prob": 0.1, "embedding_dropout": 0.2},
    ],
)
def test_a_checkpoint_scores_as_the_trained_model_did_and_recommends_so(tiny, changed, monkeypatch):
    from recbole_llm4sbr.intent.infer import infer

    settings = tiny | {"items": "text", "epochs": 2} | changed
    if settings["llm4sbr"]:
        infer(settings)
    scored = {}

    def keep(rows):
        scored.update(zip(rows.session.tolist(), rows.rank.tolist()))

    result = train(settings, on_test=keep)
    start = Components.of  # on another machine components might come with the other sign
    monkeypatch.setattr(Components, "of", lambda *given: replace(found := start(*given), directions=-found.directions))
    loaded = load_model(result.checkpoint)
    rows = loaded.test_data.dataset.inter_feat
    scores = loaded.model.full_sort_predict(rows).detach().clone()
    scores[:, 0] = -torch.inf
    target = scores.gather(1, rows["item_id"].unsqueeze(1))
    names = loaded.dataset.field2id_token["session_id"][rows["session_id"].numpy()]
    ranks = ((scores > target).sum(1) + 1).tolist()
    agreeing = [scored[name] == (rank if rank <= 20 else 0) for name, rank in zip(names, ranks)]
    assert np.mean(agreeing) > 0.97  # two items may have one score
    sessions = [row[:length] for row, length in zip(rows["item_id_list"].tolist(), rows["item_length"].tolist())]
    again, _ = Recommender.load(result.checkpoint).scores(sessions)
    torch.testing.assert_close(again[:, 1:], scores[:, 1:], atol=1e-5, rtol=1e-5)


def test_a_model_that_trains_nothing_refuses_a_tower(tiny):
    with pytest.raises(UserError, match="LLMSeqSim has no backbone to enhance or to switch"):
        check_runnable(tiny | {"model": "LLMSeqSim", "llm4sbr": False, "items": "text"})


def test_a_recommender_without_item_embedding_is_told_what_to_define(tiny):
    model, _, train_data, _ = built(tiny, "SRGNN", llm4sbr=False)
    del model.item_embedding
    with pytest.raises(UserError, match="SRGNN has no item_embedding"):
        model.take_items(TextItems(torch.randn(train_data.dataset.item_num, 4), torch.randn(9, 3), "random"))
