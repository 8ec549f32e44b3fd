import random

import numpy as np
import pandas as pd
import pytest
from conftest import session_rows

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.data.folders import dataset_folder, part_files
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import SessionRows, beginnings, read_items, read_sessions
from recbole_llm4sbr.intent.cleaning import clean
from recbole_llm4sbr.intent.prompts import PromptTemplate, SessionPrompts, item_names, item_texts
from recbole_llm4sbr.intent.titles import split_joint


def items(*rows, columns=("item_id", "title", "year")):
    return pd.DataFrame(rows, columns=columns)


def given(**changed):
    return load_settings(dataset="tiny", overrides={"item_text": "{title} ({year})"} | changed)


def test_the_movies_prompt_reads_as_written_down_here():
    request = PromptTemplate.load("movies").build(["Toy Story", "Heat"], "long")
    assert request.user == (
        "A person watched these movies in this order:\n1. Toy Story\n2. Heat\n"
        "Guess one movie this person loves. Think of the whole list. Only output the movie title."
    )
    assert request.system == "You are a movie expert."


def test_a_view_sees_its_window_of_the_last_items(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "system: s\nbackground: b\nitem: '{number}) {name}'\ntask: 'q {qualifier}'\n"
        "views: {far: {qualifier: all}, near: {qualifier: now, window: 2}}\n"
    )
    template = PromptTemplate.load(str(path))
    assert template.build(["a", "b", "c"], "near").user == "b\n1) b\n2) c\nq now"
    assert template.build(["a", "b", "c"], "far").user == "b\n1) a\n2) b\n3) c\nq all"
    with pytest.raises(UserError, match=r"'long' is unknown.*far, near"):
        template.check_views(["long"])


@pytest.mark.parametrize("name", ["movies", "products", "generic", "movies-next", "products-next"])
def test_shipped_templates_have_the_views_and_views_share_their_beginning(name):
    template = PromptTemplate.load(name)
    template.check_views(["long", "short", "normal"])
    requests = [template.build(["First", "Second"], view).user for view in ("long", "short", "normal")]
    assert len(set(requests)) == 3
    assert len({request[: request.index("Second")] for request in requests}) == 1


@pytest.mark.parametrize(
    ("text", "says"), [("system: s\n", "lacks background"), ("[1]", "must hold"), ("a: [", "not valid YAML")]
)
def test_a_broken_template_is_named(tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        PromptTemplate.load(str(path))
    with pytest.raises(UserError, match="choose one of generic, movies, movies-next, products, products-next"):
        PromptTemplate.load("moovies")


@pytest.mark.parametrize(
    ("title", "year", "expected"),
    [
        ("Lion King, The", "1994", "The Lion King (1994)"),
        ("Misérables, Les", "1995", "Les Misérables (1995)"),
        ("Good, The Bad and The Ugly, The", "1966", "The Good, The Bad and The Ugly (1966)"),
        ("Heat", "", "Heat"),
        ("Beauty, A Memoir", "2000", "Beauty, A Memoir (2000)"),
        ("  Two  spaces ", "1", "Two spaces (1)"),
    ],
)
def test_item_texts_are_tidy(title, year, expected):
    assert item_texts(items(("i", title, year)), given(article_last=True)) == [expected]


def test_an_empty_column_leaves_no_separator():
    table = items(("i", "Heat", "", ""), columns=("item_id", "title", "year", "genre"))
    assert item_texts(table, given(item_text="{title} ({year}), {genre}")) == ["Heat"]


def test_long_names_are_cut_at_a_word():
    assert item_names(items(("i", "alpha beta gamma delta", "")), given(item_name_length=12)) == ["alpha beta"]
    assert item_names(items(("i", "a" * 30, "")), given(item_name_length=12)) == ["a" * 12]


def test_a_title_with_double_quotes_comes_back_whole_from_an_answer_in_double_quotes():
    table = items(("i1", 'The "oak" lamp, 10 cm', ""), ("i2", '"Quoted"', ""), ("i3", "Screen 24”", ""))
    names = item_names(table, given())
    assert names == ["The 'oak' lamp, 10 cm", "'Quoted'", "Screen 24'"]
    assert [clean(f'"{name}" is what I guess.') for name in names] == ["The 'oak' lamp, 10 cm", "Quoted", "Screen 24"]
    assert item_texts(table, given())[0] == 'The "oak" lamp, 10 cm'


def test_an_item_without_a_text_is_an_error_or_an_unknown_item():
    table = items(("i1", "Heat", ""), ("i2", "", "1990"))
    with pytest.raises(UserError, match=r"item 'i2' has no 'title'.*--missing_item_text=unknown"):
        item_texts(table, given())
    assert item_texts(table, given(missing_item_text="unknown")) == ["Heat", ""]
    assert item_names(table, given(missing_item_text="unknown")) == ["Heat", "unknown item"]


@pytest.mark.parametrize("powers", [False, True])
@pytest.mark.parametrize("joint", [False, True])
def test_no_prompt_of_a_prefix_holds_the_title_of_a_later_item(settings_for, powers, joint):
    settings = settings_for(session_rule="user", MAX_ITEM_LIST_LENGTH=15)
    prepare(settings)
    folder = dataset_folder(settings)
    table = read_items(folder / "tiny.item")
    names = dict(zip(table["item_id"], item_names(table, settings)))
    views = ["long", "short"]
    read = read_sessions(folder, "tiny", *part_files("all", "all"))
    template = PromptTemplate.load(settings["prompt"])
    asked = beginnings(read) if powers else read
    prompts = SessionPrompts(template, views, asked, [names[token] for token in read.tokens], range(len(read.ids)), joint)
    rows = session_rows(folder, "tiny", *part_files("all", "all"))
    whole = {}
    for row, prefix, target in rows:  # prefixes of 1, 2, 3, ... clicks
        whole.setdefault(row.rpartition(".")[0], prefix[:1]).append(target)
    checked, per_row = 0, 1 if joint else 2
    assert len(prompts) == per_row * len(rows)
    for number, (row, _, _) in enumerate(rows):
        session, _, length = row.rpartition(".")
        prefix = whole[session][: int(length)]
        later = set(whole[session][len(prefix) :]) - set(prefix)
        for request in (prompts[per_row * number + view] for view in range(per_row)):
            shown = [line.partition(". ")[2] for line in request.user.splitlines() if line[:1].isdigit()]
            assert not set(shown) & {names[item] for item in later}
            kept = 2 ** int(np.log2(len(prefix))) if powers else len(prefix)
            assert shown == [names[item] for item in prefix[:kept]][-10:]
            checked += len(later)
    assert checked > 1000


def test_under_powers_a_longer_prefix_asks_what_an_earlier_one_asked():
    lengths = np.arange(1, 10)
    rows = SessionRows(
        ["a"], [f"s.{n}" for n in lengths], np.zeros(45, np.int32), np.cumsum(range(10)), np.zeros(9, np.int32), lengths
    )
    prompts = SessionPrompts(PromptTemplate.load("movies"), ["long"], beginnings(rows), ["A film"], range(9))
    lengths = [sum(line[:1].isdigit() for line in request.user.splitlines()) for request in prompts]
    assert lengths == [1, 2, 2, 4, 4, 4, 4, 8, 8]
    assert len(set(prompts)) == 4


def test_a_joint_request_asks_for_all_views_and_its_answer_is_split_by_their_names():
    template = PromptTemplate.load("movies")
    request = template.build_joint(["A", "B"], ["long", "short"])
    assert request.lines == 2
    assert request.answer_start == "long:"
    assert all(template.views[view].qualifier in request.user for view in ("long", "short"))
    for raw in (" The Birds\nshort: Psycho", "long: The Birds\n\nshort: Psycho\n", "**Short:** Psycho\nLONG: The Birds"):
        assert [part.strip("* ") for part in split_joint(raw, ["long", "short"])] == ["The Birds", "Psycho"]
    assert split_joint("The Birds", ["long", "short"]) == ["The Birds", ""]
    assert split_joint("", ["long", "short"]) == ["", ""]


def test_prompts_depend_on_the_prefix_alone():
    template = PromptTemplate.load("movies")
    rng = random.Random(1)
    names = [f"name {n}" for n in range(30)]
    for _ in range(50):
        session = rng.choices(names, k=12)
        cut = rng.randint(1, 11)
        assert template.build(session[:cut], "long") == template.build(list(session)[:cut], "long")
        assert len(template.build(session[:cut], "long").user.splitlines()) == min(cut, 10) + 2
