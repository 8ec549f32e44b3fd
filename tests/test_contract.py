"""What every model must do, plain and enhanced: the adapted models of RecBole, ours, and the wrapper around each."""

import importlib
import pkgutil

import pytest
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import model_defaults
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.model import SessionIntents, build_model, check_wrappable, model_class
from recbole_llm4sbr.model.adapter import REFUSED, AdaptedRecommender
from recbole_llm4sbr.model.backbones import BACKBONES
from recbole_llm4sbr.training.run import load_data

ADAPTED = ["GCSAN", "GRU4Rec", "LightSANs", "NARM", "NextItNet", "SASRec", "SINE"]
WITH_FEATURES = ["FDSA", "GRU4RecF", "SASRecF"]
HELD = ["CORE", "FEARec"]  # RecBole's models that are adapted when they are plain, too
# Whose session embedding does not read the places behind the last click.
CUT = [
    "CORE",
    "FDSA",
    "GCSAN",
    "GRU4Rec",
    "GRU4RecF",
    "NARM",
    "SASRec",
    "SASRecF",
]
SMALL = {"n_heads": 2, "n_layers": 1, "inner_size": 16, "num_layers": 1, "block_num": 1, "dilations": [1, 2], "k_interests": 3,
         "prototype_size": 8, "interest_size": 2, "loss_type": "CE"}  # fmt: skip
OWN = {"FEARec": {"n_layers": 2}}
# Parameters that the original model itself never uses in its loss.
IDLE = {
    "SINE": ("C.", "w3", "w4"),
    "GCSAN": ("self_attention.layer.0.multi_head_attention.key.bias",),  # a bias of keys cancels in softmax
    "CORE": ("multi_head_attention.key.bias", "net.fn.bias"),  # so does one of the weights of clicks
    "FEARec": ("key_layer.bias", "query_layer.bias"),  # and the constant that both add to every delay's autocorrelation
}


pytestmark = pytest.mark.usefixtures("one_thread")  # FEARec's many small Fourier transforms wait for each other's threads


def features(settings):
    return settings | {"load_col": {"item": ["item_id", "year"]}, "selected_features": ["year"], "pooling_mode": "mean"}


def built(settings, model, **changed):
    name = class_name(model)
    settings = (features(settings) if name in WITH_FEATURES else settings) | model_defaults(name)
    settings |= {"model": model} | SMALL | OWN.get(name, {}) | changed
    config, _, (train, _, test) = load_data(settings)
    torch.manual_seed(3)
    return build_model(config, train.dataset), config, train, test


def both(settings, name, **changed):
    """RecBole's own object in evaluation mode and an adapter around it, with the training and the test data."""
    original, config, train, test = built(settings, f"recbole.model.sequential_recommender:{name}", llm4sbr=False, **changed)
    assert type(original).__module__.startswith("recbole.")
    return original.eval(), AdaptedRecommender(config, train.dataset, original).eval(), train, test


def interaction_of(train):
    return next(iter(train))


@pytest.mark.parametrize("name", ADAPTED + WITH_FEATURES + HELD)
def test_an_adapted_model_scores_as_the_original(tiny, name):
    original, adapted, _, test = both(tiny, name)
    for batch, *_ in test:
        torch.testing.assert_close(adapted.full_sort_predict(batch), original.full_sort_predict(batch), atol=1e-5, rtol=1e-5)
        if name != "CORE":  # whose predict disagrees with its own full sort (tests/test_more_backbones.py)
            torch.testing.assert_close(adapted.predict(batch), original.predict(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ADAPTED + WITH_FEATURES + HELD)
def test_an_adapted_models_losses_add_up_to_the_originals(tiny, name):
    original, adapted, train, _ = both(tiny, name, contrast="un")  # the contrast of FEARec in which nothing is drawn at random
    batch = interaction_of(train)
    loss = adapted.calculate_loss(batch)
    total = sum(loss) if isinstance(loss, tuple) else loss
    torch.testing.assert_close(total, original.calculate_loss(batch), atol=1e-5, rtol=1e-5)


def as_trained(model):
    """All parameters random, the padding row too: at the start of training some are zero, and hide what they do."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("groups", [1, 3, 100])
def test_without_most_of_the_padding_scores_loss_and_gradients_are_the_same(tiny, name, groups):
    _, adapted, train, test = both(tiny, name, num_layers=2)
    as_trained(adapted)
    assert adapted.ignores_padding
    batch, found = interaction_of(train), []
    for cut in (False, True):
        adapted.ignores_padding, adapted._groups, adapted._lengths = cut, groups, None
        adapted.zero_grad()
        loss = adapted.calculate_loss(batch)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        scores = [adapted.full_sort_predict(each[0]).detach() for each in test]
        found.append((loss.detach(), scores, {key: each.grad.clone() for key, each in adapted.named_parameters()}))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)  # CORE's scores are cosines over 0.07, up to 14


@pytest.mark.parametrize("name", sorted({*ADAPTED, *WITH_FEATURES, *HELD} - set(CUT)))
def test_models_that_read_padding_are_left_whole(tiny, name):
    _, adapted, _, test = both(tiny, name)
    as_trained(adapted)
    batch = next(iter(test))[0]
    assert not adapted.ignores_padding
    whole = adapted.full_sort_predict(batch)
    adapted.ignores_padding = True
    try:
        changed = not torch.allclose(adapted.full_sort_predict(batch), whole, atol=1e-6, rtol=1e-5)
    except (RuntimeError, AssertionError, IndexError):
        changed = True  # its layers have the width of a whole session
    assert changed, "it could be cut"


def test_a_class_of_ones_own_is_left_whole_unless_it_says_that_it_ignores_padding(tiny):
    original, config, train, _ = built(tiny, "recbole.model.sequential_recommender:SASRec", llm4sbr=False)

    class Mine(type(original)):
        def forward(self, item_seq, item_seq_len):
            return super().forward(item_seq, item_seq_len)

    assert not AdaptedRecommender(config, train.dataset, Mine(config, train.dataset)).ignores_padding
    Mine.ignores_padding = True
    assert AdaptedRecommender(config, train.dataset, Mine(config, train.dataset)).ignores_padding


@pytest.mark.parametrize(
    "own", [{"llm4sbr": True}, {"llm4sbr": False}, {"llm4sbr": False, "items": "text"}], ids=["enhanced", "plain", "text tower"]
)
@pytest.mark.parametrize("name", [*BACKBONES, *ADAPTED])
class TestEveryModel:
    def test_padding_batch_order_and_batch_size_do_not_change_scores(self, tiny, name, own):
        model, _, train, test = built(tiny, name, **own)
        model.eval()
        batch = next(iter(test))[0]
        scores = model.full_sort_predict(batch)
        assert scores.shape == (len(batch), train.dataset.item_num)
        order = torch.arange(len(batch)).flip(0)
        torch.testing.assert_close(model.full_sort_predict(batch[order]).flip(0), scores, atol=1e-5, rtol=1e-4)
        one_by_one = torch.cat([model.full_sort_predict(batch[n : n + 1]).view(1, -1) for n in range(len(batch))])
        torch.testing.assert_close(one_by_one, scores, atol=1e-5, rtol=1e-4)

    def test_predict_agrees_with_full_sort(self, tiny, name, own):
        model, _, train, _ = built(tiny, name, **own)
        model.eval()
        for batch in (train.dataset[:20], train.dataset[:1]):
            scores = model.full_sort_predict(batch).view(len(batch), -1)
            torch.testing.assert_close(
                model.predict(batch), scores[torch.arange(len(batch)), batch["item_id"]], atol=1e-5, rtol=1e-5
            )

    def test_one_session_gives_finite_loss_and_gradients(self, tiny, name, own):
        model, _, train, _ = built(tiny, name, **own)
        model.train()
        loss = model.calculate_loss(train.dataset[:1])
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key

    def test_gradients_reach_every_parameter(self, tiny, name, own):
        model, _, train, _ = built(tiny, name, **own)
        if getattr(model, "beside", None) is not None:
            torch.nn.init.normal_(model.beside.weight)  # it starts at zero, and the local gate is read through it alone
        model.train()
        for batch in train:
            loss = model.calculate_loss(batch)
            (sum(loss) if isinstance(loss, tuple) else loss).backward()
        for key, parameter in model.named_parameters():
            if not any(idle in key for idle in IDLE.get(name, ())):
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


# RecBole's transformers have a table of positions no wider than MAX_ITEM_LIST_LENGTH, and FEARec transforms the padded width.
@pytest.mark.parametrize("name", [*(name for name in BACKBONES if name not in HELD), "GRU4Rec"])
def test_more_padding_does_not_change_scores(tiny, name):
    model, _, _, test = built(tiny, name)
    model.eval()
    batch = next(iter(test))[0]
    wide = {key: batch[key] for key in ("session_id", "item_length")}
    wide["item_id_list"] = torch.nn.functional.pad(batch["item_id_list"], (0, 7))
    torch.testing.assert_close(model.full_sort_predict(wide), model.full_sort_predict(batch), atol=1e-5, rtol=1e-5)


def test_every_sequential_model_of_recbole_is_adapted_or_refused_with_a_reason():
    package = importlib.import_module("recbole.model.sequential_recommender")
    names = [name for name in dir(package) if name[0].isupper()]
    assert len(names) > 20
    assert len(list(pkgutil.iter_modules(package.__path__))) >= len(names)
    for name in names:
        if name in [*BACKBONES, *ADAPTED, *WITH_FEATURES]:
            check_wrappable(model_class(name))
        else:
            with pytest.raises(UserError, match=f"{name} cannot be wrapped: .*--llm4sbr=false"):
                check_wrappable(model_class(name))
    assert set(REFUSED) <= set(names)


def test_an_unknown_model_names_its_neighbours():
    with pytest.raises(UserError, match=r"'SRGN' is unknown; did you mean SRGNN"):
        model_class("SRGN")
    with pytest.raises(UserError, match="cannot be imported"):
        model_class("no_such_package:Model")
    assert model_class("recbole_llm4sbr.model.backbones.srgnn:SRGNN") is BACKBONES["SRGNN"]


@pytest.mark.parametrize("views", [["long"], ["short"], ["normal"]])
def test_views_can_be_left_out(tiny, views):
    if "normal" in views:
        infer(tiny | {"views": views})
    model, _, train, _ = built(tiny | {"views": views}, "SRGNN")
    assert set(model.gates) == {{"long": "global", "short": "local", "normal": "session"}[view] for view in views}
    assert len(model.calculate_loss(interaction_of(train))) == 2


def test_two_views_of_one_embedding_are_refused(tiny):
    with pytest.raises(UserError, match="at most one view per embedding"):
        config, _, (train, _, _) = load_data(tiny)
        from recbole_llm4sbr.model import LLM4SBRWrapper

        config["views"] = ["long", "normal"]
        backbone = BACKBONES["SRGNN"](config | {"step": 1} if isinstance(config, dict) else config, train.dataset)
        LLM4SBRWrapper(
            config, train.dataset, backbone, SessionIntents(torch.zeros(2, 3), torch.zeros(2, 2, 1), torch.zeros(2, 2, 1))
        )
