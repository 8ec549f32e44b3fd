"""`inspect` and the quality of intents: facts against independent computations, texts from elsewhere, one-line errors."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import file_of, session_rows

from recbole_llm4sbr import load_model
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.features import Localized, read_vectors
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import SessionRows, read_items
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.llm_intents import Asked, Intents
from recbole_llm4sbr.intent.prompts import item_names
from recbole_llm4sbr.intent.quality import describe_quality, measure
from recbole_llm4sbr.recommend.cases import Case, Inspector, Item, ModelCase, ViewCase
from recbole_llm4sbr.recommend.cases_page import page
from recbole_llm4sbr.recommend.cases_text import describe
from recbole_llm4sbr.recommend.ranking import load_rankers
from recbole_llm4sbr.report.page import _read_case
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(given, made, tmp_path_factory):
    """Settings of the small world, and the checkpoints of a plain and an enhanced model."""
    folder = tmp_path_factory.mktemp("inspect")
    settings = load_settings(dataset="tiny", overrides=given | {"atomic_path": str(made), "checkpoint_dir": str(folder)})
    return settings, train(settings | {"llm4sbr": False}).checkpoint, train(settings).checkpoint


@pytest.fixture(scope="module")
def both(world):
    """The two models as rankers, and an inspector of them."""
    rankers = load_rankers(world[1:])
    return rankers, Inspector.of_models(rankers)


def by_hand(loaded):
    """Every test session's rank, by its own sort of the scores of all items but padding."""
    feat = loaded.test_data.dataset.inter_feat
    scores = loaded.model.full_sort_predict(feat).detach()[:, 1:]
    ids = loaded.dataset.field2id_token["session_id"][feat["session_id"]]
    order = scores.argsort(dim=1, descending=True) + 1
    return {str(name): row.tolist().index(int(target)) + 1 for name, row, target in zip(ids, order, feat["item_id"])}


def test_ranks_are_those_of_a_sort_of_all_scores(world, both):
    rankers, inspector = both
    for path, ranker in zip(world[1:], rankers):
        expected = by_hand(load_model(path))
        assert ranker.test_ranks() == expected
        session = next(iter(expected))
        ranked = ranker.rank(session, 5)
        assert (ranked.rank, ranked.candidates, len(ranked.best)) == (expected[session], 30, 5)
    first, second = (by_hand(load_model(path)) for path in world[1:])
    gains = sorted((first[name] - second[name] for name in first), reverse=True)
    assert [first[name] - second[name] for name in inspector.extreme(3, best=True)] == [gain for gain in gains[:3] if gain > 0]
    worst = [first[name] - second[name] for name in inspector.extreme(3, best=False)]
    assert worst == [gain for gain in gains[::-1][:3] if gain < 0]
    alone = Inspector.of_models(rankers[1:])
    assert [second[name] for name in alone.extreme(4, best=False)] == sorted(second.values(), reverse=True)[:4]


def test_a_target_stands_behind_all_candidates_of_its_score(both, monkeypatch):
    ranker = both[0][0]
    monkeypatch.setattr(ranker.loaded.model, "full_sort_predict", lambda rows: torch.ones(len(rows), 31))
    ranks = ranker.test_ranks()
    assert set(ranks.values()) == {30}
    session = next(iter(ranks))
    best = ranker.rank(session, 5).best
    assert ranker.rank(session, 30).best[:5] == best and len(best) == 5


def test_gates_are_those_of_the_formula(both):
    rankers, inspector = both
    (session,) = inspector.draw(1, 3)
    plain, enhanced = inspector.cases([session])[0].models
    assert plain.gates == {}
    model, dataset = rankers[1].loaded.model, rankers[1].loaded.dataset
    feat = rankers[1].loaded.test_data.dataset.inter_feat
    row = feat[(feat["session_id"] == dataset.token2id("session_id", session)).nonzero()[0]]
    own = model.backbone.encode(row)
    vectors = model.intents(row["session_id"])[0][0]  # [views, D]
    for number, (name, h) in enumerate([("global", own.global_emb[0]), ("local", own.local_emb[0])]):
        t = model.project.weight @ vectors[number] + model.project.bias
        gate = (model.gates[name].weight[0] * (1 / (1 + torch.exp(-(h + t))))).sum()
        assert enhanced.gates[name] == pytest.approx(float(gate), abs=1e-5)
    assert list(enhanced.gates) == ["global", "local"]


def test_a_case_holds_what_the_files_say(world, both):
    settings = world[0]
    folder = dataset_folder(settings)
    rows = {
        name: (prefix, target, part)
        for part, file in (("train", "train-last"), ("test", "test"))
        for name, prefix, target in session_rows(folder, "tiny", file)
    }
    titles = dict(read_items(folder / "tiny.item")[["item_id", "title"]].to_numpy().tolist())
    table = pd.read_csv(file_of(settings, "tiny.sessemb"), sep="\t", dtype=str).set_index("sid:token")
    chosen = [*list(rows)[:3], *both[1].draw(3, 2020)]
    for case in both[1].cases(chosen):
        prefix, target, part = rows[case.session]
        assert ([item.token for item in case.items], case.target.token, case.part) == (prefix, target, part)
        assert [item.title for item in case.items] == [titles[token] for token in prefix]
        for view in case.views:
            cells = table.loc[case.session]
            assert [item.token for item in view.near] == cells[f"{view.view}_items:token_seq"].split()[:5]
            assert [item.value for item in view.near] == [float(x) for x in cells[f"{view.view}_sims:float_seq"].split()[:5]]
            assert [item.in_session for item in view.near] == [item.token in prefix for item in view.near]
            assert [item.target for item in view.near] == [item.token == target for item in view.near]
            assert [view.asked.raw] == view.asked.names == [titles[prefix[-1]]]  # echo answers with the last item
            assert titles[prefix[-1]] in view.asked.prompt
        assert [view.view for view in case.views] == ["long", "short"]


def brute_force(settings, folder):
    """The quality of the echo backend's intents, session by session from the files."""
    items = read_items(dataset_folder(settings) / "tiny.item")
    titles = {token: name.casefold() for token, name in zip(items["item_id"], item_names(items, settings))}
    table = pd.read_csv(folder / "tiny.sessemb", sep="\t", dtype=str, keep_default_na=False)
    cells = {row[0]: dict(zip(table.columns, row)) for row in table.to_numpy().tolist()}
    valid = {row[0] for row in session_rows(dataset_folder(settings), "tiny", "valid")}
    texts = (
        pd.read_csv(folder / "tiny.intentemb", sep="\t", dtype=str).iloc[:, :2]
        if (folder / "tiny.intentemb").is_file()
        else None
    )
    said = dict(texts.to_numpy().tolist()) if texts is not None else {}
    facts, same = {}, []
    for view in ("long", "short"):
        titled, inside, hits = [], [], []
        for session, prefix, target in session_rows(dataset_folder(settings), "tiny", "train-last", "valid"):
            near = cells[session][f"{view}_items:token_seq"].split()
            if not near:
                continue
            answer = said.get(cells[session][f"{view}_intent:token"], "").casefold()
            titled.append(answer in titles.values())
            by_title = answer in [titles[token] for token in prefix]
            inside.append(near[0] in prefix if settings["repeatable"] else by_title)
            if view == "long":
                same.append(near == cells[session]["short_items:token_seq"].split())
            if session in valid:
                hits.append([target in near[: k + 1] for k in range(len(near))])
        facts[view] = len(titled), np.mean(titled), np.mean(inside), np.mean(hits, 0)
    return facts, np.mean(same)


@pytest.mark.parametrize("repeatable", [True, False])
def test_quality_is_what_counting_session_by_session_gives(tiny, repeatable):
    settings = tiny | {"repeatable": repeatable, "rebuild": not repeatable}
    quality = infer(settings).counts.quality
    facts, same = brute_force(settings, file_of(settings, "tiny.sessemb").parent)
    assert quality.inside_by == ("nearest" if repeatable else "title")
    for view in quality.views:
        count, titled, inside, hits = facts[view.view]
        assert view.sessions == count
        assert (view.titles, view.inside) == pytest.approx((titled, inside), abs=1e-4)
        assert view.hits == pytest.approx(hits.tolist(), abs=1e-4)
    assert quality.equal == pytest.approx(same, abs=1e-4)
    again = infer(settings | {"rebuild": False}).counts
    assert again.quality == quality
    assert IntentCounts.from_json(json.loads(json.dumps(again.to_json()))) == again
    assert describe_quality(quality, 5).splitlines()[1].split() == [
        "view",
        "sessions",
        "a",
        "title",
        *describe_quality(quality, 5).splitlines()[1].split()[4:],
    ]


def test_quality_of_a_hand_worked_world_does_not_look_at_the_test_part():
    titles = ["Heat.", "Babe", "Babe", "unknown item"]
    rows = SessionRows(
        list("dcba"),
        ["1", "2", "3", "4"],
        np.array([3, 2, 1, 0, 3], np.int32),
        np.array([0, 2, 3, 4, 5]),
        np.array([1, 3, 2, 9]),
        np.array([2, 1, 1, 1]),
    )
    names = ["HEAT", "babe", "unknown item"]
    intents = Intents(np.zeros((3, 2), np.float32), {"long": np.array([0, 1, 2, 9], np.int32)}, IntentCounts(), names)
    found = Localized(np.array([[0, 1], [1, 2], [3, 0]]), np.ones((3, 2), np.float32), intents.rows)
    quality = measure(intents, found, rows, list("abcd"), titles, {"train": 1, "valid": 2}, "title")
    (view,) = quality.views  # sessions: (a, b) -> c, (c) -> a, (d) -> b; the test row's numbers would be errors
    assert (view.sessions, view.titles, view.inside, view.valid_sessions) == (3, 0.6667, 0.6667, 2)
    assert view.hits == [0.0, 0.0]
    assert quality.equal is None
    without = measure(replace(intents, names=()), found, rows, list("abcd"), None, {"train": 1, "valid": 2}, "nearest").views[0]
    assert (without.titles, without.inside) == (None, 0.6667)


def test_old_files_without_the_answers_text_still_load_and_recbole_reads_the_new_ones(tiny, tmp_path):
    path = file_of(tiny, "tiny.intentemb")
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert lines[0] == ["intent_id:token", "intent_text:token_seq", "intent_emb:float_seq"]
    titles = set(read_items(dataset_folder(tiny) / "tiny.item")["title"])
    assert {line[1] for line in lines[1:]} <= titles
    old = tmp_path / "old.intentemb"
    old.write_text("".join(f"{line[0]}\t{line[2]}\n" for line in lines))
    (tokens, vectors), (old_tokens, old_vectors) = read_vectors(path), read_vectors(old)
    assert tokens == old_tokens
    assert np.array_equal(vectors, old_vectors)
    from recbole.data import create_dataset
    from test_interop import GRU4Rec, stock

    shutil.copy(path, dataset_folder(tiny))
    load = {"inter": ["session_id", "item_id_list", "item_id"], "intentemb": ["intent_id", "intent_text", "intent_emb"]}
    feat = create_dataset(stock(tiny, GRU4Rec, load_col=load, additional_feat_suffix=["intentemb"])).intentemb_feat
    assert len(feat) == len(vectors)
    np.testing.assert_allclose(np.stack(feat["intent_emb"].tolist()), vectors, atol=1e-6)


EVIL = '<script>alert("1")</script>\x1b[31m\t\'"&\u202e\ud800' + "x" * 10_000


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found |= {tag, *(name for name, _ in attrs)}


def test_texts_from_elsewhere_are_harmless_and_cut():
    item = Item(EVIL, EVIL, True, False, 0.5)
    view = ViewCase(EVIL, Asked(EVIL + "\n" + EVIL, EVIL, [EVIL, EVIL]), [item], 5)
    case = Case(
        EVIL,
        "test",
        [item] * 30,
        replace(item, target=True),
        "llm",
        "",
        [view],
        [ModelCase(EVIL, EVIL, 3, 9, [item], {"global": 0.1})],
    )
    shown = describe(case)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800]", shown)
    assert len(shown) < 10_000
    assert max(map(len, shown.splitlines())) < 140
    assert "... 10 earlier clicks" in shown
    written = page([case, replace(case, note=EVIL)], EVIL)
    tags = Tags()
    tags.feed(written)
    assert "script" not in tags.found
    assert not {name for name in tags.found if name.startswith("on")}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\ud800]", written)
    assert not re.search(r"https?://|url\(|@import", written)
    written.encode("utf-8")


def test_session_text_has_no_prompts_and_says_so(tiny, capsys):
    settings = tiny | {"intent_source": "session_text"}
    quality = infer(settings).counts.quality
    assert {(view.titles, view.inside is None) for view in quality.views} == {(None, False)}
    inspector = Inspector(settings)
    (case,) = inspector.cases(inspector.draw(1, 1))
    assert [view.asked for view in case.views] == [None, None]
    assert all(view.near for view in case.views)
    assert "no LLM is asked, so that there is no prompt and no answer" in describe(case)
    assert "no LLM is asked, so that there is no prompt and no answer" in page([case], "x")


def words(world):
    settings = world[0]
    return ["--dataset=tiny", *(f"--{key}={settings[key]}" for key in ("data_path", "atomic_path", "encoder", "item_text")),
            "--llm_backend=echo", "--min_item_count=2", "--repeatable=true"]  # fmt: skip


def test_the_command_shows_the_same_with_and_without_checkpoints_and_writes_a_page(world, both, tmp_path, capsys):
    (session,) = both[1].draw(1, 2020)
    assert main(["inspect", f"--checkpoints={world[1]},{world[2]}", "--random=1"]) == 0
    assert describe(both[1].cases([session])[0]) in capsys.readouterr().out
    assert main(["inspect", *words(world), f"--session={session}", f"--html={tmp_path / 'new' / 'page.html'}"]) == 0
    written = (tmp_path / "new" / "page.html").read_text()
    assert written == page(Inspector(world[0]).cases([session]), "Sessions looked at whole")
    assert _read_case(tmp_path / "new" / "page.html") == written  # `report --case` takes it
    assert main(["inspect", f"--checkpoints={world[2]}", "--random=2", "--seed=7"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("session ")] == both[1].draw(
        2, 7
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "inspect needs one of --session=ID"),
        (["--session=x", "--best=1"], "not --session and --best at once"),
        (["--worst=2"], "--worst goes by ranks; name one or two checkpoints"),
        (["--random=0"], "--random='0' must be a whole number of at least 1"),
        (["--session=u1"], "its ids are like"),
        (["--session=<script>\x1b[31m"], "there is no session '<script>[31m' in 'tiny'"),
        (["--random=1", "--checkpoints=gone.pth"], "there is no checkpoint 'gone.pth'"),
        (["--random=1", "--checkpoints=CHECKPOINT", "--config_files=paper"], "takes its settings from the checkpoints"),
        (["--random=1", "--checkpoints=CHECKPOINT", "--dataset=other"], "was trained on the data set 'tiny', not on 'other'"),
        (["--random=1", "--atomic_path=gone"], "holds no prepared dataset"),
        (["--random=1", "--html=."], "--html=. is a folder"),
    ],
)
def test_a_mistake_is_one_line(world, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = [each.replace("CHECKPOINT", world[1]) for each in arguments]
    base = [] if any("--checkpoints" in each for each in arguments) else words(world)
    named = {each.partition("=")[0] for each in given}
    assert main(["inspect", *(each for each in base if each.partition("=")[0] not in named), *given]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_files_that_are_not_there_are_named_where_a_model_reads_them(tiny):
    file_of(tiny, "infer.json").unlink()
    with pytest.raises(UserError, match="holds no feature files; run"):
        Inspector(tiny)
    plain = Inspector(tiny | {"llm4sbr": False})
    (case,) = plain.cases(plain.draw(1, 1))
    assert case.views == []
    assert "no intents are shown" in describe(case)
    shutil.rmtree(dataset_folder(tiny))
    with pytest.raises(UserError, match="holds no prepared dataset"):
        Inspector(tiny)
