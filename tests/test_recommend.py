"""`recommend`: sessions by what they hold, against the scores that the model gives the same sessions of its own files."""

import json
import shutil
from pathlib import Path

import numpy as np
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
        ("part ii", 4),
        ("the godfahter", 3),
        ("Godfather, The", 3),
    ],
)
def test_items_are_found_by_id_title_part_of_a_title_and_nearly_the_same_letters(text, number):
    assert CATALOGUE.find(text) == number


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("toy story", r"may mean 1 \(Toy Story\); 2 \(Toy Story\); give the id"),
        ("godfather", r"may mean 3 .*; 4 "),
        ("life of brian", r"item '5' .* is unknown to the model: no training session holds it"),
        ("[PAD]", "neither an id nor a title"),
        ("Jaws", "neither an id nor a title of the 5 items"),
        ("!?", "no title"),
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
