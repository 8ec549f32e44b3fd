"""The enhanced model against the paper's formulas 4-15, derived again in numpy (float64) from the files on disk."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import file_of

from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.model import build_model
from recbole_llm4sbr.training.run import load_data


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def table(settings, name):
    frame = pd.read_csv(file_of(settings, name), sep="\t", dtype=str, keep_default_na=False)
    return frame.rename(columns=lambda column: column.partition(":")[0])


def intents_from_files(settings, tokens, k):
    """Formula 5 (k > 0) or the answer's own vector (k = 0) per session token and view."""
    items = {row.iid: np.array(row.item_emb.split(), float) for row in table(settings, "tiny.itememb").itertuples()}
    answers = {row.intent_id: np.array(row.intent_emb.split(), float) for row in table(settings, "tiny.intentemb").itertuples()}
    sessions = table(settings, "tiny.sessemb").set_index("sid")
    dim = len(next(iter(items.values())))
    result = {}
    for view in ("long", "short"):
        rows = []
        for token in tokens:
            if k == 0:
                rows.append(answers.get(sessions.loc[token, f"{view}_intent"], np.zeros(dim)))
                continue
            near = sessions.loc[token, f"{view}_items"].split()[:k]
            sims = map(float, sessions.loc[token, f"{view}_sims"].split()[:k])
            rows.append(sum((sim * items[item] for sim, item in zip(sims, near)), np.zeros(dim)))
        result[view] = np.array(rows)
    return result


@pytest.mark.parametrize("k", [0, 1, 5, 10])
def test_loss_and_scores_equal_the_paper_in_numpy(tiny, k):
    settings = tiny | {"intent_k": k, "intent_lambda": 0.3, "train_targets": "last"}
    config, _, (train, _, _) = load_data(settings)
    model = build_model(config, train.dataset).double()
    batch = next(iter(train))
    tokens = train.dataset.id2token("session_id", batch["session_id"])
    intents = intents_from_files(settings, tokens, k)
    given = {key: value.numpy() for key, value in model.state_dict().items()}
    embeddings = model.backbone.encode(batch)
    local, whole = embeddings.local_emb.detach().numpy(), embeddings.global_emb.detach().numpy()  # (6)
    t = {view: intents[view] @ given["project.weight"].T + given["project.bias"] for view in intents}  # (7)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def uniform(x):
        x = unit(x)
        return np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i in range(len(x)) for j in range(i + 1, len(x))]))

    au = sum(
        np.mean(np.sum((unit(h) - unit(t[view])) ** 2, 1)) + (uniform(h) + uniform(t[view])) / 2
        for h, view in ((whole, "long"), (local, "short"))
    )  # (8, 9)
    a_long = sigmoid(whole + t["long"]) @ given["gates.global.weight"].T  # (10)
    a_short = sigmoid(local + t["short"]) @ given["gates.local.weight"].T  # (11)
    mixed = np.concatenate([a_long * whole, a_short * local], 1)
    session = mixed @ given["backbone.linear_transform.weight"].T + given["backbone.linear_transform.bias"]  # (12)
    scores = session @ given["backbone.item_embedding.weight"].T  # (13)
    shifted = scores - scores.max(1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    cross_entropy = -log_softmax[np.arange(len(scores)), batch["item_id"].numpy()].mean()  # (14)
    loss = model.calculate_loss(batch)  # (15)
    np.testing.assert_allclose(model.full_sort_predict(batch).detach().numpy(), scores, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([part.item() for part in loss], [cross_entropy, 0.3 * au], rtol=1e-5)


def test_a_smaller_k_gives_what_files_made_for_that_k_give(settings_for, tmp_path):
    scores = {}
    for name, changed in (
        ("ten", {"intent_k_max": 10}),
        ("three", {"intent_k_max": 3, "atomic_path": str(tmp_path / "three")}),
    ):
        settings = settings_for(intent_k=3, **changed)
        prepare(settings)
        infer(settings)
        config, _, (train, _, test) = load_data(settings)
        torch.manual_seed(0)
        model = build_model(config, train.dataset)
        scores[name] = torch.cat([model.full_sort_predict(batch) for batch, *_ in test])
    torch.testing.assert_close(scores["ten"], scores["three"], rtol=0, atol=0)


def test_sessions_without_an_intent_have_zero_intents_and_no_part_in_the_auxiliary_loss(settings_for):
    settings = settings_for(max_sessions=30)
    prepare(settings)
    infer(settings)
    config, _, (train, _, _) = load_data(settings)
    model = build_model(config, train.dataset)
    batch = next(iter(train))
    vectors, known = model.intents(batch["session_id"])
    assert 0 < known.sum() < known.numel()
    assert (vectors[known == 0] == 0).all()
    assert (vectors[known == 1].norm(dim=-1) > 0).all()
    rows = known[:, 0].bool()
    whole = model.encode(batch)
    part = model.encode(batch[rows])
    torch.testing.assert_close(model.extra_losses(whole, batch)[0], model.extra_losses(part, batch[rows])[0])


def test_softmax_weights_sum_to_one(tiny):
    config, _, (train, _, _) = load_data(tiny | {"intent_weighting": "softmax"})
    model = build_model(config, train.dataset)
    ids = next(iter(train))["session_id"]
    model.intents.item_emb.fill_(1.0)  # so that an intent is the sum of its weights
    vectors, known = model.intents(ids)
    torch.testing.assert_close(vectors[..., 0], known)
    assert known.sum() > 0


def test_lambda_zero_leaves_cross_entropy_alone(tiny):
    config, _, (train, _, _) = load_data(tiny | {"intent_lambda": 0})
    loss = build_model(config, train.dataset).calculate_loss(next(iter(train)))
    assert isinstance(loss, torch.Tensor)
