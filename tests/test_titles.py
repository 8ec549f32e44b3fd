"""Several titles per view: replies written by hand, unions by plain loops, and every reader of the files against them."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import file_of, session_rows
from hypothesis import given as drawn
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from recbole_llm4sbr import load_model
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.features import read_vectors
from recbole_llm4sbr.data.folders import asked_files, dataset_folder
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.cleaning import clean
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.infer import check_askable, infer
from recbole_llm4sbr.intent.localization import _SAME, ItemIndex
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.titles import TitleReader
from recbole_llm4sbr.model.intents import SessionIntents
from recbole_llm4sbr.recommend.cases import Inspector
from recbole_llm4sbr.recommend.cases_page import page
from recbole_llm4sbr.recommend.cases_text import describe
from recbole_llm4sbr.recommend.recommender import Recommender
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")
CATALOGUE = ["Heat", "Babe", "Sorry, Wrong Number", "I can't say", "Good, the Bad and the Ugly, The", "unknown item"]


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("1. Alien\n2. Babe\n3. Heat", ["Alien", "Babe", "Heat"]),
        (' Alien\n2. "Babe"\n3. **Heat**', ["Alien", "Babe", "Heat"]),  # "1." was put into its mouth
        ("Sure! Here are three movies:\n\n1. Alien\n2) Babe\n(3) Heat\n\nEnjoy!", ["Alien", "Babe", "Heat"]),
        ("Here they are\n- Alien\n* Babe\n• Heat", ["Alien", "Babe", "Heat"]),
        ("**1. Alien**\n   - a monster\n**2. Babe**\n   - a pig", ["Alien", "Babe"]),
        ("Alien\nBabe\nHeat\nCasino", ["Alien", "Babe", "Heat"]),  # more than were asked for
        ("1. Babe\n2. babe\n3. BABE\n4. Heat", ["Babe", "Heat"]),
        ("Alien", ["Alien"]),
        ("", []),
        ("I'm sorry, I cannot help with that.", []),
        ("Alien, Babe, and Heat", ["Alien", "Babe", "Heat"]),
        ("Babe, Sorry, Wrong Number", ["Babe", "Sorry, Wrong Number"]),
        ("Good, the Bad and the Ugly, The", ["Good, the Bad and the Ugly, The"]),
        ("Crouching Tiger, Hidden Dragon", ["Crouching Tiger, Hidden Dragon"]),  # two parts of three, none of them known
        ("Alien; Babe; Heat", ["Alien", "Babe", "Heat"]),
        ("1. Alien 2. Babe 3. Heat", ["Alien", "Babe", "Heat"]),
        ('Alien", "Babe", "Heat"', ["Alien", "Babe", "Heat"]),
        ("1. Heat - a film of 1995\n2. **Babe**: a pig\n3. Alien: Romulus", ["Heat", "Babe", "Alien: Romulus"]),
        ('{"titles": ["Alien", "Babe", "Heat"]}', ["Alien", "Babe", "Heat"]),
        ('```json\n{"titles": ["Alien", "Babe"]}\n```', ["Alien", "Babe"]),
        ('["Alien", {"title": "Babe", "year": 1995}, 7, null]', ["Alien", "Babe"]),
        ('{"titles": ["Say \\"Anything\\""]}', ["Say 'Anything"]),
        ('{"titles": ["Alien", "Babe", "He', ["Alien", "Babe"]),  # cut off
        ('{\n  "titles": [\n    "Alien",\n    "Babe",\n', ["Alien", "Babe"]),
        ("[" * 5000, []),
        ('{"titles": []}', []),
    ],
)
def test_the_titles_of_a_reply_are_found_whatever_its_form(raw, names):
    assert TitleReader(["long"], 3, ["Guess one movie"], CATALOGUE).read(raw) == [names]


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ('["Oak Lamp", "Linen Vase",   ', ["Oak Lamp", "Linen Vase"]),
        ('["Oak Lamp",\n  ', ["Oak Lamp"]),
        ('Sure: {"titles": ["Oak Lamp"', ["Oak Lamp"]),
        ('{"titles": ["Oak Lamp", ', ["Oak Lamp"]),
        ('{"titles": ["Oak Lamp", "Linen Va', ["Oak Lamp"]),
        ('{"titles": ["Oak Lamp", "Linen Vase', ["Oak Lamp", "Linen Vase"]),  # of the catalogue, and no longer one begins so
        ('{"titles": ["Oak Lamp", "Oak', ["Oak Lamp"]),
        ('{"titles": ["Oak Lamp", "Heat', ["Oak Lamp"]),  # Heathers
        ('{"titles": ["Oak Lamp"], "reas', ["Oak Lamp"]),
        ('[{"title": "Oak Lamp", "year": 1995}, {"title": "Linen Vase", "year": 19', ["Oak Lamp", "Linen Vase"]),
        ('["Oak \\"Lamp\\"", "Lin\\', ["Oak 'Lamp"]),
        ('["Oak Lamp", "Linen Vase",   ]', ["Oak Lamp", "Linen Vase"]),
        ('{"titles"', []),
        ("1. Oak Lamp\n2. Linen Va", ["Oak Lamp"]),
        ("1. Oak Lamp\n2. Linen Vase", ["Oak Lamp", "Linen Vase"]),
        ("1. Oak Lamp\n2. Linen Jug\n", ["Oak Lamp", "Linen Jug"]),
        ("1. Oak Lamp\n2. Linen Jug\n3.", ["Oak Lamp", "Linen Jug"]),
        ('1. "Oak Lamp"\n2. "Linen Jug"', ["Oak Lamp", "Linen Jug"]),
        ("1. Oak Lamp\n2. Linen Vase - a vase of li", ["Oak Lamp", "Linen Vase"]),
        ("1. Oak Lamp\n2. Star Wars: A New", ["Oak Lamp"]),
        ("Oak Lamp; Glass Jug; Linen", ["Oak Lamp", "Glass Jug"]),
        ("Oak Lamp, Glass Jug, Linen", ["Oak Lamp", "Glass Jug"]),
        ("1. Oak Lamp\n2. Glass Jug\nThese are thi", ["Oak Lamp", "Glass Jug"]),
        ("This person may well lo", []),
    ],
)
def test_of_a_list_that_was_cut_the_titles_count_that_are_at_their_end(raw, names):
    catalogue = ["Oak Lamp", "Linen Vase", "Heat", "Heathers", "Star Wars", "Star Wars: A New Hope"]
    assert TitleReader(["long"], 3, [], catalogue).read(raw, cut=True) == [names]
    if raw.lstrip("Sure: ")[0] in "[{":  # that it was cut is seen where it is not known
        assert TitleReader(["long"], 3, [], catalogue).read(raw) == [names]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Oak La", ""), ("Oak Lamp", "Oak Lamp"), ("Heat", ""), ("Glass Jug", ""), ('"Glass Jug" is a good gue', "Glass Jug"),
        ('Glass Jug"', "Glass Jug"),
        ("Glass Jug\nIt is ma", "Glass Jug"), ("I think that this person, who has seen ma", ""), ("Here is my guess:", ""),
        ("Here is one thing this person loves: Oak La", ""), ("Here is one thing this person loves: Oak Lamp", "Oak Lamp"),
    ],
)  # fmt: skip
def test_a_single_answer_that_was_cut_names_something_only_where_its_name_is_at_its_end(raw, name):
    assert TitleReader(["long"], 1, [], ["Oak Lamp", "Heat", "Heathers"]).read(raw, cut=True) == [[name] if name else []]


def test_a_joint_answer_that_was_cut_lacks_the_last_name_alone():
    def read(answers, raw):
        return TitleReader(["long", "short"], answers, [], ["Oak Lamp"]).read(raw, cut=True)

    assert read(1, "long: Glass Jug\nshort: Linen Va") == [["Glass Jug"], []]
    assert read(1, "long: Glass Jug\nshort: Oak Lamp") == [["Glass Jug"], ["Oak Lamp"]]
    assert read(2, '{"long": ["Glass Jug", "Vase"], "short": ["Oak Lamp", "Li') == [["Glass Jug", "Vase"], ["Oak Lamp"]]
    assert read(2, '{"long": ["Glass Jug", "Vase"], "sho') == [["Glass Jug", "Vase"], []]


@pytest.mark.parametrize(
    "raw",
    [
        " Alien\nlong 2: Babe\nshort 1: Heat\nshort 2: Casino",
        "long:\n1. Alien\n2. Babe\n\nshort:\n1. Heat\n2. Casino\n3. Jaws",
        "**Long:** Alien; Babe\n**Short:** Heat; Casino",
        "Alien\nBabe\nHeat\nCasino",
        '{"long": ["Alien", "Babe"], "Short": ["Heat", "Casino"]}',
    ],
)
def test_a_joint_reply_gives_every_view_its_titles(raw):
    assert TitleReader(["long", "short"], 2, [], CATALOGUE).read(raw) == [["Alien", "Babe"], ["Heat", "Casino"]]


def test_a_view_that_a_joint_reply_leaves_out_has_no_title():
    assert TitleReader(["long", "short"], 2, [], []).read('{"long": ["Alien"]}') == [["Alien"], []]
    assert TitleReader(["long", "short"], 2, [], []).read("long 1: Alien") == [["Alien"], []]


def test_titles_of_the_catalogue_that_read_like_refusals_or_placeholders_are_titles():
    titles = ["Sorry", "I can't say", "Unfortunately yours", "None", "Movie 43", "Product 12"]
    assert [clean(title) for title in titles] == [""] * 6
    for answers, title in product((1, 3), titles):
        assert TitleReader(["long"], answers, [], titles).read(f'1. "{title}"') == [[title]]
    assert TitleReader(["long"], 1, [], titles).read("I can't say which movie they like.") == [[]]
    assert TitleReader(["long"], 1, [], ["unknown item"]).read("Unknown") == [[]]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def union(vectors, items, k, held=()):
    """Items and similarities of the definition: every title's k nearest items outside the session, the k best of all of them."""
    best = {}
    for vector in vectors:
        similar = {n: round(float(np.dot(vector.astype(float), items[n].astype(float))), 6) for n in range(len(items))}
        near = sorted((n for n in similar if items[n].any() and n not in held), key=lambda n: (-similar[n], n))[:k]
        for n in near:
            best[n] = max(best.get(n, -2.0), similar[n])
    best = {n: similar if similar <= _SAME else 1.0 for n, similar in best.items()}  # an item that a title names
    chosen = sorted(best, key=lambda n: (-best[n], n))[:k]
    return chosen, [best[n] for n in chosen]


@drawn(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 5), st.integers(0, 12))
@hypothesis(deadline=None, max_examples=40)
def test_the_items_of_several_titles_are_the_union_that_plain_loops_find(seed, k, answers, copies):
    rng = np.random.default_rng(seed)
    items = unit(rng.integers(-2, 3, (25, 4)) + rng.normal(0, 0.01, (25, 4)))
    items = np.concatenate([items, items[rng.integers(0, 25, copies)]])  # exact ties
    items[3] = 0  # an item without a text
    titles = unit(rng.normal(size=(7, 4)))
    titles[0] = items[4]
    sizes = rng.integers(1, answers + 1, 5)
    sets = np.array([[*rng.permutation(7)[:size], *[-1] * (answers - size)] for size in sizes], np.int32)
    clicks = [rng.permutation(len(items))[:length] for length in (1, 2, 3, 9, 4)]
    starts = np.r_[0, np.cumsum([len(each) for each in clicks])]
    index = ItemIndex(items)
    near = index.nearest_to_sets(titles, sets, k)
    outside = index.nearest_outside(titles, np.arange(5), np.concatenate(clicks).astype(np.int64), starts, k, sets)
    for row, chosen in enumerate(sets):
        of_row = [titles[n] for n in chosen if n >= 0]
        for (found, sims), held in ((near, ()), (outside, set(clicks[row].tolist()))):
            expected, expected_sims = union(of_row, items, k, held)
            np.testing.assert_allclose(sims[row], expected_sims, atol=3e-6)
            own = [max(float(np.dot(t.astype(float), items[n].astype(float))) for t in of_row) for n in found[row]]
            own = [1.0 if each > _SAME else each for each in own]
            np.testing.assert_allclose(own, expected_sims, atol=3e-6)  # other ids only where similarities are equal
            assert len(set(found[row].tolist())) == k
            assert not set(found[row].tolist()) & {*held, 3}
            if np.diff(expected_sims, prepend=2).max() < -1e-5:
                assert found[row].tolist() == expected


def test_sets_of_single_titles_are_their_nearest_items():
    rng = np.random.default_rng(1)
    items, titles = unit(rng.normal(size=(40, 8))), unit(rng.normal(size=(6, 8)))
    alone = ItemIndex(items).nearest(titles, 5)
    as_sets = ItemIndex(items).nearest_to_sets(titles, np.array([[n, -1] for n in range(6)], np.int32), 5)
    np.testing.assert_array_equal(alone[0], as_sets[0])
    np.testing.assert_allclose(alone[1], as_sets[1], atol=1e-6)


def test_titles_that_are_named_exactly_stay_in_the_llms_order():
    items = unit(np.random.default_rng(2).normal(size=(40, 8)))
    items[30] = items[9]  # a second item of that title
    index, sets = ItemIndex(items), np.array([[0, 1, 2], [2, 1, 0], [1, 2, -1]], np.int32)
    titles = items[[9, 2, 35]]
    near = index.nearest_to_sets(titles, sets, 5)[0].tolist()
    assert near[0][:4] == [9, 30, 2, 35] and near[1][:4] == [35, 2, 9, 30] and near[2][:2] == [2, 35]
    clicks = np.array([2, 9, 2])
    outside, _ = index.nearest_outside(titles, np.arange(3), clicks, np.array([0, 1, 2, 3]), 2, sets)
    assert outside[:2].tolist() == [[9, 30], [35, 2]] and outside[2, 0] == 35


@pytest.fixture(scope="module")
def several(given, made, tmp_path_factory):
    """Settings of `tiny`, prepared, with three titles per view, by whether items repeat."""
    found = {}
    from recbole_llm4sbr.data.prepare import prepare

    for repeatable in (True, False):
        folder = tmp_path_factory.mktemp("several")
        changed = {"atomic_path": str(folder), "checkpoint_dir": str(folder), "intent_answers": 3, "repeatable": repeatable}
        found[repeatable] = load_settings(dataset="tiny", overrides=given | changed)
        prepare(found[repeatable])
        infer(found[repeatable])
    return found


def table(settings, name):
    frame = pd.read_csv(file_of(settings, name), sep="\t", dtype=str, keep_default_na=False)
    return frame.rename(columns=lambda column: column.partition(":")[0])


def newest(prefix, titles, count=3):
    """What the echo backend answers: the last items of what the prompt shows, the newest first, each once."""
    return list(dict.fromkeys(titles[token] for token in prefix[: -count - 1 : -1]))


@pytest.mark.parametrize("repeatable", [True, False])
def test_the_files_hold_every_title_and_the_union_of_their_items(several, repeatable):
    settings = several[repeatable]
    folder = dataset_folder(settings)
    tokens, items = read_vectors(folder / "tiny.itememb")
    titles = dict(read_items(folder / "tiny.item")[["item_id", "title"]].to_numpy().tolist())
    answers = table(settings, "tiny.intentemb")
    assert answers["intent_text"].is_unique
    vector = dict(zip(answers["intent_id"], read_vectors(file_of(settings, "tiny.intentemb"))[1]))
    text = dict(zip(answers["intent_id"], answers["intent_text"]))
    sessions = table(settings, "tiny.sessemb").set_index("sid")
    head = file_of(settings, "tiny.sessemb").read_text().splitlines()[0]
    assert head.count("_intent:token_seq") == 2
    for session, prefix, _ in session_rows(folder, "tiny", *asked_files(settings)):
        cells = sessions.loc[session]
        said = cells["long_intent"].split()
        assert [text[each] for each in said] == newest(prefix, titles)
        held = () if repeatable else {tokens.index(token) for token in prefix}
        expected, sims = union([vector[each] for each in said], items, 10, held)
        np.testing.assert_allclose([float(x) for x in cells["long_sims"].split()], sims, atol=1.1e-4)
        assert len(set(cells["long_items"].split()) & {tokens[n] for n in expected}) >= 9  # the tenth may tie within rounding


@pytest.mark.parametrize("repeatable", [True, False])
def test_quality_counts_every_title(several, repeatable):
    settings = several[repeatable]
    folder = dataset_folder(settings)
    quality = infer(settings).counts.quality
    rows = list(session_rows(folder, "tiny", "train-last", "valid"))
    sessions = table(settings, "tiny.sessemb").set_index("sid")
    near = [sessions.loc[session, "long_items"].split()[0] in prefix for session, prefix, _ in rows]
    for view in quality.views:
        assert view.titles == 1.0  # echo names items of the session
        assert view.inside == (pytest.approx(np.mean(near), abs=1e-4) if repeatable else 1.0)
        assert view.sessions == len(rows)


def test_one_title_is_the_files_of_before(tiny):
    """By a writer of its own: the nearest items of each distinct answer, and the cells put together by hand."""
    folder = dataset_folder(tiny)
    tokens, items = read_vectors(folder / "tiny.itememb")
    titles = dict(read_items(folder / "tiny.item")[["item_id", "title"]].to_numpy().tolist())
    texts = table(tiny, "tiny.intentemb")["intent_text"].tolist()
    near, sims = ItemIndex(items).nearest(Encoder(tiny["encoder"], tiny["encoder_batch_size"]).encode(texts), 10)
    lines = ["sid:token\t" + "\t".join(f"{v}_items:token_seq\t{v}_sims:float_seq\t{v}_intent:token" for v in ("long", "short"))]
    for session, prefix, _ in session_rows(folder, "tiny", *asked_files(tiny)):
        number = texts.index(titles[prefix[-1]])
        cells = f"{' '.join(tokens[n] for n in near[number])}\t{' '.join(f'{s:.4f}' for s in sims[number])}\ti{number}"
        lines.append(f"{session}\t{cells}\t{cells}")
    assert file_of(tiny, "tiny.sessemb").read_text() == "\n".join(lines) + "\n"
    made = json.loads(file_of(tiny, "infer.json").read_text())["settings"]
    assert not {"intent_answers", "llm_json"} & set(made)  # files of earlier versions serve
    assert not {"several", "joint_several"} & set(made["prompt"])


def test_llminfer_of_several_titles_ranks_by_the_nearest_of_them(several):
    settings = several[True]
    for k in (4, 0):
        loaded = load_model(train(settings | {"model": "LLMInfer", "llm4sbr": False, "intent_k": k}).checkpoint)
        tokens, items = read_vectors(dataset_folder(settings) / "tiny.itememb")
        vector = dict(zip(tokens, items / np.linalg.norm(items, axis=1, keepdims=True)))
        if k == 0:
            vector |= dict(zip(*read_vectors(file_of(settings, "tiny.intentemb"))))
        rows = table(settings, "tiny.sessemb").set_index("sid")
        batch = next(iter(loaded.test_data))[0]
        ids, ranked = loaded.dataset.field2id_token["session_id"], loaded.dataset.field2id_token["item_id"][1:]
        got = loaded.model.forward(batch).detach().numpy()
        for session, scores in zip(batch["session_id"].tolist(), got):
            row, expected = rows.loc[ids[session]], 0
            for view in ("long", "short"):
                held = row[f"{view}_items" if k else f"{view}_intent"].split(" ")
                sims = list(map(float, row[f"{view}_sims"].split(" "))) if k else [1 / len(held)] * len(held)
                weights = [sim * (1 - place / 100) for place, sim in enumerate(sims)]
                cosines = [
                    [weight * float(vector[each] @ vector[item]) for each, weight in zip(held[: k or None], weights)]
                    for item in ranked
                ]
                expected = expected + np.array(cosines).max(1)
            there = np.isfinite(scores[1:])
            assert np.allclose(scores[1:][there], expected[there], atol=2e-3)


def test_another_number_of_titles_needs_a_rebuild_and_later_verbs_remember_it(several, tmp_path):
    settings = several[True]
    with pytest.raises(UserError, match=r"intent_answers was 3, now 2.*--rebuild"):
        infer(settings | {"intent_answers": 2})
    with pytest.raises(UserError, match=r"intent_answers was 3.*--rebuild"):
        infer(settings | {"intent_answers": 1})
    from recbole_llm4sbr.data.remembered import of_files_alone

    plain = load_settings(dataset="tiny", overrides={key: value for key, value in settings.items() if key != "intent_answers"})
    assert of_files_alone(plain, frozenset()) == {"intent_answers": 3}


def test_the_models_intents_are_the_sums_over_the_union_and_the_means_of_the_titles(several):
    settings = several[True]
    for k in (4, 0):
        loaded = load_model(train(settings | {"model": "LLMInfer", "llm4sbr": False, "intent_k": k}).checkpoint)
        folder = dataset_folder(settings)
        tokens, items = read_vectors(folder / "tiny.itememb")
        answers, vectors = read_vectors(file_of(settings, "tiny.intentemb"))
        sessions = table(settings, "tiny.sessemb").set_index("sid")
        ids = loaded.dataset.field2id_token["session_id"]
        got, known = loaded.model.intents(torch.arange(1, len(ids)))
        asked = [session in sessions.index for session in ids[1:]]  # earlier prefixes have no intents
        assert (known == torch.tensor(asked, dtype=known.dtype)[:, None]).all() and not all(asked)
        sizes = set()
        for number, session in enumerate(ids[1:]):
            if not asked[number]:
                continue
            cells = sessions.loc[session]
            said = [vectors[answers.index(each)] for each in cells["short_intent"].split()]
            sims = [float(x) for x in cells["short_sims"].split()[:k]]
            near = [items[tokens.index(each)] for each in cells["short_items"].split()[:k]]
            expected = sum(s * v for s, v in zip(sims, near)) if k else np.mean(said, 0)
            np.testing.assert_allclose(got[number, 1].numpy(), expected, atol=1e-5)
            sizes.add(len(said))
        assert sizes == {2, 3} or sizes == {1, 2, 3}


@pytest.mark.parametrize(
    "changed", [{}, {"intent_k": 0}, {"intent_k": 0, "intent_weighting": "softmax"}, {"intent_source": "shuffled"}]
)
def test_sessions_of_the_files_get_the_same_scores_by_what_they_hold(several, changed):
    checkpoint = train(several[False] | changed).checkpoint
    loaded = load_model(checkpoint)
    batch = loaded.test_data.dataset.inter_feat
    sessions = [row[:length] for row, length in zip(batch["item_id_list"].tolist(), batch["item_length"].tolist())]
    expected = loaded.model.full_sort_predict(batch).detach()
    scores, sources = Recommender.load(checkpoint).scores(sessions)
    if changed.get("intent_source") == "shuffled":  # a control says nothing of a session
        assert set(sources) == {"nearest"}
        return
    same = [number for number, source in enumerate(sources) if source == "stored"]
    assert len(same) == len(sessions)
    known = expected > -torch.inf
    torch.testing.assert_close(scores[known], expected[known], atol=1e-5, rtol=1e-5)
    asked, sources = Recommender.load(checkpoint).scores([sessions[0][::-1], sessions[0][:1]], intents="ask")
    assert set(sources) == {"asked"}
    assert torch.isfinite(asked[:, 1:]).any(1).all()


def test_inspect_shows_every_title(several):
    settings = several[True]
    titles = dict(read_items(dataset_folder(settings) / "tiny.item")[["item_id", "title"]].to_numpy().tolist())
    inspector = Inspector(settings | {"intent_k": 0})
    case = inspector.cases(inspector.draw(1, 3))[0]
    names = newest([item.token for item in case.items], titles)
    assert [view.asked.names for view in case.views] == [names, names]
    for shown in (describe(case), page([case], "x")):
        assert "; ".join(names) in shown.replace("\n          ", " ")
        assert "of several titles their mean" in shown.replace("&#x27;", "'")


def test_prompts_ask_for_lines_or_json_and_for_as_many_tokens():
    template = PromptTemplate.load("movies")
    lines = template.build(["A", "B"], "short", 3)
    assert (lines.lines, lines.schema, lines.answer_start) == (3, "", "1.")
    assert lines.user.endswith(
        "Give 3 different guesses, the likeliest first. Only output the movie titles, one on each line, numbered."
    )
    as_json = template.build(["A", "B"], "short", 3, as_json=True)
    assert as_json.user.endswith('Only output the movie titles, as JSON like {"titles": ["...", "..."]}.')
    assert json.loads(as_json.schema)["properties"]["titles"] == {
        "type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3,
    }  # fmt: skip
    joint = template.build_joint(["A"], ["long", "short"], 3)
    assert (joint.lines, joint.answer_start) == (6, "long 1:")
    assert 'as "long 1: ..."' in joint.user
    assert json.loads(template.build_joint(["A"], ["long", "short"], 3, True).schema)["required"] == ["long", "short"]


@pytest.mark.parametrize("name", ["movies-next", "products-next"])
def test_the_next_templates_say_that_no_item_of_the_session_comes_next(name):
    template = PromptTemplate.load(name)
    for request in (
        template.build(["A", "B"], "short"),
        template.build(["A", "B"], "short", 3),
        template.build_joint(["A"], ["long", "short"]),
    ):
        assert "1. A" in request.user
        assert "is none of them" in request.user or "no answer is one of them" in request.user


@pytest.mark.parametrize(
    ("part", "joint", "says"),
    [
        ("several", False, r"no part `several`, which intent_answers=3 needs.*--intent_answers"),
        ("joint_several", True, "no part `joint_several`"),
    ],
)
def test_a_template_without_the_question_is_named_before_anything_is_asked(settings_for, tmp_path, part, joint, says):
    shipped = Path(__file__).parents[1].joinpath("properties/prompt/movies.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line for line in shipped.splitlines() if not line.startswith(f"{part}:")))
    settings = settings_for(prompt=str(path), intent_answers=3, views_in_one_call=joint)
    with pytest.raises(UserError, match=says):
        check_askable(settings)
    path.write_text(shipped.replace(f'{part}: "', f'{part}: "x" # "'))
    with pytest.raises(UserError, match=rf"{part}='x' must be a format with .*{{answers}} in it"):
        check_askable(settings)


def test_the_questions_for_several_titles_decide_intents_only_where_they_are_asked():
    one, two = (load_settings(dataset="ml-100k", overrides={"intent_answers": n}) for n in (1, 2))
    assert "several" not in deciding(one, "intents")["prompt"]
    assert "{answers}" in deciding(two, "intents")["prompt"]["several"]
    remote = {"llm_backend": "openai", "llm_url": "http://h/v1"}
    for settings, decides in ((one | remote, False), (two, False), (two | remote, True)):
        same = deciding(settings, "intents") == deciding(settings | {"llm_json": False}, "intents")
        assert same is not decides


@pytest.mark.parametrize("answers", [1, 2])
def test_one_call_for_all_views_gives_every_view_intents(settings_for, answers):
    from recbole_llm4sbr.data.prepare import prepare

    settings = settings_for(views_in_one_call=True, intent_answers=answers)
    prepare(settings)
    counts = infer(settings).counts
    assert counts.prompts == counts.sessions
    sessions = table(settings, "tiny.sessemb")
    assert (sessions[["long_intent", "short_intent"]] != "").all().all()
    assert counts.no_intent == 0


def test_every_view_of_a_joint_question_has_its_tokens_on_every_backend(tiny_llm, monkeypatch):
    import sys
    from types import SimpleNamespace

    from recbole_llm4sbr.intent.backends.vllm import VLLMBackend

    request = PromptTemplate.load("movies").build_joint(["A", "B"], ["long", "short"], 3)
    backend = TransformersBackend(tiny_llm, 5, device="cpu")
    backend.load()
    backend._ends, backend._newline = torch.tensor([-1]), torch.tensor([-1])  # nothing ends an answer but the limit
    tokens = {reply.position: reply.answer_tokens for reply in backend.generate([request, request._replace(lines=1)])}
    assert tokens == {0: 30, 1: 5}
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="last"))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: given))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    sampling = VLLMBackend(tiny_llm, 5)._sampling(request.lines)
    assert (sampling["max_tokens"], sampling["stop"]) == (30, None)


def test_equal_weights_of_titles_hold_under_softmax(several):
    settings = several[True] | {"intent_k": 0, "model": "LLMInfer", "llm4sbr": False}
    held = [
        load_model(train(settings | {"intent_weighting": weighting}).checkpoint).model.intents
        for weighting in ("similarity", "softmax")
    ]
    assert all(isinstance(each, SessionIntents) for each in held)
    some = torch.arange(1, 20)
    torch.testing.assert_close(held[0](some)[0], held[1](some)[0])
