"""Beam search held to the titles of a catalogue."""

import random

import pytest
import torch
from conftest import file_of
from test_beams import Chain

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.features import read_localized
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.rows import read_items, read_sessions
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.chat import continuations, render
from recbole_llm4sbr.intent.backends.title_tree import TitleTree, likeliest_titles
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.intent.llm_intents import asked_about
from recbole_llm4sbr.intent.pretrained import resolve
from recbole_llm4sbr.intent.titles import HeldReader

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
END = 8


def by_enumeration(paths, next_logs):
    """Every title's log-probability: each token's among those with which some title goes on."""
    found = {}
    for path in paths:
        total = 0.0
        for depth in range(len(path)):
            ways = sorted({other[depth] for other in paths if other[:depth] == path[:depth] and len(other) > depth})
            logs = next_logs(path[:depth])
            total += float(logs[path[depth]] - torch.logsumexp(logs[ways], 0))
        found[path] = total
    return found


@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_what_enumeration_finds(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    paths = {tuple(rng.randrange(1, 5) for _ in range(rng.randint(1, 5))) for _ in range(60)}
    paths |= {(1,), (1, 2), (1, 2, 3), (4, 4, 4, 4, 4, 4)}  # some are the beginnings of others
    titles = {str(path): path for path in sorted(paths)}
    tree = TitleTree(list(titles), list(titles.values()), END, CPU)
    table = torch.randn(9, 9)
    ids = torch.tensor([[2, 3], [5, 6], [7, 1]])
    excluded = [[], list(titles)[3:40], [*list(titles)[:-1], "unknown"]]
    chain = Chain(table, mask := torch.ones_like(ids))
    found = likeliest_titles(chain, chain.after(ids[:, -1]), mask, tree, tree.allowed(excluded), len(paths))
    for prompt in range(3):
        allowed = [(*path, END) for title, path in titles.items() if title not in excluded[prompt]]
        last = int(ids[prompt, -1])
        expected = by_enumeration(allowed, lambda made, last=last: table[made[-1] if made else last].double())
        mine = {
            (*titles[tree.titles[place]], END): score
            for (place,), score in zip(found.tokens[prompt].tolist(), found.scores[prompt].tolist())
            if place >= 0
        }
        assert mine == pytest.approx(expected, abs=1e-4)
        assert sum(map(torch.exp, map(torch.tensor, mine.values()))) == pytest.approx(1.0, abs=1e-4)
        assert list(mine) == sorted(mine, key=lambda path: -mine[path])


def test_a_prompt_without_an_allowed_title_has_none_and_hinders_no_other():
    tree = TitleTree(["a", "b"], [[1], [2]], END, CPU)
    table = torch.zeros(9, 9)
    chain = Chain(table, mask := torch.ones(2, 1).long())
    found = likeliest_titles(chain, chain.after(torch.tensor([3, 3])), mask, tree, tree.allowed([["a", "b"], ["b"]]), 2)
    assert found.tokens.squeeze(2).tolist() == [[-1, -1], [tree.place["a"], -1]]
    assert chain.grown == 0  # what is certain is not computed


def test_titles_that_differ_early_cost_few_tokens():
    tree = TitleTree(["x y z", "q y z"], [[1, 2, 3], [4, 2, 3]], END, CPU)
    chain = Chain(torch.randn(9, 9), mask := torch.ones(1, 1).long())
    found = likeliest_titles(chain, chain.after(torch.tensor([0])), mask, tree, tree.allowed([[]]), 2)
    assert chain.grown == 0 and {tree.titles[place] for place in found.tokens.flatten().tolist()} == {"x y z", "q y z"}


def by_hand(model, tokenizer, request, titles, width):
    """The same search a whole prompt at a time, without a cache and without a tree."""
    prompt = tokenizer(render(tokenizer, request), add_special_tokens=False).input_ids
    paths = {
        tuple(path): title
        for title, path in zip(titles, continuations(tokenizer, request.answer_start, titles))
        if title not in request.excluded
    }
    live, ended = [(0.0, ())], []
    while live:
        grown = []
        for total, made in live:
            below = [path for path in paths if path[: len(made)] == made]
            if len(below) == 1:
                ended.append((total, paths[below[0]]))
                continue
            ways = sorted({path[len(made)] for path in below})
            with torch.no_grad():
                logs = model(torch.tensor([[*prompt, *made]])).logits[0, -1].double()
            grown += [(total + float(logs[way] - logs[ways].logsumexp(0)), (*made, way)) for way in ways]
        live = sorted(grown, key=lambda each: -each[0])[:width]
    return [title for _, title in sorted(ended, key=lambda each: -each[0])[:width]]


@pytest.mark.parametrize("kind", ["tiny_llm", "byte_llm"])
def test_answers_are_those_of_a_search_by_hand_in_any_batch(kind, request):
    llm = request.getfixturevalue(kind)
    titles = ["Heat", "Babe", "Casino", "Toy Story", "Airplane!", "Heat of the Night", "Ran", 'The "Hunt"', "Hard Eight"]
    requests = [
        Request("You know.", "\n".join(["Seen:", *titles[:count], task]), 'Movie: "', excluded=tuple(titles[:count]))
        for count in (1, 3, 6)
        for task in ("Guess one.", "Guess the next.")
    ]
    model, tokenizer = resolve(llm, "llm").load_causal_lm(torch.bfloat16, CPU)
    model.double()  # rounding decides between no two titles
    answers = []
    for tokens, share in ((100_000, True), (900, True), (100_000, False)):
        backend = TransformersBackend(llm, 4, tokens, "cpu", beams=3, share=share)
        backend.hold_to(titles)
        backend.load()
        backend._model = model
        found = {reply.position: reply for reply in backend.generate(requests)}
        answers.append([found[position].answer for position in range(len(requests))])
    reader = HeldReader(3, titles)
    for asked, *mine in zip(requests, *answers):
        expected = by_hand(model, tokenizer, asked, titles, 3)
        assert len(expected) == 3 and not set(expected) & set(asked.excluded)
        said = [title.replace('"', " ").strip() for title in expected]
        assert mine == ["\n".join(f"{number}. {title}" for number, title in enumerate(said, 1))] * 3
        assert reader.read(mine[0]) == [expected]


def test_an_answer_ends_with_its_line_where_a_line_end_is_a_byte(byte_llm):
    backend = TransformersBackend(byte_llm, 4, 100, "cpu")
    backend.load()
    (*_, line_end) = backend._tokenizer("Heat\n", add_special_tokens=False).input_ids
    letter = backend._tokenizer.convert_tokens_to_ids("H")
    assert backend.stop(1, 0)(torch.tensor([[letter, line_end], [line_end, letter]]), None).tolist() == [True, False]


def held_settings(settings_for, tiny_llm, titles):
    settings = settings_for(llm=tiny_llm, llm_backend="transformers", llm_device="cpu", intent_answers=3)
    return settings | {"llm_beams": True, "llm_titles": titles, "item_text": "{title} ({year})"}


@pytest.mark.parametrize("titles", ["catalogue", "new"])
def test_intents_are_titles_of_the_catalogue(settings_for, tiny_llm, titles):
    settings = held_settings(settings_for, tiny_llm, titles)
    prepare(settings)
    made = infer(settings)
    assert made.counts.failures == 0
    items = read_items(dataset_folder(settings) / "tiny.item")
    named = dict(zip(items["item_id"], items["title"]))
    rows = read_sessions(dataset_folder(settings), "tiny", "train-last", "test")
    stored = read_localized(file_of(settings, "tiny.sessemb"), rows.ids)
    inside = 0
    for row, asked in enumerate(asked_about(settings, rows)):
        shown = {named[rows.tokens[click]] for click in rows.clicks[rows.starts[row] : rows.starts[row + 1]]}
        for view, each in asked.items():
            assert len(each.names) == 3 and set(each.names) <= set(named.values())
            # an answer stands for its item, in the LLM's order, whatever the item's text has beside its name
            cells = stored[rows.ids[row]]
            assert [named[item] for item in cells[f"{view}_items"].split()][:3] == each.names
            assert cells[f"{view}_sims"].split()[:3] == ["1.0000"] * 3
            inside += bool(shown & set(each.names))
    assert (inside == 0) == (titles == "new")
    assert infer(settings | {"rebuild": True}).counts.calls == 0


def test_what_may_be_an_answer_is_part_of_its_key(settings_for, tiny_llm):
    settings = held_settings(settings_for, tiny_llm, "any")
    prepare(settings)
    calls = [infer(settings | {"rebuild": True, "llm_titles": titles}).counts.calls for titles in ("any", "catalogue", "new")]
    assert min(calls) > 0


def test_a_held_answer_without_beams_is_refused_also_where_files_are_there(settings_for):
    prepare(settings := settings_for())
    for _ in range(2):
        with pytest.raises(UserError, match="llm_titles=new needs beam search; add --llm_beams=true"):
            infer(settings | {"llm_titles": "new"})
        infer(settings)
