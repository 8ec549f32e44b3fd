"""The page of a report: what is where in it, and how it reads on a wide and on a narrow screen of a real browser, where there is one."""

import base64
import dataclasses
import gzip
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from test_unfinished import as_json, write_grid

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.grids import BestTrial, Search, Trial
from recbole_llm4sbr.base.names import CASE_PAGE, short_name
from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.report.block import Block, Line, main_metrics
from recbole_llm4sbr.report.figures import figures_of
from recbole_llm4sbr.report.intents import describe_all
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.searches import search_tables
from recbole_llm4sbr.report.tables import tables_of

SETTINGS = {
    "plain": {"llm4sbr": False},
    "llm4sbr": {"llm4sbr": True, "intent_source": "llm", "llm": "gpt", "llm_backend": "openai", "llm_name": "", "ray_backend": ""},
    "session_text": {"llm4sbr": True, "intent_source": "session_text"},
    "shuffled": {"llm4sbr": True, "intent_source": "shuffled"},
    "residual": {"llm4sbr": True, "intent_source": "session_text"},
}  # fmt: skip
LONG = "plain+learning_rate=0.0009+weight_decay=0.00001+session_dropout=0.5"
CASE = f'<!doctype html><html><head><meta name=generator content="{CASE_PAGE}"></head><body><p>a session & "its" items</p></body></html>'


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    """Two grids of one dataset: controls, and many variants with long names."""
    folder = tmp_path_factory.mktemp("grids")
    runs = {name: {seed: (5, shift) for seed in (1, 2, 3)} for name, shift in zip(SETTINGS, (0, -0.3, -0.3, -0.1, -0.2))}
    write_grid(folder / "a", runs, settings=SETTINGS)
    many = [LONG, *(f"llm4sbr+fusion=late+item_init=random+learning_rate=0.{n}+weight_decay=0.{n}" for n in range(1, 5))]
    write_grid(folder / "b", {name: {seed: (5, 0.0) for seed in (1, 2)} for name in many}, "Many of them")
    return [folder / "a", folder / "b"]


def figure_of(block, title):
    return next(each for each in figures_of(block) if each.title == title)


def test_an_axis_of_epochs_has_whole_numbers(grids):
    (block,) = read_grids(grids)
    axis = figure_of(block, "Validation by epoch").figure.layout.xaxis
    assert (axis.tick0, axis.dtick) == (0, 1)
    for line in block.lines[:1]:
        for result in line.results.values():
            result.settings["eval_step"] = 2
    assert figure_of(block, "Validation by epoch").figure.data[0].x[:3] == (1, 3, 5)  # as `best_epoch` counts
    for line in block.lines[:1]:
        for result in line.results.values():
            result.settings["eval_step"] = 1
            result.valid_scores.extend([0.1] * 80)
    assert figure_of(block, "Validation by epoch").figure.layout.xaxis.dtick == 10


def test_metrics_that_are_no_shares_or_have_no_cut_off_are_shown(tmp_path):
    metrics = {"hit@20": 0.1, "gauc": 0.75, "averagepopularity@20": 5.17}
    own = {"metrics": ["Hit", "GAUC", "AveragePopularity"]}
    line = Line("G", "SRGNN", "plain", "", {1: RunResult.from_json(as_json(5, **own) | {"test_result": metrics})})
    table = tables_of(Block("d", "temporal", [line]))[0]
    assert dict(zip(table.head[2:], table.rows[0][2:])) == {"Hit@20": "10.00", "GAUC": "75.00", "AveragePopularity@20": "5.17"}
    assert main_metrics([line]) == ["Hit@20", "AveragePopularity@20"]
    best = BestTrial({"hop": 2}, "0", 0.1, line.results[1])
    search = Search(
        "d", "temporal", "SRGNN", "Hit@20", True, "", "", {"how": "grid"}, None, [Trial("0", {"hop": 2}, 0.1)], best
    )
    tested = search_tables(search)[-1]
    assert dict(zip(tested.head, tested.rows[0])) == {"hit@20": "10.00", "gauc": "75.00", "averagepopularity@20": "5.17"}
    assert "in percent (averagepopularity: as it is)" in tested.how


def test_the_answerer_is_named_where_no_variant_is_called_llm4sbr():
    counts = IntentCounts.from_json({"prompts": 9, "intents": 8, "no_intent": 1})
    given = {
        "llm4sbr": True,
        "llm": "gpt",
        "llm_backend": "openai",
        "llm_name": "",
        "ray_backend": "",
        "encoder": "e",
        "fusion": "gate",
        "intent_source": "llm",
    }

    def line(variant, **changed):
        result = RunResult.from_json(as_json(5, **given | changed))
        return Line("G", "SRGNN", variant, "", {1: dataclasses.replace(result, infer=counts)})

    answers = "answers of gpt, 9 prompts, 1 of 9 intents missing; text encoder e."
    assert describe_all([line("text-init")]) == describe_all([line("llm4sbr"), line("late", encoder="f")]) == answers
    assert describe_all([line("llm4sbr"), line("llm4sbr", encoder="f")]) == f"{answers} {answers.replace('e.', 'f.')}"
    assert describe_all([line("session_text", intent_source="session_text")]) is None


def test_each_metric_has_an_axis_of_its_own():
    made = as_json(5, metrics=["Hit", "MRR"]) | {"test_result": {"hit@20": 0.2, "mrr@20": 0.05}}
    for models in (["SRGNN"], ["SRGNN", "NARM"]):
        lines = [
            Line("G", model, name, "", {1: RunResult.from_json(made)}) for model in models for name in ("plain", "llm4sbr")
        ]
        figure = figure_of(Block("d", "temporal", lines), "G").figure
        long = "y" if len(models) > 1 else "x"
        by_axis = {}
        for trace in figure.data:
            by_axis.setdefault(trace[f"{long}axis"] or long, set()).update(trace[long])
        assert by_axis == {long: {20.0}, f"{long}2": {5.0}}


def test_long_names_are_cut_and_stay_apart(grids):
    (block,) = read_grids(grids)
    names = {line.variant: line.name for line in block.lines}
    assert names[LONG] == short_name(LONG) == "plain + 3 settings"
    assert names["plain"] == "plain"
    assert len(set(names.values())) == len(names)
    assert names["llm4sbr+fusion=late+item_init=random+learning_rate=0.2+weight_decay=0.2"] == "llm4sbr + 4 settings (2)"


def test_a_note_by_hand_beneath_the_title_stays_and_stands_on_the_page(grids, tmp_path):
    report(grids[:1], tmp_path, None)
    path = tmp_path / "d.md"
    lines = path.read_text().splitlines()
    note = ["> **Mine**: kept & `whole`.", ">", "> Second."]
    path.write_text("\n".join([lines[0], "", *note, "", *lines[1:]]))
    report(grids[:1], tmp_path, tmp_path / "page.html")
    once = path.read_text()
    assert "\n".join(note) in once
    assert once.count("> **Mine**") == 1
    report(grids[:1], tmp_path, None)
    assert path.read_text() == once
    assert "<p><b>Mine</b>: kept &amp; <code>whole</code>. </p><p> Second.</p>" in (tmp_path / "page.html").read_text()


def test_a_case_of_inspect_stands_on_the_page_and_another_file_is_refused(grids, tmp_path):
    (tmp_path / "case.html").write_text(CASE)
    report(grids[:1], tmp_path, tmp_path / "page.html", tmp_path / "case.html")
    page = (tmp_path / "page.html").read_text()
    assert 'sandbox="allow-same-origin" srcdoc="&lt;!doctype html&gt;' in page
    assert "a session &amp; &quot;its&quot; items" in page
    (tmp_path / "other.html").write_text("<p>another</p>")
    for name, expected in (("other.html", "is not a page that `inspect` wrote"), ("none.html", "cannot be read")):
        with pytest.raises(UserError, match=expected):
            report(grids[:1], tmp_path, None, tmp_path / name)


def test_a_grid_made_to_be_passed_on_gives_the_same_report_and_holds_no_session_and_no_path(grids, tmp_path, monkeypatch):
    grid, shared = tmp_path / "grid", tmp_path / "shared"
    shutil.copytree(grids[0], grid)
    lines = [json.loads(line) for line in (grid / "cells.jsonl").read_text().splitlines()]
    member = {"name": "plain", "checkpoint": "/home/someone/member.pth", "weight": 1.0}
    for line in lines:
        line["result"] |= {"checkpoint": "/home/someone/model.pth", "members": [member]}
        line["result"]["settings"] |= {"session_targets": "all", "checkpoint_dir": "/home/someone/saved"}
    (grid / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (grid / "ranks").iterdir():  # two prefixes of each session, which the report takes together
        with np.load(path) as arrays:
            rows = {**arrays, "session": np.array([f"someone-{n // 2}.{n % 2 + 1}" for n in range(300)])}
        np.savez_compressed(path, **rows)
    script = Path(__file__).parents[1] / "benchmarks" / "share_grid.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(grid), str(shared)])
    runpy.run_path(str(script), run_name="__main__")
    assert "/home" not in (shared / "cells.jsonl").read_text()
    assert len(list((shared / "ranks").iterdir())) == len(lines)
    for path in (shared / "ranks").iterdir():
        with np.load(path) as theirs, np.load(grid / "ranks" / path.name) as ours:
            assert len(set(theirs["session"])) == 300
            assert "someone" not in " ".join(theirs["session"])
            assert all(np.array_equal(theirs[name], ours[name]) for name in ours if name != "session")
    pages = [report([folder], folder / "pages", None)[0][0].read_text() for folder in (grid, shared)]
    assert pages[0] == pages[1]


def test_the_library_is_in_the_page_whole_and_packed(grids, tmp_path):
    from plotly.offline import get_plotlyjs

    report(grids, tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    packed = re.search(r"<script type=text/plain id=plotly>([^<]+)</script>", page)[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(page) < 0.55 * len(get_plotlyjs())
    for drawn in re.findall(r"<script type=application/json>(.+?)</script>", page):
        assert json.loads(drawn)["data"]


COMMITTED = Path(__file__).parents[1] / "results" / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["made here", "committed"])
def test_the_answer_is_above_the_fold_and_the_rest_is_folded(grids, browser, tmp_path, which, width):
    path = COMMITTED
    if which == "made here":
        path = tmp_path / "page.html"
        (tmp_path / "case.html").write_text(CASE)
        report(grids, tmp_path, path, tmp_path / "case.html")
    page = browser.new_page(viewport={"width": width, "height": 800 if width == 1280 else 844}, color_scheme="light")
    page.set_default_timeout(120_000)  # of a busy machine
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    page.goto(path.resolve().as_uri())
    page.wait_for_selector(".answer .plot svg.main-svg")
    inside = "element => { const box = element.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    assert page.locator(".finding").first.evaluate(inside)
    if width == 1280:
        assert page.locator(".answer .table").first.evaluate(inside)
        table, figure = (page.locator(f".answer .pair > {each}").first.bounding_box() for each in (".table", "figure"))
        assert table["x"] + table["width"] <= figure["x"]  # side by side
        assert page.evaluate("document.documentElement.scrollHeight") < 15_000
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    if which == "made here":
        open_all(page)
        assert page.evaluate(fits)
        uncut = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1 && !box.classList.contains('cut')).length"
        assert page.locator(".scroll").evaluate_all(uncut) == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        until(page, """() => { const of = (found) => getComputedStyle(document.querySelector(found));
                               return of("svg.main-svg .xtick text").fill === of("body").color; }""")  # fmt: skip
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert said == []
    page.close()


def until(page, expression):
    """Wait; Playwright's own way to wait for an expression is one that the page's policy forbids."""
    for _ in range(1200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(expression)


def open_all(page):
    """Unfold everything by the links of the contents, and wait for all figures."""
    menu = page.locator("nav summary")
    for number in range(page.locator("nav a").count()):
        if menu.is_visible():
            menu.click()
        page.locator("nav a").nth(number).click()
    until(page, "[...document.querySelectorAll('main > section details')].every(each => each.open)")
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    assert page.frame_locator("iframe").locator("p").inner_text() == 'a session & "its" items'
