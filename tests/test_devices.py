"""What stands in for a GPU: in a step no tensor is made on another device than the batch's, and none is copied to the host."""

import pytest
import torch
from test_contract import ADAPTED, CUT, built

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.experiment.cells import Cell, _child
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.model.backbones import BACKBONES
from recbole_llm4sbr.model.baselines import BASELINES
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.gpus import gpus

FUSIONS = ["gate", "residual", "concat", "late", "gate+late", "boost", "gate+late+boost"]
ON_THE_HOST = {
    "GCSAN",
    "FEARec",
}  # RecBole's graph builder goes over numpy arrays, its FEARec makes a mask on the host in every step
STEPS = [
    *((name, {"llm4sbr": llm4sbr}) for name in sorted({*BACKBONES, *ADAPTED, *CUT} - ON_THE_HOST) for llm4sbr in (False, True)),
    *(
        ("SRGNN", {"fusion": fusion, "label_smoothing": 0.1, "session_dropout": 0.2, "embedding_dropout": 0.2})
        for fusion in FUSIONS
    ),
    *(("SRGNN", {"similarity": "cosine", "intent_weighting": "softmax", "intent_k": k}) for k in (0, 5)),
    ("GCEGNN", {"hop": 2}),
    *((name, {"llm4sbr": False, "items": "text"}) for name in sorted({*BACKBONES, *ADAPTED, *CUT} - ON_THE_HOST)),
    ("SRGNN", {"items": "text", "fusion": "gate+late", "embedding_dropout": 0.2}),
]


@pytest.fixture
def no_way_to_the_host(monkeypatch):
    def refuse(name):
        def forbidden(*_, **__):
            raise AssertionError(f"Tensor.{name} in a step")

        return forbidden

    for name in ("numpy", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse(name))


def step(model, batch):
    """A training step and an evaluation step, under a default device on which nothing can be computed."""
    model.train()
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad] or [torch.zeros(1)])
    with torch.device("meta"):
        loss = model.calculate_loss(batch)
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
    optimizer.step()  # PyTorch 2.6 makes its count of steps on the default device
    with torch.device("meta"):
        scores = model.eval().full_sort_predict(batch)
    return loss, scores


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "own"), STEPS)
def test_a_step_stays_on_the_device_of_its_batch(tiny, request, name, own):
    model, _, train, _ = built(tiny, name, **{"repeatable": False, **own})
    batch = next(iter(train))
    request.getfixturevalue("no_way_to_the_host")
    _, scores = step(model, batch)
    assert scores.device == batch["item_id"].device
    assert scores.shape[0] == len(batch)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("items", ["id", "text"])
def test_cold_items_are_read_and_ranked_on_the_device_of_their_batch(tiny, request, items):
    model, _, train, _ = built(tiny, "GCEGNN", items=items)
    batch = next(iter(train))
    known = train.dataset.item_num
    model.take_cold(torch.randn(2, 16))
    batch["item_id_list"][::3, 0] = known
    request.getfixturevalue("no_way_to_the_host")
    with torch.device("meta"):
        scores = model.eval().full_sort_predict(batch)
    assert scores.device == batch["item_id"].device
    assert scores.shape == (len(batch), known + 2)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_model_without_training_ranks_on_the_device_of_its_batch(tiny, request, name):
    model, _, train, _ = built(tiny, name, llm4sbr=False)
    batch = next(iter(train))
    request.getfixturevalue("no_way_to_the_host")
    with torch.device("meta"):
        assert model.eval().full_sort_predict(batch).device == batch["item_id"].device


def test_the_stand_in_notices_a_tensor_made_elsewhere_and_a_copy_to_the_host(tiny, request):
    model, _, train, _ = built(tiny, "SRGNN", llm4sbr=False)
    batch = next(iter(train))
    request.getfixturevalue("no_way_to_the_host")
    score = model.score
    model.score = lambda *given: score(*given) + torch.zeros(1)
    with pytest.raises(RuntimeError, match="meta"):
        step(model, batch)
    model.score = lambda *given: score(*given) * float(score(*given).cpu().sum())
    with pytest.raises(AssertionError, match=r"Tensor\.cpu in a step"):
        step(model, batch)


@pytest.fixture
def three_gpus(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(
    ("chosen", "device"),
    [({}, "cuda:0"), ({"gpu_id": 0}, "cuda:0"), ({"gpu_id": 2}, "cuda:2"), ({"gpu_id": "2,1"}, "cuda:2"),
     ({"gpu_id": [1]}, "cuda:1"), ({"gpu_id": ""}, "cpu"),
     ({"gpu_id": "1", "use_gpu": False}, "cpu"), ({"gpu_id": "2,1", "local_rank": 1}, "cuda:1"), ({"local_rank": 2}, "cuda:2")],
)  # fmt: skip
def test_a_run_trains_on_the_gpu_that_it_is_told(tiny, chosen, device):
    settings = {key: value for key, value in tiny.items() if key != "gpu_id"} | chosen
    config = SessionConfig(settings)
    assert str(config["device"]) == device
    there = config["given"]  # on another machine
    assert there.get("gpu_id", "none") == ("" if chosen.get("gpu_id") == "" else "none")


@pytest.mark.usefixtures("three_gpus")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"gpu_id=0,7: there is no GPU 7; 3 are visible, numbered from 0"):
        gpus({"gpu_id": "0,7"})


@pytest.mark.usefixtures("three_gpus")
@pytest.mark.parametrize(("chosen", "used"), [({}, ["0", "1", "2", "0"]), ({"gpu_id": "2,1"}, ["2", "1", "2", "1"])])
def test_workers_take_turns_on_the_gpus(tiny, monkeypatch, chosen, used):
    settings, seen = {key: value for key, value in tiny.items() if key != "gpu_id"} | chosen, []

    class Parent:
        def recv(self):
            raise SystemExit  # of the thread that waits for it

        def send(self, result):
            seen.append(result)

    monkeypatch.setattr("recbole_llm4sbr.experiment.cells._run", lambda _, settings, __: settings["gpu_id"])
    monkeypatch.setattr("logging.disable", lambda *_: None)
    cell = Cell("", "tiny", "SRGNN", "plain", 1, "", settings)
    for slot in range(4):
        _child(Parent(), cell, settings, torch.get_num_threads(), slot)
    assert seen == used


def test_on_a_cluster_the_choice_of_gpus_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="gpu_id=1: Ray deals out the GPUs"):
        compare({"": ["plain"]}, ["SRGNN"], ["tiny"], 1, tiny | {"gpu_id": "1", "ray_address": "auto"}, tmp_path)
