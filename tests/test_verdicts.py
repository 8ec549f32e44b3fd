"""The answer of a report in words: each case in which an LLM's intents are judged, or are not, has its sentence, and no other claim."""

from types import SimpleNamespace

import pytest
from test_unfinished import as_json, write_grid

from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.report.answer import answer_figure, answer_table
from recbole_llm4sbr.report.block import Block, Line
from recbole_llm4sbr.report.comparisons import Comparison, compared
from recbole_llm4sbr.report.ladders import ladders_of
from recbole_llm4sbr.report.overview import overview_table
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.verdicts import page_title, sentences, topic

OF_VARIANTS = {  # settings as `compare` makes them
    "plain": {"llm4sbr": False},
    "plain-text-init": {"llm4sbr": False, "item_init": "text"},
    "w/o LLM": {"llm4sbr": False},
    "session_text": {"intent_source": "session_text"},
    "shuffled": {"intent_source": "shuffled"},
    "random": {"intent_source": "random"},
    "none": {"intent_source": "none"},
}
LLM = {
    "llm4sbr": True,
    "intent_source": "llm",
    "item_init": "random",
    "llm": "gpt",
    "llm_backend": "openai",
    "ray_backend": "",
    "llm_name": "",
}


def line(variant, model="SRGNN", seeds=3, late=(), **grid):
    settings = LLM | grid | OF_VARIANTS.get(variant.partition("+")[0], {}) | {"valid_metric": "MRR@20"}
    if "+llm=" in variant:
        settings["llm"] = variant.partition("+llm=")[2]
    runs = {
        seed: SimpleNamespace(settings=settings, infer=None, valid_metric="MRR@20", unfinished=seed in late, test_result={"mrr@20": 0.05})
        for seed in range(1, seeds + 1)
    }  # fmt: skip
    return Line("T", model, variant, "", runs)


def judged(lines, verdicts, numbers=(12.0, 2.0, 22.0)):
    """The ladders of lines, where `llm4sbr` has those verdicts against others (else `better`); all improvements are the same."""
    block = Block("d", "temporal", list(lines))
    tests = [
        Comparison(a, b, metric, *numbers, 0.01, 0.01, 3, verdicts.get(b.variant.partition("+")[0], "better"))
        for a, b in block.pairs("T")
        for metric in ("Hit@20", "MRR@20")
    ]
    return ladders_of(block, {"T": tests})


def said(variants, verdicts=None, **grid):
    found = judged([line(variant, **grid) for variant in variants], verdicts or {})
    (sentence,) = sentences(found)
    return sentence, topic(found)


OVER = "+12.0 % [+2.0, +22.0]"
GROUND = "3 seeds, unfinished: none."
WITH_CONTROLS = ["plain", "llm4sbr", "session_text", "shuffled", "random", "none"]
ADDED, WITHOUT = "What the language model added", "With and without intents of a language model"
SESSION_TEXT = "Intents of session text; no language model was asked"


def test_intents_that_were_asked_for_a_part_of_the_sessions_alone_are_called_so():
    lines = [line(variant) for variant in WITH_CONTROLS]
    for result in lines[1].results.values():
        result.infer = IntentCounts(intents=6, no_intent=2, not_asked=992)
    (sentence,) = sentences(judged(lines, {"plain": "no"}))
    assert "**no gain beyond chance from the LLM's intents (only 0.8 % of them were asked for)**" in sentence


@pytest.mark.parametrize(
    ("variants", "verdicts", "finding", "numbers", "about"),
    [
        (WITH_CONTROLS, {},
         "the LLM's intents help: better than plain and than every control (no intents, random vectors, exchanged intents and session "
         "text)",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (WITH_CONTROLS, {"shuffled": "no", "session_text": "worse"},
         "better with the LLM's intents than plain, but not better than exchanged intents or session text: what the LLM adds is not shown",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (WITH_CONTROLS, {"session_text": "unfinished: not judged"},
         "better with the LLM's intents than plain, but not judged against session text: what the LLM adds is not shown",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (WITH_CONTROLS, {"plain": "no"}, "no gain beyond chance from the LLM's intents",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (WITH_CONTROLS, {"plain": "worse"}, "worse with the LLM's intents than plain",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (["plain", "llm4sbr"], {},
         "better with the LLM's intents than plain, but not tested against any control: what the LLM adds is not shown",
         f"{OVER} MRR@20 over plain", WITHOUT),
        (["plain", "llm4sbr"], {"plain": "no"}, "no gain beyond chance from the LLM's intents", f"{OVER} MRR@20 over plain", WITHOUT),
        (["plain", "llm4sbr", "shuffled"], {},
         "better with the LLM's intents than plain and exchanged intents, but not tested against session text, which needs no LLM: what "
         "the LLM adds is not shown", f"{OVER} MRR@20 over plain, {OVER} over exchanged intents", ADDED),
        (["plain", "plain-text-init", "llm4sbr"], {"plain-text-init": "no"},
         "better with the LLM's intents than plain, but not better than plain with text: what the LLM adds is not shown",
         f"{OVER} MRR@20 over plain, {OVER} over plain with text", WITHOUT),
        (["plain", "llm4sbr", "session_text"], {"plain": "one seed: not judged", "session_text": "one seed: not judged"},
         "one seed: not judged", f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (["plain", "llm4sbr", "session_text"], {"plain": "unfinished: not judged"}, "unfinished: not judged",
         f"{OVER} MRR@20 over plain, {OVER} over session text", ADDED),
        (["llm4sbr", "w/o AU"], {}, "no plain model beside the LLM's intents: not judged", "", WITHOUT),
    ],
)  # fmt: skip
def test_what_is_said_of_an_llms_intents(variants, verdicts, finding, numbers, about):
    ground = "; ".join(filter(None, [numbers, GROUND]))
    assert said(variants, verdicts) == (f"SRGNN: **{finding}**; {ground}", about)


@pytest.mark.parametrize(
    ("variants", "verdicts", "finding"),
    [
        (["plain", "llm4sbr", "shuffled", "random"], {},
         "no LLM was asked; intents of session text help: better than plain and than every control (random vectors and exchanged intents)"),
        (["plain", "llm4sbr", "shuffled", "random"], {"random": "no"},
         "no LLM was asked; better with intents of session text than plain, but not better than random vectors: what the text adds is not "
         "shown"),
        (["plain", "llm4sbr"], {},
         "no LLM was asked; better with intents of session text than plain, but not tested against any control: what the text adds is not "
         "shown"),
        (["plain", "llm4sbr"], {"plain": "no"}, "no LLM was asked; no gain beyond chance from intents of session text"),
        (["plain", "llm4sbr"], {"plain": "one seed: not judged"}, "no LLM was asked; one seed: not judged"),
        (["llm4sbr+fusion=late", "llm4sbr+fusion=gate"], {},
         "no LLM was asked; no plain model beside intents of session text: not judged"),
        (["plain", "session_text"], {"plain": "no"}, "no LLM was asked; no gain beyond chance from intents of session text"),
    ],
)  # fmt: skip
def test_intents_of_session_text_are_never_called_an_llms(variants, verdicts, finding):
    sentence, about = said(variants, verdicts, intent_source="session_text")
    assert sentence.startswith(f"SRGNN: **{finding}**; ")
    assert about == SESSION_TEXT
    assert "the LLM" not in sentence


def test_without_intents_there_is_nothing_to_judge():
    sentence, about = said(["plain", "plain-cosine"], llm4sbr=False)
    assert sentence == f"SRGNN: **no variant with intents, so nothing to judge**; {GROUND}"
    assert about == "No intents"


def test_unfinished_runs_are_named_and_cells_without_a_result_counted():
    lines = [line("plain"), line("llm4sbr", late=(2, 3)), line("shuffled")]
    lines[2].reasons[4] = "killed"
    (sentence,) = sentences(judged(lines, {"plain": "unfinished: not judged"}))
    assert sentence.endswith("; 3 seeds, unfinished: SRGNN llm4sbr (seeds 2, 3), cells without a result: 1.")
    assert sentence.startswith("SRGNN: **unfinished: not judged**; ")


def test_a_plain_model_whose_item_table_starts_from_text_is_called_so():
    """As under the recipe `strong`, where the switch holds for every line; settings of its own are said in the table."""
    lines = [line("plain+learning_rate=0.1", item_init="text"), line("llm4sbr", item_init="text")]
    found = judged(lines, {"plain": "no"})
    assert sentences(found)[0].endswith(f"{OVER} MRR@20 over plain with text; {GROUND}")
    assert [row[1] for row in answer_table(found).rows] == ["plain with text, own settings", "LLM\ngpt"]


def test_the_plain_model_of_the_comparison_is_the_one_that_intents_are_tested_against():
    """A plain model without text beside the recipe's own: the variants are tested against `plain`, whose table starts from text."""
    lines = [
        line("plain", item_init="text"),
        line("plain+item_init=random", item_init="text"),
        line("llm4sbr", item_init="text"),
    ]
    lines[1].results = line("plain", item_init="random").results
    lines.append(line("ensemble(plain,llm4sbr)"))
    found = judged(lines, {"plain": "no"})
    assert sentences(found)[0].endswith(f"{OVER} MRR@20 over plain with text; {GROUND}")
    assert [row[1] for row in answer_table(found).rows] == ["plain", "plain with text", "LLM\ngpt"]
    assert answer_table(found).rows[0][3] == f"{OVER}\ninside chance"


def test_backbones_of_which_the_same_is_found_share_a_sentence_and_others_have_their_own():
    lines = [line(variant, model) for model in ("SRGNN", "NARM", "STAMP") for variant in ("plain", "llm4sbr")]
    lines += [line("llm4sbr", "TAGNN")]
    assert sentences(judged(lines[:4], {"plain": "no"})) == [
        f"SRGNN and NARM: **no gain beyond chance from the LLM's intents**; {OVER} (SRGNN) and {OVER} (NARM) MRR@20 over plain; {GROUND}"
    ]
    first, second = sentences(judged(lines, {"plain": "no"}))
    assert first.startswith(
        "SRGNN, NARM and STAMP: **no gain beyond chance from the LLM's intents**; +12.0 to +12.0 % MRR@20 over plain;"
    )
    assert second == f"TAGNN: **no plain model beside the LLM's intents: not judged**; {GROUND}"


def test_each_llm_is_judged_by_its_own_controls():
    variants = ["plain", *(f"{name}+llm={llm}" for name in ("llm4sbr", "shuffled") for llm in ("a", "b"))]
    found = judged([line(variant) for variant in variants], {"shuffled": "no"})
    assert [sentence.split(":")[0] for sentence in sentences(found)] == ["SRGNN with a", "SRGNN with b"]
    rows = answer_table(found).rows
    assert [row[1] for row in rows] == ["plain", "exchanged intents", "LLM\na", "plain", "exchanged intents", "LLM\nb"]
    labels = [name for trace in answer_figure(found).figure.data for name in trace.y]
    assert labels == ["exchanged intents (a)", "exchanged intents (b)", "a", "b"]


def test_the_small_table_rises_from_the_plain_model_to_the_llm_and_has_both_comparisons():
    table = answer_table(judged([line(variant) for variant in WITH_CONTROLS], {"session_text": "no"}))
    assert table.head == ["model", "variant", "MRR@20", "over plain", "LLM over it"]
    assert [row[1] for row in table.rows] == [
        "plain", "no intents", "random vectors", "exchanged intents", "session text", "LLM\ngpt"]  # fmt: skip
    assert table.rows[0][2:] == ["5.00 ± 0.00", "", f"{OVER}\nbetter"]
    assert table.rows[4][3:] == [f"{OVER}\nbetter", f"{OVER}\ninside chance"]
    assert table.rows[5][3:] == [f"{OVER}\nbetter", ""]
    assert answer_table(judged([line("plain")], {})) is None


def test_the_table_that_tells_most_of_a_backbone_is_the_one_that_is_judged():
    lines = [line("llm4sbr"), line("w/o AU"), *(line(variant) for variant in WITH_CONTROLS)]
    for each in lines[:2]:
        each.group = "First"
    block = Block("d", "temporal", lines)
    tests = {
        group: [Comparison(a, b, "MRR@20", 1.0, 0.0, 2.0, 0.5, 0.5, 3, "no") for a, b in block.pairs(group)]
        for group in block.groups
    }
    (ladder,) = ladders_of(block, tests)
    assert (ladder.group, len(ladder.below)) == ("T", 5)


def test_a_page_says_what_the_llm_added_only_where_every_part_of_it_can():
    controlled = judged([line(variant) for variant in WITH_CONTROLS], {})
    uncontrolled = judged([line("plain"), line("llm4sbr")], {})
    without = judged([line("plain", llm4sbr=False)], {})
    assert page_title([controlled]) == ADDED
    for other in (uncontrolled, without):
        assert page_title([controlled, other]) == "Session recommenders with and without intents"
    assert page_title([without]) == "Session recommenders compared"
    assert page_title([[]]) == topic([]) == "A search of settings"
    assert sentences([]) == ["**Nothing is compared here**; the best trial of a search is tested once."]


def test_the_words_are_those_of_the_statistics_over_real_ranks(tmp_path):
    """Hand-made ranks: the LLM's far ahead of plain and of exchanged intents, session text level with it."""
    runs = {name: {seed: (5, shift) for seed in (1, 2, 3)} for name, shift in (
        ("plain", 0.0), ("llm4sbr", -0.9), ("shuffled", 0.0), ("session_text", -0.9))}  # fmt: skip
    settings = {name: LLM | OF_VARIANTS.get(name, {}) for name in runs}
    write_grid(tmp_path, runs, settings=settings)
    (block,) = read_grids([tmp_path])
    tests = compared(block, "Comparison")
    assert {each.reference.variant: each.verdict for each in tests if each.line.variant == "llm4sbr"} == {
        "plain": "better", "shuffled": "better", "session_text": "no"}  # fmt: skip
    _, parts = report([tmp_path], tmp_path, tmp_path / "report.html")
    (sentence,) = sentences(parts["d, temporal split"].ladders)
    assert (
        "better with the LLM's intents than plain, but not better than session text: what the LLM adds is not shown" in sentence
    )
    text = (tmp_path / "d.md").read_text()
    assert text.splitlines()[:3] == ["# d, temporal split", "", sentence]
    assert text.index("| SRGNN | session text |") < text.index("**Protocol**")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>What the language model added</h1>" in page
    one = {name: {1: each[1]} for name, each in runs.items()}
    write_grid(tmp_path / "one", one, settings=settings)
    _, parts = report([tmp_path / "one"], tmp_path / "one", None)
    assert "**one seed: not judged**" in sentences(parts["d, temporal split"].ladders)[0]


def test_the_overview_has_a_row_for_each_backbone_beside_a_plain_model_and_stands_where_there_are_several_datasets(tmp_path):
    text = {"item_init": "text"}
    of_llm = judged([line(variant) for variant in WITH_CONTROLS], {"session_text": "no"})
    of_text = judged([line("plain", **text), line("session_text", **text), line("random", **text)], {})
    alone = judged([line("session_text")], {})
    table = overview_table([("d, temporal split", of_llm), ("e, paper split", [*of_text, *alone])])
    assert table.head == [
        "data", "model", "finding", "plain", "plain with text", "controls", "session text", "LLM", "over plain", "LLM over session text",
    ]  # fmt: skip
    score = "5.00 ± 0.00"
    (first, second) = table.rows
    assert first[:2] == ["d, temporal split", "SRGNN"] and first[2].startswith(
        "better with the LLM's intents than plain, but not"
    )
    assert first[3:] == [score, "", f"{score}\nno intents", score, f"{score}\ngpt", f"{OVER}\nbetter", f"{OVER}\ninside chance"]
    assert (
        second[:2] == ["e, paper split", "SRGNN"]
        and second[3:5] == ["", score]
        and second[6:8] == [score, ""]
        and second[9] == ""
    )
    assert overview_table([("d", of_llm)]) is None and overview_table([("d", alone), ("e", alone)]) is None
    for name, dataset in (("one", "d"), ("two", "e")):
        write_grid(
            tmp_path / name,
            {"plain": {1: (5, 0.0)}, "llm4sbr": {1: (5, -0.4)}},
            settings={"llm4sbr": LLM, "plain": {"llm4sbr": False}},
        )
        grid = tmp_path / name / "grid.json"
        grid.write_text(grid.read_text().replace('"dataset": "d"', f'"dataset": "{dataset}"'))
    report([tmp_path / "one", tmp_path / "two"], tmp_path / "both", tmp_path / "both.html")
    assert (tmp_path / "both/overview.md").read_text().count("| SRGNN |") == 2
    assert "<section class=answer id=overview><h2>At a glance" in (tmp_path / "both.html").read_text()
    report([tmp_path / "one"], tmp_path / "alone", tmp_path / "alone.html")
    assert not (tmp_path / "alone/overview.md").exists() and "At a glance" not in (tmp_path / "alone.html").read_text()


def test_a_grid_without_controls_has_another_title(tmp_path):
    runs = {name: {seed: (5, 0.0) for seed in (1, 2)} for name in ("plain", "llm4sbr")}
    write_grid(tmp_path, runs, settings={"plain": OF_VARIANTS["plain"], "llm4sbr": LLM})
    report([tmp_path], tmp_path, tmp_path / "report.html")
    assert "hat the language model added" not in (tmp_path / "report.html").read_text()


def test_a_result_is_read_with_the_settings_that_tell_its_place():
    result = RunResult.from_json(as_json(3, **LLM))
    assert Line("g", "SRGNN", "llm4sbr", "", {1: result}).settings["llm"] == "gpt"
    assert Line("g", "SRGNN", "llm4sbr", "").settings == {}
