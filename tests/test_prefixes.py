"""Every prefix of a session is trained on: its rows, in one pass where a model reads from left to right, and no test click among them."""

import pytest
import torch
from conftest import session_rows as file_rows

from recbole_llm4sbr.data.folders import dataset_folder, part_file
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.model import build_model
from recbole_llm4sbr.model.prefixes import TARGETS
from recbole_llm4sbr.training.run import load_data, load_dataset

LEFT_TO_RIGHT = ["GRU4Rec", "SASRec", "NARM", "CORE", "GRU4RecF", "SASRecF", "FDSA"]
FEATURES = {"load_col": {"item": ["item_id", "year"]}, "selected_features": ["year"]}


def without_dropout(model):
    for module in model.modules():
        if hasattr(module, "p") and type(module).__name__ == "Dropout":
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return model.double()


def whole_sessions(settings):
    """The prepared sessions of train by name, from the file that holds their last targets."""
    rows = file_rows(dataset_folder(settings), settings["dataset"], part_file("train", "last"))
    return {name.rpartition(".")[0]: [*prefix, target] for name, prefix, target in rows}


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("name", LEFT_TO_RIGHT)
def test_the_loss_of_sessions_is_the_loss_of_their_prefixes_one_by_one(name, repeatable, enhanced, tiny):
    features = FEATURES if name in ("GRU4RecF", "SASRecF", "FDSA") else {}
    settings = tiny | {
        "model": name, "repeatable": repeatable, "llm4sbr": enhanced, "intent_source": "session_text", "intent_refresh": "every",
        "MAX_ITEM_LIST_LENGTH": 5, "rebuild": True, **features,
    }  # fmt: skip
    prepare(settings)
    if enhanced:
        infer(settings)
    config, dataset = load_dataset(settings)
    prefixes = dataset.build()[0]
    _, _, (train_data, _, _) = load_data(settings)
    sessions = train_data.dataset.inter_feat
    assert TARGETS in sessions.interaction and len(sessions) < len(prefixes.inter_feat)
    torch.manual_seed(3)
    model = without_dropout(build_model(config, prefixes)).train()
    apart, together = model.calculate_loss(prefixes.inter_feat), model.calculate_loss(sessions)
    parts = [torch.stack([*each]) if isinstance(each, tuple) else each for each in (apart, together)]
    torch.testing.assert_close(parts[1], parts[0], rtol=1e-6, atol=1e-6)


def test_rows_hold_every_prefix_once_with_its_newest_clicks(settings_for):
    settings = settings_for(MAX_ITEM_LIST_LENGTH=3)
    prepare(settings)
    expected = {
        f"{name}.{n}": (clicks[max(0, n - 3) : n], clicks[n])
        for name, clicks in whole_sessions(settings).items()
        for n in range(1, len(clicks))
    }
    assert max(map(len, whole_sessions(settings).values())) > 5
    rows = file_rows(dataset_folder(settings), "tiny", "train")
    assert {name: (prefix, target) for name, prefix, target in rows} == expected and len(rows) == len(expected)
