"""The grid of `compare` and `ablate`, and the report that is made of it."""

import json
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.grids import read_cell_results
from recbole_llm4sbr.base.metrics import session_metric
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.experiment import cells
from recbole_llm4sbr.experiment.compare import compare
from recbole_llm4sbr.experiment.progress import GridProgress
from recbole_llm4sbr.experiment.variants import ABLATIONS, read_variants
from recbole_llm4sbr.report.comparisons import by_session
from recbole_llm4sbr.report.page import report
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.tables import tables_of
from recbole_llm4sbr.training import keys
from recbole_llm4sbr.training.ensemble import run_ensemble

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as in each process of a grid


@pytest.fixture
def here(given, tmp_path, monkeypatch):
    """Settings for a grid on `tiny`, and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return given | {"atomic_path": str(tmp_path / "atomic"), "epochs": 2}


def run(here, out="out", variants=("plain", "llm4sbr"), models=("SRGNN",), seeds=2, **more):
    return compare({"Comparison": list(variants)}, models, ["tiny"], seeds, here, out, more.pop("workers", 0), **more)


def counting(monkeypatch):
    """The labels of the cells that were trained."""
    seen, original = [], cells.run_cell

    def watched(settings, on_epoch):
        seen.append((settings["model"], settings["llm4sbr"], settings["seed"]))
        return original(settings, on_epoch)

    monkeypatch.setattr(cells, "run_cell", watched)
    return seen


def test_the_report_shows_settings_that_the_files_said_and_nobody_typed(here):
    prepare(load_settings(dataset="tiny", overrides=here | {"min_session_length": 3}))
    for _ in range(2):
        run(here, variants=["plain"], seeds=1, command="recbole-llm4sbr compare --dataset=tiny")
    assert json.loads(Path("out/grid.json").read_text())["commands"] == [
        "recbole-llm4sbr compare --dataset=tiny --min_session_length=3"
    ]


def test_a_second_run_trains_only_what_is_missing_and_reports_the_same(here, monkeypatch):
    seen = counting(monkeypatch)
    run(here)
    report(["out"], "one", None)
    run(here)
    report(["out"], "two", None)
    assert sorted(seen) == [("SRGNN", enhanced, seed) for enhanced in (False, True) for seed in (2020, 2021)]
    assert Path("one/tiny.md").read_text() == Path("two/tiny.md").read_text()
    run(here, variants=("plain", "llm4sbr+intent_k=1"), seeds=[2021])
    assert seen[4:] == [("SRGNN", True, 2021)]  # the plain cell does not depend on intent_k, and is there


def test_ranks_of_sessions_give_recboles_metrics(here):
    rows = run(here, seeds=1, models=["SRGNN", "GRU4Rec"], variants=["plain", "llm4sbr", "recbole"])
    assert [row.status for row in rows] == ["ok"] * 6
    for row in rows:
        with np.load(f"out/ranks/{row.key}.npz") as arrays:
            for metric in ("Hit@5", "MRR@10", "NDCG@20"):
                mean = session_metric(arrays["rank"], metric).mean()
                assert mean == pytest.approx(row.result.test_result[metric.lower()], abs=1e-6)
            test = [line.split("\t") for line in Path("atomic/tiny/tiny.test.inter").read_text().splitlines()[1:]]
            assert sorted(arrays["session"].tolist()) == sorted(line[0] for line in test)
            lengths = {line[0]: min(len(line[1].split(" ")), 12) for line in test}
            assert [lengths[name] for name in arrays["session"].tolist()] == arrays["length"].tolist()


def test_head_targets_are_the_most_clicked_fifth(here):
    row = run(here, seeds=1, variants=["plain"])[0]
    counts = {}
    for line in Path("atomic/tiny/tiny.train-last.inter").read_text().splitlines()[1:]:
        _, prefix, target = line.split("\t")
        for item in [*prefix.split(" "), target]:
            counts[item] = counts.get(item, 0) + 1
    items = Path("atomic/tiny/tiny.item").read_text().splitlines()[1:]
    least = sorted(counts.values())[-round(0.2 * len(items))]
    with np.load(f"out/ranks/{row.key}.npz") as arrays:
        heads = dict(zip(arrays["session"].tolist(), arrays["head"].tolist()))
    for line in Path("atomic/tiny/tiny.test.inter").read_text().splitlines()[1:]:
        session, _, target = line.split("\t")
        if counts[target] != least:  # ties at the edge go by item id
            assert heads[session] == (counts[target] > least)


def test_a_cell_that_cannot_run_is_recorded_and_the_others_run(here):
    rows = run(here, models=["NPE", "SRGNN"], seeds=1)
    assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]
    assert "its score has two parts" in rows[1].reason
    tables = {table.title: table for table in tables_of(read_grids(["out"])[0])}
    assert tables["Cells without a result"].rows == [["NPE", "llm4sbr", "2020", rows[1].reason]]


def test_every_epoch_of_every_cell_is_told_of_while_it_trains(here, monkeypatch):
    told, epoch = {}, GridProgress.epoch

    def watched(self, cell, number, score):
        told.setdefault(cell.key, []).append((number, score))
        epoch(self, cell, number, score)

    monkeypatch.setattr(GridProgress, "epoch", watched)
    for workers in (0, 2):
        told.clear()
        rows = run(here, f"out{workers}", seeds=1, workers=workers)
        assert told == {row.key: list(enumerate(row.result.valid_scores)) for row in rows}


def test_progress_names_what_trains_in_a_log_and_not_on_request(caplog, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("recbole_llm4sbr.experiment.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    cell = cells.Cell("g", "tiny", "SRGNN", "plain", 2020, "", {"valid_metric": "MRR@20"}, key="a")
    caplog.set_level("INFO")
    for shown, between in ((True, 3600.0), (False, 0.0)):
        with closing(GridProgress(shown, between)) as progress:
            progress.epoch(cell, 0, 0.0412)
    assert not caplog.messages
    with closing(GridProgress(True, 0.0)) as progress:
        progress.epoch(cell, 0, 0.0412)
        clock[0] += 30.0
        progress.epoch(cell, 4, 0.05)
        clock[0] += 110.0
        progress.epoch(cell, 5, 0.04)
    assert caplog.messages == [
        "at SRGNN plain, tiny, seed 2020: epoch 0, MRR@20 0.0412 on validation",
        "at SRGNN plain, tiny, seed 2020: epoch 4, MRR@20 0.0500 on validation, 7.5 s per epoch",
        "at SRGNN plain, tiny, seed 2020: epoch 5, MRR@20 0.0400 on validation, 28 s per epoch",
    ]


def test_mistakes_are_named_before_anything_runs(here, monkeypatch):
    seen = counting(monkeypatch)
    for more, said in (
        ({"variants": ["plane"]}, "plane"),
        ({"variants": ["llm4sbr+intent_k"]}, "intent_k"),
        ({"models": ["SRGNNN"]}, "SRGNN"),
        ({"variants": ["llm4sbr+intent_kk=3"]}, "intent_k"),
    ):
        with pytest.raises(UserError, match=said):
            run(here, **more)
    assert seen == []


def test_every_ablation_of_the_paper_runs(here):
    groups = {title: names for title, names in ABLATIONS.values()}
    rows = compare(groups, ["SRGNN"], ["tiny"], 1, here | {"epochs": 1, "session_dropout": 0.1}, "out", 0)
    assert {row.status for row in rows} == {"ok"}
    assert len(rows) < sum(map(len, groups.values()))  # what stands in several tables ran once
    block = read_grids(["out"])[0]
    assert block.groups == list(groups)
    of = {line.variant: next(iter(line.results.values())).settings for line in block.lines}
    assert of["w/o Long"]["views"] == ["short"]
    assert of["w/o AU"]["intent_lambda"] == 0
    assert [of[f"llm4sbr+intent_k={k}"]["intent_k"] for k in (0, 1, 3, 5)] == [0, 1, 3, 5]


def test_the_page_is_whole_and_says_how(here, capsys):
    assert (
        main(["compare", "--models=GRU4Rec", "--datasets=tiny", "--seeds=2", "--workers=0", "--out=out", *arguments(here)]) == 0
    )
    page = Path("out/report.html").read_text()
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", outside)
    for word in ("GRU4Rec", "Is it more than chance?", "Time and memory", "head targets", "recbole-llm4sbr compare"):
        assert word in outside
    block = read_grids(["out"])[0]
    table = tables_of(block)[0]
    plain = [json.loads(line) for line in Path("out/cells.jsonl").read_text().splitlines()]
    hits = [100 * row["result"]["test_result"]["hit@20"] for row in plain if _is(row, "GRU4Rec", False)]
    cell = next(row for row in table.rows if row[:2] == ["GRU4Rec", "plain"])[table.head.index("Hit@20")]
    assert cell == f"{np.mean(hits):.2f} ± {np.std(hits, ddof=1):.2f}"
    assert "GRU4Rec" in capsys.readouterr().out


def _is(row, model, enhanced):
    settings = row["result"]["settings"]
    return settings["model"] == model and settings["llm4sbr"] == enhanced


def arguments(here):
    return [
        f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in here.items() if value != ""
    ] + ["--gpu_id=''"]


def test_grids_of_several_folders_make_one_report_and_none_is_an_error(here):
    run(here, "a", variants=["plain"], seeds=1)
    run(here | {"split": "paper", "atomic_path": here["atomic_path"] + "2"}, "b", variants=["plain"], seeds=1)
    written, _ = report(["a", "b"], "docs", "docs/all.html")
    assert [path.name for path in written] == ["tiny.md", "tiny-paper.md", "all.html"]
    with pytest.raises(UserError, match="nowhere"):
        report(["nowhere"], "docs", None)


ORPHAN = """
import multiprocessing, os, time
from recbole_llm4sbr.experiment import cells

def slow(settings, on_epoch):
    with open("pid", "w") as handle:
        handle.write(str(os.getpid()))
    time.sleep(60)

def child(theirs):
    cells.run_cell = slow
    cells._child(theirs, cells.Cell('', '', '', '', 0, '', {}), {}, 1, 0)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=child, args=(theirs,)).start()
    theirs.close()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_whose_parent_dies_leaves_too(tmp_path):
    script = tmp_path / "grid.py"
    script.write_text(ORPHAN)
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)
    pid = tmp_path / "pid"
    for _ in range(600):
        if pid.is_file() and pid.read_text():
            break
        time.sleep(0.1)
    child = int(pid.read_text())
    process.kill()
    process.wait()
    for _ in range(100):
        if not _alive(child):
            break
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(" ")[2] != "Z"
    except FileNotFoundError:
        return False


def test_other_settings_do_not_stay_in_the_same_table(here, caplog):
    run(here, seeds=2, variants=["plain"])
    run(here | {"epochs": 1}, seeds=1, variants=["plain"])
    assert "leave its table" in caplog.text
    line = read_grids(["out"])[0].lines[0]
    assert [(seed, result.settings["epochs"]) for seed, result in line.results.items()] == [(2020, 1)]


def test_tables_of_one_title_in_two_folders_stay_apart(here):
    run(here, "a", variants=["llm4sbr"], seeds=1)
    run(here | {"intent_k": 1}, "b", variants=["llm4sbr"], seeds=1)
    block = read_grids(["a", "b"])[0]
    assert block.groups == ["Comparison", "Comparison (b)"]
    assert [next(iter(line.results.values())).settings["intent_k"] for line in block.lines] == [5, 1]


def test_another_wording_of_the_prompt_or_version_is_another_cell(here, monkeypatch, tmp_path):
    from recbole_llm4sbr.base.files import PROPERTIES

    template = (PROPERTIES / "prompt" / "generic.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(template)
    first = run(here | {"prompt": str(tmp_path / "mine.yaml")}, seeds=1)
    (tmp_path / "mine.yaml").write_text(template.replace("order:", "sequence:"))
    again = run(here | {"prompt": str(tmp_path / "mine.yaml"), "rebuild": True}, seeds=1)
    assert first[0].key == again[0].key  # the plain one
    assert first[1].key != again[1].key
    monkeypatch.setattr(keys, "__version__", "9.9")
    newer = run(here | {"prompt": str(tmp_path / "mine.yaml")}, seeds=1)
    assert {row.key for row in newer}.isdisjoint(row.key for row in again)


def test_variants_say_themselves_whether_they_are_enhanced():
    for name, variant in read_variants().items():
        assert "llm4sbr" in variant["set"], name


@pytest.mark.parametrize(
    ("variants", "more", "said"),
    [
        (["llm4sbr+encoder=x"], {}, "decided before training"),
        (["plain"], {"nproc": 2}, "--workers"),
        (["llm4sbr+model=NARM"], {}, "name it with --models"),
        (["llm4sbr+config_files=x.yaml"], {}, "name it with --config_files"),
        (["llm4sbr", "w/o Long"], {"views_in_one_call": True}, "views_in_one_call"),
    ],
)
def test_what_cells_cannot_differ_in_is_refused(here, variants, more, said):
    with pytest.raises(UserError, match=said):
        run(here | more, variants=variants, seeds=1)


def test_a_recbole_variant_that_recbole_does_not_have_is_a_failed_cell(here):
    rows = run(here, models=["TAGNN"], variants=["plain", "recbole"], seeds=1)
    assert [row.status for row in rows] == ["ok", "failed"]
    assert "TAGNN" in rows[1].reason


def test_checkpoints_are_kept_where_that_is_asked_for_and_the_best_on_validation_is_named(here, capsys):
    command = ["compare", "--dataset=tiny", "--variants=plain,none", "--seeds=1", "--workers=0", "--out=out", *arguments(here)]
    assert main([*command, "--keep"]) == 0
    said = capsys.readouterr().out
    results = [each.result for each in read_cell_results(Path("out/cells.jsonl")).values()]
    best = max(results, key=lambda each: each.best_valid_score)
    assert f"best on validation, tiny: {best.checkpoint} (SRGNN, seed 2020)" in said
    for each in results:
        session = 1.1 / each.prepare.rows["test"]  # a logarithm may round two scores to one, and rank a session otherwise
        assert run_ensemble([each.checkpoint]).test_result == pytest.approx(each.test_result, abs=session)
    assert main([*command, "--keep"]) == 0  # nothing is trained again
    assert len(list(Path("out/checkpoints").iterdir())) == len(Path("out/cells.jsonl").read_text().splitlines()) == 2


def test_a_dry_run_of_a_grid_asks_and_trains_nothing(here, monkeypatch, capsys):
    seen = counting(monkeypatch)
    assert run(here | {"dry_run": True}, seeds=1) == []
    assert seen == []
    said = capsys.readouterr().out
    assert "models to train: 2" in said
    assert "prompts" in said


def test_config_files_name_model_and_dataset_and_two_spellings_are_refused(here, capsys):
    Path("mine.yaml").write_text("model: NARM\ndataset: tiny\n")
    assert main(["compare", "--config_files=mine.yaml", "--variants=plain", "--seeds=1", "--workers=0", *arguments(here)]) == 0
    assert "NARM" in capsys.readouterr().out
    assert main(["compare", "--model=SRGNN", "--models=NARM"]) == 2
    assert "use one of them" in capsys.readouterr().err
    assert main(["compare", "--seeds=-1"]) == 2


def test_prefixes_of_a_session_count_together():
    from recbole_llm4sbr.report.block import Line

    ranks = {"session": np.array(["a.1", "a.2", "b.1", "a.3"]), "rank": np.array([1, 0, 2, 5], np.int32)}
    for targets, expected in (("all", [2.0, 1.0]), ("last", [1.0, 0.0, 1.0, 1.0])):
        line = Line("g", "m", "v", "", {1: SimpleNamespace(settings={"session_targets": targets})}, {1: ranks})
        assert by_session(line, "Hit@20", [1]).tolist() == [expected]


def test_what_was_tested_on_other_sessions_is_taken_out_with_its_reason(here):
    rows = run(here, seeds=1)
    path = Path("out/ranks") / f"{rows[1].key}.npz"
    with np.load(path) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    held["session"][0] = "another"
    np.savez_compressed(path, **held)
    block = read_grids(["out"])[0]
    assert block.lines[1].results == {}
    assert "other sessions than SRGNN plain" in block.lines[1].reasons[2020]
    report(["out"], "out", "out/report.html")


def test_the_protocol_names_what_decides_and_nothing_else(here):
    def protocol(out):
        report([out], out, None)
        return next(line for line in Path(out, "tiny.md").read_text().splitlines() if line.startswith("**Protocol**"))

    run(here, "by_window", seeds=1)
    said = protocol("by_window")
    assert [each for each in ("session_gap 600", "llm echo", "fusion gate", "intent_k 5") if f", {each}" not in said] == []
    assert [each for each in ("items id", "llm_beams", "control_of", "cold_items") if each in said] == []
    run(here | {"session_rule": "user", "atomic_path": "by_user"}, "by_user", seeds=1, variants=["plain"])
    said = protocol("by_user")
    assert "session_rule user" in said
    assert [each for each in ("session_gap", "prompt", "llm", "views", "fusion", "intent_k") if f", {each}" in said] == []


def test_data_prepared_anew_make_other_cells(here, raw):
    first = run(here, seeds=1)
    folder = Path("raw2/tiny")
    folder.mkdir(parents=True)
    for name in ("tiny.inter", "tiny.item"):
        (folder / name).write_text((raw / "tiny" / name).read_text())
    lines = (folder / "tiny.inter").read_text().splitlines()
    (folder / "tiny.inter").write_text("\n".join(lines[:-3]) + "\n")
    again = run(here | {"data_path": "raw2", "rebuild": True}, seeds=1)
    assert {row.key for row in first}.isdisjoint(row.key for row in again)


def test_a_view_that_is_added_to_the_files_makes_no_other_cells(here, monkeypatch):
    first = run(here, seeds=1)
    seen = counting(monkeypatch)
    again = run(here, seeds=1, variants=["plain", "llm4sbr", "Normal"])
    assert [row.key for row in again][:2] == [row.key for row in first]
    assert len(seen) == 1


def test_lines_that_are_no_cell_are_passed_over(here, caplog):
    run(here, seeds=1)
    with open("out/cells.jsonl", "a") as handle:
        handle.write('{"a": 1}\n[1]\n{"key": "x", "status": "ok", "result": {"settings": 1}}\n')
    assert len(read_grids(["out"])[0].lines) == 2
    assert "line 3 is not the result of a cell" in caplog.text
    assert len(run(here, seeds=1)) == 2


@pytest.mark.slow
def test_cells_run_on_a_ray_cluster(here, ray_cluster):
    rows = run(here | {"ray_address": "auto", "ray_cpus_per_worker": 1}, seeds=1)
    same = run(here, "alone", seeds=1)
    assert [row.result.test_result for row in rows] == [row.result.test_result for row in same]
    assert rows[0].key == same[0].key


def test_a_class_in_the_working_folder_trains_in_processes_with_the_defaults_of_what_it_extends(here, tmp_path, monkeypatch):
    Path("own_models.py").write_text(
        "from recbole.model.sequential_recommender import GRU4Rec\n\nclass Mine(GRU4Rec):\n    pass\n"
        "\nclass Wide(Mine):\n    pass\n"
    )
    own, wide = run(here, models=["own_models:Mine", "own_models:Wide"], variants=["llm4sbr"], seeds=1, workers=2)
    (theirs,) = run(here, models=["GRU4Rec"], variants=["llm4sbr"], seeds=1)
    assert own.result.test_result == wide.result.test_result == theirs.result.test_result
    assert own.result.parameters == theirs.result.parameters
    (larger,) = run(here | {"num_layers": 2}, models=["own_models:Mine"], variants=["llm4sbr"], seeds=1)
    assert larger.result.parameters > own.result.parameters
