"""Switches, controls and LLM baselines against loops and formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import file_of
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.features import read_vectors
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.model import IntentFiles, SessionIntents, build_model
from recbole_llm4sbr.model.intents import exchanged
from recbole_llm4sbr.model.text_space import Components, project_texts
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.training.loading import load_model
from recbole_llm4sbr.training.run import load_data, train


def built(settings):
    """Model, dataset and a test batch."""
    config, _, (train_data, _, test_data) = load_data(settings)
    torch.manual_seed(0)
    model = build_model(config, train_data.dataset).eval()
    return model, train_data.dataset, next(iter(test_data))[0]


def texts_of(settings, dataset):
    """Unit text vectors in the order of RecBole's item ids, zeros for padding, read by hand."""
    tokens, vectors = read_vectors(dataset_folder(settings) / "tiny.itememb")
    of = dict(zip(tokens, vectors))
    rows = [np.zeros(vectors.shape[1])] + [of[token] for token in dataset.field2id_token["item_id"][1:]]
    return np.array(rows, np.float64)


def clicks_of(batch):
    return [seq[:length].tolist() for seq, length in zip(batch["item_id_list"], batch["item_length"])]


def test_whitened_texts_span_what_the_singular_vectors_span():
    torch.manual_seed(3)
    vectors = torch.randn(50, 12) * torch.arange(1.0, 13)
    centred = (vectors - vectors.mean(0)).numpy().astype(np.float64)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)
    found = project_texts(vectors, 5, whiten=True).double().numpy()
    assert np.allclose(np.abs(found.T @ left[:, :5]), np.eye(5) * np.sqrt(50), atol=1e-3)
    kept = project_texts(vectors, 5, whiten=False).double().numpy()
    assert np.allclose(kept.std(0) / kept.std(0)[0], spread[:5] / spread[0], atol=1e-4)
    assert (kept**2).mean() == pytest.approx(1, abs=1e-4)
    assert project_texts(vectors[:, :1].repeat(1, 4), 4, whiten=True).shape == (50, 1)  # what spans less gives less


@pytest.mark.parametrize("name", ["SRGNN", "GRU4Rec", "DHCN"])
@pytest.mark.parametrize("enhanced", [False, True])
def test_the_item_table_starts_from_text_in_the_models_own_spread(name, enhanced, tiny, settings_for):
    given = {"model": name, "llm4sbr": enhanced}
    plain = built(settings_for(**given))[0]
    model, dataset, _ = built(settings_for(**given, item_init="text"))
    own = next(value for name, value in plain.named_parameters() if name.endswith("item_embedding.weight"))[1:].detach()
    table = model.item_table[1:].detach()
    assert table.std() == pytest.approx(own.std().item(), rel=0.15)
    texts = texts_of(tiny, dataset)[1:]
    unlike = np.corrcoef(texts)[np.triu_indices(len(texts), 1)]
    assert abs(np.corrcoef(unlike, np.corrcoef(table.numpy())[np.triu_indices(len(texts), 1)])[0, 1]) > 0.3
    assert model.item_table.requires_grad


def test_items_without_a_text_keep_their_own_start(tiny, settings_for):
    path = dataset_folder(tiny) / "tiny.itememb"
    lines = path.read_text().splitlines()
    token = lines[1].split("\t")[0]
    lines[1] = f"{token}\t{' '.join(['0'] * len(lines[1].split(chr(9))[1].split(' ')))}"
    path.write_text("\n".join(lines) + "\n")
    models = [built(settings_for(llm4sbr=False, item_init=each)) for each in ("random", "text")]
    row = list(models[0][1].field2id_token["item_id"]).index(token)
    tables = [model.item_table.detach() for model, _, _ in models]
    assert torch.equal(tables[0][row], tables[1][row])
    assert (tables[0] != tables[1]).any(1).sum() == len(tables[0]) - 2  # all but that one and the padding


@pytest.mark.parametrize("name", ["SRGNN", "GCEGNN", "DHCN", "GRU4Rec", "SASRec"])
def test_cosine_scores_are_cosines_over_the_temperature(name, tiny, settings_for):
    model, _, batch = built(settings_for(model=name, llm4sbr=False, similarity="cosine", temperature=0.5))
    scores = model.full_sort_predict(batch)
    embeddings = model.encode(batch)
    session = model.fuse(embeddings, batch)
    items = embeddings.memo[0] if name == "DHCN" else model.item_table
    expected = [[torch.cosine_similarity(s, v, dim=0) / 0.5 for v in items] for s in session[:3]]
    assert torch.allclose(scores[:3, 1:], torch.tensor(expected)[:, 1:], atol=1e-5)


def test_tagnn_refuses_cosine_at_the_door(settings_for):
    with pytest.raises(UserError, match="TAGNN cannot score by similarity=cosine"):
        train(settings_for(model="TAGNN", llm4sbr=False, similarity="cosine"))


def test_residual_adds_the_projected_intents_and_concat_a_layer_over_them_that_starts_at_zero(tiny, settings_for):
    model, _, batch = built(settings_for(fusion="residual"))
    plain = model.backbone.fuse(model.backbone.encode(batch), batch)
    intents, known = model.intents(batch["session_id"])
    added = plain + sum(model.project(intents[:, view]) * known[:, view : view + 1] for view in (0, 1))
    assert torch.allclose(model.fuse(model.encode(batch), batch), added, atol=1e-5)
    model, _, batch = built(settings_for(fusion="concat"))
    plain = model.backbone.fuse(model.backbone.encode(batch), batch)
    parts = [plain, *(model.project(intents[:, view]) * known[:, view : view + 1] for view in (0, 1))]
    assert torch.allclose(model.fuse(model.encode(batch), batch), plain, atol=1e-6)
    torch.nn.init.normal_(model.beside.weight)
    torch.nn.init.normal_(model.beside.bias)
    expected = plain + torch.cat(parts, 1) @ model.beside.weight.T + model.beside.bias
    assert torch.allclose(model.fuse(model.encode(batch), batch), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["GCEGNN", "DHCN", "STAMP", "BSARec", "GRU4Rec"])
def test_the_gate_of_a_backbone_without_a_mixing_layer_starts_from_the_backbone(name, tiny, settings_for):
    model, _, batch = built(settings_for(model=name, fusion="gate", views=["long", "short"]))
    own = model.backbone.encode(batch)
    intents, _ = model.intents(batch["session_id"])
    gated = []
    for view, (part, embedding) in enumerate((("global", own.global_emb), ("local", own.local_emb))):
        gate = torch.sigmoid(embedding + model.project(intents[:, view])) @ model.gates[part].weight.T
        assert ((gate > 0.7) & (gate < 1.3)).all()
        gated.append(gate * embedding)
    session = model.fuse(model.encode(batch), batch)
    assert torch.allclose(session, gated[0], atol=1e-6)  # the backbone's session embedding is its global one
    torch.nn.init.normal_(model.beside.weight)
    torch.nn.init.normal_(model.beside.bias)
    added = torch.cat(gated, 1) @ model.beside.weight.T + model.beside.bias
    assert torch.allclose(model.fuse(model.encode(batch), batch), gated[0] + added, atol=1e-4)


@pytest.mark.parametrize("fusion", ["late", "gate+late"])
def test_late_intents_score_the_items_in_the_text_space_beside_the_backbone(fusion, tiny, settings_for):
    model, dataset, batch = built(settings_for(fusion=fusion))
    early = built(settings_for(fusion="gate", llm4sbr=fusion != "late"))[0]  # same seed, same start
    early.load_state_dict({key: value for key, value in model.state_dict().items() if key in early.state_dict()}, strict=False)
    if fusion == "late":
        early.load_state_dict(model.backbone.state_dict())
    alone = early.full_sort_predict(batch)
    assert torch.allclose(model.full_sort_predict(batch), alone, atol=1e-6)  # the projection starts at zero
    torch.nn.init.normal_(model.late.weight)
    texts = texts_of(tiny, dataset)[1:]
    centred = texts - texts.mean(0)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    size = model.item_table.size(1)
    space = model.texts()[1:].double().numpy()
    spread = model.item_table[1:].std().item()  # whitened components, in the spread of the model's own table
    assert np.allclose(np.abs(space.T @ left[:, :size]), np.eye(size) * np.sqrt(len(texts)) * spread, atol=1e-2 * spread)
    intents, known = model.intents(batch["session_id"])
    late = sum(
        known[:, view, None]
        * (intents[:, view] @ model.late.weight[:, view * intents.size(2) : (view + 1) * intents.size(2)].T)
        for view in (0, 1)
    )
    assert torch.allclose(model.full_sort_predict(batch)[:, 1:], (alone + late @ model.texts().T)[:, 1:], atol=1e-4)


def test_a_late_checkpoint_scores_as_it_did_in_whatever_space_a_new_model_would_start(tiny, settings_for, monkeypatch):
    result = train(settings_for(fusion="gate+late"))
    first = load_model(result.checkpoint)
    batch = next(iter(first.test_data))[0]
    start = Components.of
    monkeypatch.setattr(Components, "of", lambda *given: replace(found := start(*given), directions=-found.directions))
    torch.manual_seed(99)
    again = load_model(result.checkpoint)
    assert again.model.late.weight.abs().sum() > 0
    assert torch.equal(again.model.full_sort_predict(batch), first.model.full_sort_predict(batch))


@pytest.mark.parametrize("fusion", ["boost", "gate+boost", "gate+late+boost"])
def test_boost_raises_the_items_nearest_to_the_intents_and_no_others(fusion, tiny, settings_for):
    before = fusion.removesuffix("+boost") if "+" in fusion else "gate"
    model, _, batch = built(settings_for(fusion=fusion, repeatable=True))
    early = built(settings_for(fusion=before, llm4sbr=fusion != "boost", repeatable=True))[0]
    own = model.state_dict() if fusion != "boost" else model.backbone.state_dict()
    early.load_state_dict({key: value for key, value in own.items() if not key.startswith("boost.")})
    alone = early.full_sort_predict(batch)
    assert torch.allclose(model.full_sort_predict(batch), alone, atol=1e-6)  # it starts at zero
    torch.nn.init.normal_(model.boost.weight)
    torch.nn.init.normal_(model.boost.bias)
    session = model.fuse(model.encode(batch), batch)
    expected = alone.clone()
    k = model.intents.nearest.size(2)
    for row, number in enumerate(batch["session_id"].tolist()):
        for view in (0, 1):
            for rank in range(k):
                place = view * k + rank
                trust = model.boost.weight[place] @ session[row] + model.boost.bias[place]
                item = int(model.intents.nearest[number, view, rank])
                expected[row, item] += model.intents.sims[number, view, rank] * trust
    assert not torch.allclose(expected, alone, atol=0.1)
    assert torch.allclose(model.full_sort_predict(batch)[:, 1:], expected[:, 1:], atol=1e-4)
    model.train()
    loss = model.calculate_loss(batch)
    sum(loss if isinstance(loss, tuple) else [loss]).backward()
    assert model.boost.weight.grad.abs().sum() > 0


def test_boost_needs_items_to_raise(tiny, settings_for):
    with pytest.raises(UserError, match=r"fusion='gate\+boost' raises the items nearest to an intent.*intent_k=0"):
        train(settings_for(fusion="gate+boost", intent_k=0))
    nothing, _, batch = built(settings_for(fusion="boost", intent_source="none"))
    alone = nothing.full_sort_predict(batch)
    torch.nn.init.normal_(nothing.boost.bias)
    assert torch.equal(nothing.full_sort_predict(batch)[:, 1:], alone[:, 1:])


def test_late_fusion_without_alignment_has_no_layer_that_nothing_trains(tiny, settings_for):
    model, _, batch = built(settings_for(fusion="late", intent_lambda=0.0))
    assert model.project is None and not model.gates and model.beside is None
    model.train().calculate_loss(batch).backward()
    assert all(each.grad is not None for each in model.parameters())
    assert model.late.weight.grad.abs().sum() > 0
    nothing, _, batch = built(settings_for(fusion="late", intent_source="none"))
    assert nothing.late is None and torch.isfinite(nothing.full_sort_predict(batch)[:, 1:]).all()


def test_dropout_and_smoothing_change_training_and_not_the_scores(tiny, settings_for):
    given = {"embedding_dropout": 0.5, "session_dropout": 0.5, "label_smoothing": 0.1}
    for key, value in given.items():
        plain, model = (built(settings_for(**changed))[0] for changed in ({}, {key: value}))
        batch = built(settings_for())[2]
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model.full_sort_predict(batch), plain.full_sort_predict(batch))
        torch.manual_seed(1)
        losses = [sum(each.train().calculate_loss(batch)).item() for each in (plain, model)]
        assert losses[0] != losses[1], key


def test_the_normal_view_gates_the_whole_session_and_is_aligned_with_it(tiny, settings_for):
    settings = settings_for(views=["normal"], intent_lambda=1.0)
    infer(settings)
    model, _, batch = built(settings)
    whole = model.backbone.fuse(model.backbone.encode(batch), batch)
    intent = model.project(model.intents(batch["session_id"])[0][:, 0])
    gate = torch.sigmoid(whole + intent) @ model.gates["session"].weight.T
    embeddings = model.encode(batch)
    assert torch.allclose(model.fuse(embeddings, batch), gate * whole, atol=1e-5)
    h, t = (x / x.norm(dim=1, keepdim=True) for x in (whole, intent))
    known = model.intents(batch["session_id"])[1][:, 0].bool()
    h, t = h[known], t[known]
    uniform = [torch.pdist(x).pow(2).mul(-2).exp().mean().log() for x in (h, t)]
    expected = (h - t).pow(2).sum(1).mean() + sum(uniform) / 2
    assert model.extra_losses(embeddings, batch)[0].item() == pytest.approx(expected.item(), abs=1e-4)
    with pytest.raises(UserError, match="normal"):
        built(settings_for(views=["long", "normal"]))


def test_shuffled_gives_every_session_anothers_intent(tiny, settings_for):
    config, _, (train_data, _, _) = load_data(settings_for())
    own = SessionIntents.from_dataset(config, train_data.dataset)
    config, _, (train_data, _, _) = load_data(settings_for(intent_source="shuffled"))
    other = SessionIntents.from_dataset(config, train_data.dataset)
    rows = [[tuple(each.nearest[s].flatten().tolist()) for s in range(1, len(each.nearest))] for each in (own, other)]
    assert sorted(rows[0]) == sorted(rows[1])
    having = [s for s in range(len(rows[0])) if any(rows[0][s])]
    alone = [s for s in having if sum(set(rows[0][s]) == set(rows[0][t]) for t in having) == 1]
    assert alone and all(rows[0][s] != rows[1][s] for s in alone)
    place = {row: s for s, row in reversed(list(enumerate(rows[0], 1)))}
    for s, row in enumerate(rows[1], 1):  # similarities travel with their items
        if rows[0].count(row) == 1:
            assert torch.equal(other.sims[s], own.sims[place[row]])


def nearest_of(contents):
    """Rows of sessions whose views have these contents, 0 for no intent; padding first, [S + 1, V, 2]."""
    rows = torch.tensor([[0] * len(contents[0]), *contents])
    return torch.stack([rows, rows * 2], -1)


@hypothesis(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30), st.integers(0, 99))
def test_no_session_keeps_its_own_intents_when_sessions_exchange_them(contents, seed):
    nearest = nearest_of(contents)
    other = exchanged(nearest, torch.Generator().manual_seed(seed)).tolist()
    assert other == exchanged(nearest, torch.Generator().manual_seed(seed)).tolist()
    assert sorted(other) == list(range(len(nearest)))
    holders = [session for session, (long, short) in enumerate(contents, 1) if long or short]
    for session, whose in enumerate(other):
        assert (whose != session) == (session in holders and len(holders) > 1)
        assert (whose in holders) == (session in holders)


def test_sessions_that_share_an_answer_get_another_one_and_not_all_the_same():
    generator, draw = torch.Generator().manual_seed(3), np.random.default_rng(3)
    # two in five sessions have the first answer in the view `long`, and no few have the same in both views
    contents = [(1 if n % 5 < 2 else 2 + int(draw.integers(300)), 1 + int(draw.integers(300))) for n in range(2000)]
    other = exchanged(nearest_of(contents), generator).tolist()
    got = [contents[whose - 1] for whose in other[1:]]
    assert not any(own[view] == theirs[view] for own, theirs in zip(contents, got) for view in (0, 1))
    assert len({theirs for own, theirs in zip(contents, got) if own[0] == 1}) > 100
    alone = exchanged(nearest_of([(4, 4)]), generator).tolist()
    assert alone == [0, 1]  # nobody else has intents


def test_random_intents_are_random_unit_vectors_for_those_who_have_one(tiny, settings_for):
    config, _, (train_data, _, _) = load_data(settings_for(intent_source="random", intent_k=1))
    random = SessionIntents.from_dataset(config, train_data.dataset)
    config, _, (train_data, _, _) = load_data(settings_for(intent_k=1))
    own = SessionIntents.from_dataset(config, train_data.dataset)
    assert torch.allclose(random.item_emb[1:].norm(dim=1), torch.ones(len(random.item_emb) - 1), atol=1e-5)
    assert torch.equal(random.nearest != 0, own.nearest != 0)
    assert not torch.allclose(random.item_emb, own.item_emb)


def test_no_intents_leave_the_wrappers_own_parameters(tiny, settings_for):
    model, _, batch = built(settings_for(intent_source="none", intent_lambda=1.0))
    embeddings = model.encode(batch)
    gate = torch.sigmoid(embeddings.local_emb + model.project.bias) @ model.gates["local"].weight.T
    assert torch.allclose(model._gated("local", embeddings.memo.pairs), gate * embeddings.local_emb, atol=1e-6)
    assert model.extra_losses(embeddings, batch)[0].item() == 0


@pytest.mark.parametrize("aggregate", ["mean", "last", "position"])
def test_llmseqsim_is_the_cosine_of_texts(aggregate, tiny, settings_for):
    model, dataset, batch = built(settings_for(model="LLMSeqSim", aggregate=aggregate))
    texts = texts_of(tiny, dataset)
    for clicks, scores in zip(clicks_of(batch), model.full_sort_predict(batch).detach().numpy()):
        weights = {"mean": [1] * len(clicks), "last": [0] * (len(clicks) - 1) + [1], "position": range(1, len(clicks) + 1)}
        session = sum(weight * texts[item] for weight, item in zip(weights[aggregate], clicks))
        expected = [session @ v / np.linalg.norm(session) / np.linalg.norm(v) for v in texts[1:]]
        assert np.allclose(scores[1:], expected, atol=1e-4)


def test_llminfer_ranks_by_the_localized_intents(tiny, settings_for):
    model, dataset, batch = built(settings_for(model="LLMInfer", intent_k=2))
    texts, place = texts_of(tiny, dataset), {token: n for n, token in enumerate(dataset.field2id_token["item_id"])}
    lines = file_of(tiny, "tiny.sessemb").read_text().splitlines()
    head = [cell.split(":")[0] for cell in lines[0].split("\t")]
    rows = {line.split("\t")[0]: dict(zip(head, line.split("\t"))) for line in lines[1:]}
    for session, scores in zip(batch["session_id"], model.full_sort_predict(batch).detach().numpy()):
        row, expected = rows[dataset.field2id_token["session_id"][session]], 0
        for view in ("long", "short"):
            items, sims = row[f"{view}_items"].split(" ")[:2], row[f"{view}_sims"].split(" ")[:2]
            intent = sum(float(sim) * texts[place[item]] for sim, item in zip(sims, items))
            expected = expected + texts[1:] @ intent / np.linalg.norm(intent)
        assert np.allclose(scores[1:], expected, atol=1e-3)


def test_untrained_baselines_go_through_the_trainer_and_load_again(tiny, settings_for):
    for name in ("LLMInfer", "LLMSeqSim"):
        settings = settings_for(model=name)
        assert settings["epochs"] == 1
        result = train(settings)
        assert load_model(result.checkpoint).model.full_sort_predict
    with pytest.raises(UserError, match="LLMSeqSim has no backbone"):
        train(settings_for(model="LLMSeqSim", llm4sbr=True))
    with pytest.raises(UserError, match="LLMInfer ranks by intents"):
        train(settings_for(model="LLMInfer", intent_source="none"))


def test_llm2seq_is_the_plain_backbone_on_a_text_table():
    settings = load_settings("LLM2GRU4Rec", "ml-100k")
    assert (settings["model"], settings["llm4sbr"], settings["item_init"]) == ("GRU4Rec", False, "pca")


def test_sources_stand_side_by_side_and_new_views_are_added(tiny, settings_for):
    path = file_of(tiny, "tiny.sessemb")
    before = path.read_bytes()
    infer(settings_for(intent_source="session_text"))
    assert path.read_bytes() == before
    assert train(settings_for(intent_source="session_text"), saved=False).infer.prompts == 0
    counts = infer(settings_for(views=["normal"])).counts
    assert counts.reused > 0  # the long and short answers
    head = path.read_text().split("\n")[0]
    assert [f"{view}_items:token_seq" in head for view in ("long", "short", "normal")] == [True] * 3
    assert infer(settings_for()).counts.calls == 0  # two of three views are there
    with pytest.raises(UserError, match="item_text was"):
        infer(settings_for(item_text="{title}"))


def test_a_plain_model_from_text_needs_no_llm(settings_for):
    from recbole_llm4sbr import run_recbole_llm4sbr

    settings = settings_for()
    given = {
        key: settings[key] for key in ("data_path", "encoder", "atomic_path", "min_item_count", "epochs", "embedding_size")
    }
    changed = given | {"llm4sbr": False, "item_init": "text", "gpu_id": "", "item_text": "{title}"}
    run_recbole_llm4sbr("SRGNN", "tiny", config_dict=changed, saved=False)
    assert file_of(settings, "tiny.itememb").is_file()
    assert not list(dataset_folder(settings).rglob("*.sessemb"))


def test_intents_in_memory_serve_only_runs_that_find_in_them_what_they_need(tiny):
    config, dataset, _ = load_data(tiny)
    held = IntentFiles.read(config, dataset, ["long", "short"], 3)
    for changed, serves in (
        ({}, False),  # intent_k is 5
        ({"intent_k": 3}, True),
        ({"intent_k": 1, "views": ["short"]}, True),
        ({"intent_k": 0}, False),  # the answers' own vectors were not read
        ({"intent_k": 3, "intent_source": "shuffled"}, True),
        ({"intent_k": 3, "intent_source": "session_text"}, False),
        ({"intent_k": 3, "views": ["long", "normal"]}, False),
    ):
        assert held.serves(tiny | changed) is serves, changed
    of_answers = IntentFiles.read(config, dataset, ["long"], 0)
    assert of_answers.serves(tiny | {"intent_k": 0, "views": ["long"]})
    assert not of_answers.serves(tiny | {"intent_k": 1, "views": ["long"]})


def test_every_backbone_but_tagnn_scores_by_cosine_too(tiny):
    for model in ("SRGNN", "GCEGNN", "DHCN", "GRU4Rec"):
        check_runnable(tiny | {"model": model, "similarity": "cosine"})
    with pytest.raises(UserError, match="TAGNN cannot score by similarity=cosine"):
        check_runnable(tiny | {"model": "TAGNN", "similarity": "cosine"})


def test_text_gives_every_component_the_same_spread_and_pca_its_own(settings_for, tiny):
    for init, even in (("text", True), ("pca", False)):
        table = built(settings_for(llm4sbr=False, item_init=init))[0].item_table[1:].detach()
        spreads = table.std(0)
        assert bool(spreads.max() / spreads.min() < 1.01) is even
