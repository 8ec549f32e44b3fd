"""`recommend`: sessions by what they hold, against the scores that the model gives the same sessions of its own files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_llm4sbr import Recommender, load_ensemble, load_model
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.recommend.cases import Inspector
from recbole_llm4sbr.recommend.catalogue import Catalogue
from recbole_llm4sbr.recommend.ranking import load_rankers
from recbole_llm4sbr.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sessions(loaded):
    """Item numbers and RecBole's batch of every test session, newest clicks only (the window holds them all)."""
    batch = loaded.test_data.dataset.inter_feat
    clicks, lengths = batch["item_id_list"].tolist(), batch["item_length"].tolist()
    return [row[:length] for row, length in zip(clicks, lengths)], batch


test_sessions.__test__ = False


def checkpoint_of(tiny, **changed):
    from recbole_llm4sbr.intent.infer import infer

    settings = tiny | changed
    if settings["llm4sbr"]:
        infer(settings)
    return train(settings).checkpoint


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"intent_source": "session_text"},
        {"intent_k": 0},
        {"fusion": "late", "intent_weighting": "softmax"},
        {"fusion": "gate+boost"},
        {"model": "GRU4Rec", "num_layers": 1, "dropout_prob": 0.1, "llm4sbr": False},
        {"model": "SASRec", "n_layers": 1, "inner_size": 16, "intent_source": "session_text"},
    ],
)
def test_scores_are_those_of_the_same_sessions_in_the_files(tiny, changed):
    checkpoint = checkpoint_of(tiny, **changed)
    loaded = load_model(checkpoint)
    sessions, batch = test_sessions(loaded)
    expected = loaded.model.full_sort_predict(batch).detach()
    scores, sources = Recommender.load(checkpoint).scores(sessions)
    same = [number for number, source in enumerate(sources) if source != "nearest"]
    assert len(same) > len(sessions) / 2
    torch.testing.assert_close(scores[same, 1:], expected[same, 1:], atol=1e-6, rtol=1e-6)
    assert (scores[:, 0] == -torch.inf).all()


def test_answers_that_are_held_to_the_catalogue_are_found_again(tiny, tiny_llm):
    asked = {"llm_beams": True, "llm_titles": "new", "intent_answers": 3}
    test_scores_are_those_of_the_same_sessions_in_the_files(
        tiny, {"llm": tiny_llm, "llm_backend": "transformers", "llm_device": "cpu"} | asked
    )


@pytest.mark.parametrize("changed", [{}, {"intent_source": "session_text"}, {"intent_answers": 2}, {"repeatable": False}])
def test_items_of_the_same_text_are_the_intents_of_infer(raw, given, tmp_path, monkeypatch, changed):
    """Of three items each with one title only some find place among the nearest four: those that come first in the `.item` file."""
    from recbole_llm4sbr.intent.infer import infer

    monkeypatch.chdir(tmp_path)
    shutil.copytree(raw, "raw")
    head, *lines = Path("raw/tiny/tiny.item").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    lines = ["\t".join([item, cells[number % 10][1], cells[number % 10][2]]) for number, (item, *_) in enumerate(cells)]
    Path("raw/tiny/tiny.item").write_text("\n".join([head, *np.random.default_rng(4).permutation(lines)]) + "\n")
    own = {"data_path": "raw", "intent_k": 4, "intent_k_max": 10}
    settings = load_settings(dataset="tiny", overrides=given | own | changed)
    prepare(settings)
    infer(settings)
    checkpoint = train(settings).checkpoint
    loaded, recommender = load_model(checkpoint), Recommender.load(checkpoint)
    sessions, batch = test_sessions(loaded)
    expected = loaded.model.intents.nearest[batch["session_id"]]
    for source in ("stored", "ask"):
        for piece in (slice(None), slice(0, 1), slice(3, 8)):  # batches of other shapes
            _, (found,) = recommender.ranked(sessions[piece], source)
            assert "nearest" not in found.source
            assert found.nearest.tolist() == expected[piece].tolist()


def test_a_model_of_items_without_titles_recommends_by_ids(raw, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(raw, "raw")
    Path("raw/tiny/tiny.item").unlink()
    settings = load_settings(dataset="tiny", overrides=given | {"data_path": "raw", "llm4sbr": False})
    prepare(settings)
    checkpoint = train(settings).checkpoint
    recommender = Recommender.load(checkpoint)
    known = [token for token, clicked in zip(recommender.catalogue.tokens, recommender.catalogue.clicked) if clicked]
    found = recommender.recommend([known[:2]], topn=3)
    assert len(found) == 3
    assert found["title"].tolist() == found["item"].tolist()
    inspector = Inspector.of_models(load_rankers([checkpoint]))
    (case,) = inspector.cases(inspector.draw(1, 1))
    assert all(item.title == item.token for item in case.items)


def test_several_checkpoints_are_an_ensemble(tiny):
    files = [checkpoint_of(tiny, intent_source="session_text", seed=seed) for seed in (1, 2)]
    ensemble = load_ensemble(files, [0.3, 0.7])
    sessions, batch = test_sessions(ensemble)
    expected = ensemble.model.full_sort_predict(batch).detach()
    scores, _ = Recommender.load(files, [0.3, 0.7]).scores(sessions)
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:], atol=1e-6, rtol=1e-6)


def test_no_item_of_the_session_is_recommended_where_none_repeats(tiny):
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.intent.infer import infer

    settings = tiny | {"repeatable": False, "rebuild": True, "intent_source": "session_text", "MAX_ITEM_LIST_LENGTH": 3}
    prepare(settings)
    infer(settings)
    recommender = Recommender.load(train(settings).checkpoint)  # it reads the newest three of four
    items = [token for token, known in zip(recommender.catalogue.tokens, recommender.catalogue.clicked) if known][:4]
    table = recommender.recommend([items], topn=1000)
    assert set(table["item"]) == set(recommender.catalogue.tokens[1:]) - set(items)
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert table["score"].is_monotonic_decreasing
    assert np.isfinite(table["score"]).all()


def test_an_unasked_session_has_the_intents_of_the_nearest_training_session(tiny):
    checkpoint = checkpoint_of(tiny)
    recommender, loaded = Recommender.load(checkpoint), load_model(checkpoint)
    known = [number for number, clicked in enumerate(recommender.catalogue.clicked) if clicked]
    session = known[:5][::-1] + known[:2]
    train_rows = loaded.train_data.dataset.inter_feat
    backbone, intents = loaded.model.backbone, loaded.model.intents

    def embed(batch):
        return torch.nn.functional.normalize(backbone.fuse(backbone.encode(batch), batch), dim=-1).detach()

    clicks = torch.zeros(1, 12, dtype=torch.long)
    clicks[0, : len(session)] = torch.tensor(session)
    batch = {"item_id_list": clicks, "item_length": torch.tensor([len(session)]), "session_id": torch.tensor([0])}
    near = (embed(train_rows) @ embed(batch).T).squeeze(1)
    near[~intents.known(train_rows["session_id"])] = -2
    batch["session_id"] = train_rows["session_id"][near.argmax()].view(1)
    expected = loaded.model.full_sort_predict(batch).detach()
    for source in ("stored", "nearest"):
        scores, said = recommender.scores([session], source)
        assert said == ["nearest"]
        torch.testing.assert_close(scores[:, 1:], expected[:, 1:], atol=1e-6, rtol=1e-6)
    _, said = recommender.scores([session], "ask")  # the echo backend answers anything
    assert said == ["asked"]
    assert recommender.scores([session], "stored")[1] == ["stored"]  # and its answer is kept
    without = intents.nearest.clone()
    batch["session_id"] = torch.tensor([0])
    intents.nearest[0] = 0
    torch.testing.assert_close(
        recommender.scores([session], "none")[0][:, 1:], loaded.model.full_sort_predict(batch)[:, 1:].detach()
    )
    intents.nearest.copy_(without)


CATALOGUE = Catalogue(
    ["[PAD]", "1", "2", "3", "4", "5"],
    ["", "Toy Story", "Toy Story", "The Godfather", "The Godfather: Part II", "Monty Python's Life of Brian"],
    [False, True, True, True, True, False],
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        (" 3 ", 3),
        ("the godfather", 3),
        ("The  Godfather Part II!", 4),
        ("Godfather, The", 3),
    ],
)
def test_items_are_found_by_id_and_by_title(text, number):
    assert CATALOGUE.find(text) == number
    assert CATALOGUE.completed(text) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [("part ii", "4"), ("II", "4"), ("the godfahter", "the godfahter"), ("2001", "2001"), ("Par", "Par"), ("!?", "!?")],
)
def test_what_is_typed_may_be_words_that_one_title_alone_holds_and_no_more(text, meant):
    assert CATALOGUE.completed(text) == meant
    with pytest.raises(UserError, match="neither an id nor a title"):
        CATALOGUE.find(text)


@pytest.mark.parametrize("title", ["", "Lamp {}", "lamp, the {} of all"])
@pytest.mark.parametrize("form", ["SKU-{:05}", "{}", "sku_{:x}", "the {} one", "{:05}a"])
def test_no_unseen_id_becomes_an_item(form, title):
    seen, unseen = ([form.format(number) for number in range(first, 600, 3)] for first in (0, 1))
    titles = [title.format(10_000 + number) or token for number, token in enumerate(seen)]
    catalogue = Catalogue(["[PAD]", *seen], ["", *titles], [False, *(True for _ in seen)])
    for text in {*unseen, *map(str.upper, unseen), *(each.replace("-", "_") for each in unseen)} - {*seen}:
        assert not catalogue.knows(text)
        assert catalogue.completed(text) == text
        with pytest.raises(UserError, match="neither an id nor a title"):
            catalogue.find(text)


def test_an_id_whose_digits_a_title_begins_with_is_unknown_and_the_title_is_only_suggested():
    films = Catalogue(["[PAD]", "924", "1"], ["", "2001: A Space Odyssey", "Toy Story"], [False, True, True])
    assert films.completed("2001") == "2001"
    assert films.completed("space odyssey") == "924"
    with pytest.raises(UserError, match=r"did you mean 924 \(2001: A Space Odyssey\)\?"):
        films.find("2001")


def test_items_without_titles_are_found_by_their_very_ids_alone():
    catalogue = Catalogue(["[PAD]", "A-1", "B2"], ["", "A-1", "B2"], [False, True, True])
    assert catalogue.find("A-1") == 1
    for text in ("a-1", "A 1", "b2"):
        with pytest.raises(UserError, match="did you mean"):
            catalogue.find(text)


def test_an_item_is_found_by_its_title_however_it_is_shown(tmp_path):
    long = "a very long title that goes on " * 5
    (tmp_path / "d.item").write_text(
        "item_id:token\ttitle:token_seq\tbrand:token_seq\n"
        f"1\tOak Lamp\tAcme\n2\tLinen Vase\t\n3\t{long}\tZed\n4\t\tAcme\n5\tunknown item\t\n"
    )
    settings = load_settings(dataset="d", overrides={"item_name": "{title} by {brand}"})
    catalogue = Catalogue.read(settings, tmp_path, ["[PAD]", *"12345"], [False] + [True] * 5)
    texts = ("oak lamp", "Oak Lamp by Acme", "linen vase", long, f"{long} by Zed")
    assert [catalogue.find(text) for text in texts] == [1, 1, 2, 3, 3]
    with pytest.raises(UserError):
        catalogue.find("unknown item")  # what an item without a title is called


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("toy story", r"may mean 1 \(Toy Story\); 2 \(Toy Story\); give the id"),
        ("godfather", r"neither an id nor a title.*did you mean 3 \(The Godfather\) or 4 "),
        ("the godfahter", r"neither an id nor a title.*did you mean 3 \(The Godfather\)"),
        ("Monty Pythons Life of Brian", r"item '5' .* is unknown to the model: no training session holds it"),
        ("[PAD]", "neither an id nor a title"),
        ("Jaws", "neither an id nor a title of the 5 items"),
        ("!?", "name items by id or title"),
        ("<script>\x1b[31m", r"'<script>.*neither"),
    ],
)
def test_what_is_no_item_is_said_in_one_line(text, said):
    with pytest.raises(UserError, match=said) as error:
        CATALOGUE.find(text)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def trained(given, made, tmp_path_factory):
    """A checkpoint of the small world."""
    from recbole_llm4sbr.base.settings import load_settings

    folder = tmp_path_factory.mktemp("trained")
    settings = load_settings(dataset="tiny", overrides=given | {"atomic_path": str(made), "checkpoint_dir": str(folder)})
    return train(settings).checkpoint


def test_the_command_writes_what_the_class_returns(trained, tmp_path, capsys):
    recommender = Recommender.load(trained)
    known = [token for token, clicked in zip(recommender.catalogue.tokens, recommender.catalogue.clicked) if clicked]
    sessions = {"first": known[:3], "second": known[3:4]}
    lines = [json.dumps({"session": name, "items": items}) for name, items in sessions.items()]
    (tmp_path / "sessions.jsonl").write_text("\n".join([*lines, json.dumps(known[:2])]) + "\n")
    expected = recommender.recommend([*sessions.values(), known[:2]], topn=3, names=["first", "second", "3"])
    command = ["recommend", f"--checkpoint={trained}", f"--file={tmp_path / 'sessions.jsonl'}", "--topn=3"]
    assert main(command) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert main([*command, f"--out={tmp_path / 'out' / 'answers.jsonl'}"]) == 0
    assert [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()] == found
    assert [row["item"] for row in found] == expected["item"].tolist()
    assert [row["session"] for row in found] == expected["session"].tolist()
    np.testing.assert_allclose([row["score"] for row in found], expected["score"], atol=1e-6)
    capsys.readouterr()
    assert main(["recommend", f"--checkpoint={trained}", f"--items={known[0]}; {known[1]}", "--topn=2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_unknown_items_are_left_out_of_a_file_where_that_is_asked_for(trained, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    known = [
        token
        for token, clicked in zip(*(vars(Recommender.load(trained).catalogue)[name] for name in ("tokens", "clicked")))
        if clicked
    ]
    sessions = [[known[0], "gone", known[1]], ["gone", "lost"], [known[2]]]
    Path("sessions.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, sessions)) + "\n")
    command = ["recommend", f"--checkpoint={trained}", "--file=sessions.jsonl", "--topn=2"]
    assert main(command) == 2
    assert "session '1': item 'gone' is neither an id nor a title" in capsys.readouterr().err
    assert main([*command, "--unknown=drop"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["session"] for row in found] == ["1", "1", "3", "3"]
    expected = Recommender.load(trained).recommend([known[:2], known[2:3]], topn=2)
    assert [row["item"] for row in found] == expected["item"].tolist()
    assert "left out: 3 items that the model does not know, and 1 sessions that hold no other" in caplog.text
    Path("sessions.jsonl").write_text('["gone"]\n')
    assert main([*command, "--unknown=drop"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "recommend needs sessions"),
        (["--items=;"], "it has no items"),
        (["--items=i1", "--file=x.jsonl"], "recommend needs sessions"),
        (["--items=no such title"], "neither an id nor a title"),
        (["--file=none.jsonl"], "there is no file 'none.jsonl'"),
        (["--file=bad.jsonl"], "'bad.jsonl', line 2: '{\"items\": 3}' is no session"),
        (["--file=empty.jsonl"], "holds no session"),
        (["--items=i1", "--topn=0"], "--topn='0' must be a whole number of at least 1"),
        (["--items=i1", "--intents=magic"], "--intents='magic' is unknown"),
        (["--items=i1", "--atomic_path=gone"], "holds no prepared dataset"),
        (["--items=i1", "--epochs=3"], "was trained with epochs"),
    ],
)
def test_a_mistake_is_one_line(trained, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('["i1"]\n{"items": 3}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    assert main(["recommend", f"--checkpoint={trained}", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_near_spelling_is_left_out_of_a_file_and_never_read_as_an_item(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    catalogue = Recommender.load(trained).catalogue
    (token, title), *_ = [pair for pair in zip(catalogue.tokens, catalogue.titles) if catalogue.knows(pair[0])]
    near = [f"{token}0x", title[:-1], title[1:], f"{title} x", title.split()[0]]
    Path("s.jsonl").write_text(json.dumps([token, *near]) + "\n" + json.dumps([title.upper()]) + "\n" + json.dumps(near) + "\n")
    assert main(["recommend", f"--checkpoint={trained}", "--file=s.jsonl", "--topn=2", "--unknown=drop", "--out=o.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    expected = Recommender.load(trained).recommend([[token], [token]], 2)
    assert [row["session"] for row in rows] == ["1", "1", "2", "2"]
    assert [row["item"] for row in rows] == expected["item"].tolist()
    for text in near:
        with pytest.raises(UserError, match="neither an id nor a title"):
            Recommender.load(trained).recommend([[text]])


def test_words_of_one_title_name_an_item_where_they_are_typed_and_nowhere_else(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    catalogue = Recommender.load(trained).catalogue
    number = catalogue.clicked.index(True)
    words = catalogue.titles[number].split(" ", 1)[1]  # as "old house 20", of which there is one
    command = ["recommend", f"--checkpoint={trained}", "--topn=2"]
    assert main([*command, f"--items={words}"]) == 0
    typed = capsys.readouterr().out
    assert main([*command, f"--items={catalogue.tokens[number]}"]) == 0
    assert capsys.readouterr().out == typed
    Path("s.jsonl").write_text(json.dumps([words]) + "\n")
    assert main([*command, "--file=s.jsonl"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_an_ambiguous_title_is_said_and_not_left_out_as_unknown():
    titles = Catalogue(["[PAD]", "1", "2"], ["", "Twin", "twin"], [False, True, False])
    assert titles.knows("Twin")
    with pytest.raises(UserError, match=r"may mean 1 \(Twin\); 2 \(twin\)"):
        titles.find("Twin")


def test_a_whole_number_is_the_id_of_its_digits_and_never_a_place(raw, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(raw, "raw")
    for path in Path("raw/tiny").iterdir():  # ids that are numbers, none of which is its item's place
        path.write_text(re.sub(r"(?m)(^|\t)m(\d+)(?=\t)", lambda found: f"{found[1]}{1000 + int(found[2])}", path.read_text()))
    settings = load_settings(dataset="tiny", overrides=given | {"data_path": "raw", "llm4sbr": False})
    prepare(settings)
    checkpoint = train(settings).checkpoint
    recommender = Recommender.load(checkpoint)
    ids = [int(token) for token, known in zip(recommender.catalogue.tokens, recommender.catalogue.clicked) if known][:3]
    expected = recommender.recommend([list(map(str, ids))])
    for items in (ids, np.array(ids), [ids[0], str(ids[1]), np.int32(ids[2])]):
        assert recommender.recommend([items]).equals(expected)
    Path("s.jsonl").write_text(json.dumps({"session": 0, "items": ids}) + "\n")
    assert main(["recommend", f"--checkpoint={checkpoint}", "--file=s.jsonl", "--out=o.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [row["item"] for row in rows] == expected["item"].tolist()
    for wrong in (1, True, None, float(ids[0]), (1,)):
        with pytest.raises(UserError, match=r"neither an id|neither a text"):
            recommender.recommend([[wrong]])
    Path("s.jsonl").write_text("[true]\n")
    assert main(["recommend", f"--checkpoint={checkpoint}", "--file=s.jsonl"]) == 2


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_recommendations_are_written_in_the_form_that_the_ending_names(trained, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recbole_llm4sbr.cli.recommend._BATCH", 2)  # several pieces
    recommender = Recommender.load(trained)
    known = [token for token in recommender.catalogue.tokens if recommender.catalogue.knows(token)]
    sessions = {name: known[place : place + 2] for place, name in enumerate(["007", 'a "b", c', "d\ne", "f", "g"])}
    lines = [json.dumps({"session": name, "items": items}) for name, items in sessions.items()]
    Path("s.jsonl").write_text("\n".join(lines) + "\n")
    command = ["recommend", f"--checkpoint={trained}", "--file=s.jsonl", "--topn=3", f"--out=out{ending}"]
    assert main(command) == 0
    assert main(command) == 0  # over its own file
    read = {
        ".jsonl": lambda path: pd.read_json(path, lines=True, dtype={"session": str}),
        ".csv": lambda path: pd.read_csv(path, dtype={"session": str}, keep_default_na=False),
        ".parquet": pd.read_parquet,
    }
    found = read[ending.lower()](f"out{ending}")
    expected = recommender.recommend([*sessions.values()], 3, names=[*sessions])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=False, atol=1e-6)


@pytest.mark.parametrize("name", ["out.json", "out", "out.csv.gz", "out.xlsx"])
def test_another_ending_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", "--checkpoint=gone.pth", "--file=gone.jsonl", f"--out={name}"]) == 2
    assert f"--out: '{name}' must end in .jsonl or .csv or .parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_gone_is_named(capsys):
    assert main(["recommend", "--checkpoint=gone.pth", "--items=1"]) == 2
    assert "error: there is no checkpoint 'gone.pth'" in capsys.readouterr().err


def test_python_callers_hear_of_wrong_arguments(trained):
    recommender = Recommender.load(trained)
    with pytest.raises(UserError, match="topn=0 must be"):
        recommender.recommend([["x"]], topn=0)
    with pytest.raises(UserError, match="intents='all' is unknown"):
        recommender.recommend([["x"]], intents="all")
    with pytest.raises(UserError, match="is no list of items"):
        recommender.recommend(["abc"])
    assert recommender.recommend([]).empty


def test_a_damaged_answer_store_is_said_and_not_passed_over(tiny):
    checkpoint = checkpoint_of(tiny)
    recommender = Recommender.load(checkpoint)
    store = next(Path(tiny["atomic_path"]).rglob("answers.sqlite"))
    for each in store.parent.glob("answers.sqlite*"):
        each.unlink()
    store.write_bytes(b"no database" * 100)
    known = recommender.catalogue.clicked.index(True)
    with pytest.raises(UserError, match="is not an answer store"):
        recommender.scores([[known]])


def test_a_pattern_means_the_newest_checkpoint_of_that_form(tiny, tmp_path):
    old, new = (train(tiny | {"model": "SRGNN", "llm4sbr": False, "seed": seed, "checkpoint_dir": str(tmp_path / name)}).checkpoint
                for seed, name in ((1, "z"), (2, "a")))  # fmt: skip
    pattern = (
        str(tmp_path / "*" / "*" / "SRGNN.pth") if Path(old).parent.parent.name == "z" else str(tmp_path / "*" / "SRGNN.pth")
    )
    assert Recommender.load(pattern).recommend([["m1"]]).equals(Recommender.load(new).recommend([["m1"]]))
    with pytest.raises(UserError, match="no checkpoint has the form"):
        load_model(str(tmp_path / "none-*"))
