"""`compare` and `ablate`: a grid of datasets, models, variants and seeds; every cell trains as `train` does and is kept as it comes.

A grid lives in a folder: `grid.json` says what was asked for, `cells.jsonl` gets a line per finished cell, `ranks/<key>.npz` what became
of every test session. The key of a cell is a hash of all that its result depends on, so that a second run does only what is missing.
"""

import logging
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding, intents_of, llm_name, uses_intents
from recbole_llm4sbr.base.files import append_json_line, check_folder, make_folder, read_json, write_json, write_whole
from recbole_llm4sbr.base.grids import CellResult, GridEntry, read_cell_results
from recbole_llm4sbr.base.metrics import shown_by
from recbole_llm4sbr.base.model_names import canonical_model
from recbole_llm4sbr.base.names import report_name
from recbole_llm4sbr.base.outputs import GRID, OVERVIEW, check_output, report_files
from recbole_llm4sbr.base.settings import Settings, load_settings
from recbole_llm4sbr.base.wording import as_options, duration, show
from recbole_llm4sbr.data.checks import RunFiles, settled
from recbole_llm4sbr.data.remembered import of_files
from recbole_llm4sbr.experiment.cells import Cell, run_cells
from recbole_llm4sbr.experiment.feature_files import dry_run_of_all, files_for, make_files_of_all
from recbole_llm4sbr.experiment.progress import GridProgress
from recbole_llm4sbr.experiment.variants import EnsembleName, Variant, make_variant, of_llms, with_controls
from recbole_llm4sbr.model import model_class
from recbole_llm4sbr.training.environment import machine
from recbole_llm4sbr.training.gpus import check_dealt_out
from recbole_llm4sbr.training.keys import result_key, short_hash

log = logging.getLogger(__name__)


def compare(
    groups: Mapping[str, Sequence[str]],
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: int | Sequence[int],
    given: Mapping[str, Any],
    out: str | Path,
    workers: int = 1,
    config_files: Sequence[str] = (),
    command: str = "",
    llms: Sequence[str] = (),
    keep: bool = False,
    overwrite: bool = False,
) -> list[CellResult]:
    """Run what is missing of a grid.

    Args:
        groups: names of variants by title.
        models: names of models.
        datasets: names of datasets.
        seeds: how many, from the setting `seed` on, or which.
        given: settings for every cell.
        out: folder of the grid; grids of several commands may share it.
        workers: cells trained at once, each in a process of its own; 0: one after the other in this process, whose peak memory
            then stands for each. With the setting `ray_address` a Ray cluster runs them instead.
        config_files: settings files for every cell.
        command: what was typed, for the report.
        llms: names of LLMs; each variant that reads an LLM's intents is run with those of each.
        keep: whether the checkpoint of every cell that is trained stays, in `<out>/checkpoints`; without it those of ensembles' members.
        overwrite: whether pages that no report wrote may be replaced by its report.

    Returns:
        The results of the grid's cells; none for a dry run.

    Raises:
        UserError: an unknown model, variant, dataset or setting; files that were made otherwise, or that stand where the grid and its
            report go and are none of its own. A cell that cannot run is recorded with its reason, and ends nothing.
    """
    models = list(dict.fromkeys(map(canonical_model, models)))
    given = {**given, "llm": llms[0]} if llms else given
    cells = list(_cells(groups, models, datasets, seeds, given, config_files, llms))
    _check(cells)
    _check_place(Path(out), cells, config_files, overwrite)
    out = make_folder(out)
    if any(cell.settings["dry_run"] for cell in cells):
        for line in _dry_run(cells):
            print(line)
        return []
    cells = _with_keys(cells)
    _keep_grid(out / "grid.json", cells, command + _taken_over(datasets, models[0], config_files, given) if command else "")
    make_folder(out / "ranks")
    done = read_cell_results(out / "cells.jsonl")
    missing = {cell.key: cell for cell in cells if _is_missing(cell, done, out)}
    ensembles = [cell for cell in missing.values() if cell.members]
    trained = {key: cell for key, cell in missing.items() if not cell.members}
    wanted = [*(member.key for cell in ensembles for member in cell.members), *(trained if keep else ())]
    kept = {key: out / CHECKPOINTS / f"{key}.pth" for key in wanted}
    for member in (each for cell in ensembles for each in cell.members):
        if not kept[member.key].is_file() or _is_missing(member, done, out):
            trained.setdefault(member.key, member)
    if kept:
        make_folder(out / CHECKPOINTS)
    log.info(
        "%s cells, %s of them distinct, %s to run; results in %s", len(cells), len({c.key for c in cells}), len(missing), out
    )
    if extra := [cell for key, cell in trained.items() if key not in missing]:
        again = [cell.label for cell in extra if cell.key in done and done[cell.key].ok]
        log.info(
            "%s further models are trained as members of ensembles; their checkpoints are kept in %s%s",
            len(extra),
            out / CHECKPOINTS,
            f"; again, since that of an earlier run was not kept: {'; '.join(again)}" if again else "",
        )
    shown = bool(_base(datasets[0], models[0], config_files, given)["show_progress"])
    _run_all(list(trained.values()), workers, out, done, kept, shown)
    _run_all([_with_members(cell, done, kept) for cell in ensembles], workers, out, done)
    return [done[key] for key in dict.fromkeys(cell.key for cell in cells)]


CHECKPOINTS = "checkpoints"  # folder of those that are kept


def _run_all(
    cells: Sequence[Cell],
    workers: int,
    out: Path,
    done: dict[str, CellResult],
    kept: Mapping[str, Path] | None = None,
    shown: bool = True,
) -> None:
    """Run cells and keep each result as it comes, in `done` and in the folder; `shown`: whether epochs are."""
    started = time.perf_counter()
    progress = GridProgress(shown)
    finished = {key for key, result in done.items() if result.ok}
    with closing(progress), closing(run_cells(cells, workers, out, kept, progress.epoch, finished)) as outcomes:
        for number, (cell, result, rows) in enumerate(outcomes, 1):
            progress.done(cell)
            if not result.ok and cell.key in done and done[cell.key].ok:
                log.warning(
                    "%s was trained again as a member and failed (%s); its earlier result stays", cell.label, result.reason
                )
                continue
            if rows is not None:
                with write_whole(out / "ranks" / f"{cell.key}.npz", "wb") as handle:
                    np.savez_compressed(handle, **vars(rows))
            done[cell.key] = replace(result, key=cell.key, machine=machine())
            append_json_line(out / "cells.jsonl", done[cell.key].to_json())
            left = (time.perf_counter() - started) / number * (len(cells) - number)
            log.info("[%s/%s] %s: %s; %s left", number, len(cells), cell.label, _outcome(result), duration(left))


def _is_missing(cell: Cell, done: Mapping[str, CellResult], out: Path) -> bool:
    """Whether a cell has no result yet, or its ranks are damaged."""
    return cell.key not in done or not done[cell.key].ok or _is_damaged(out / "ranks" / f"{cell.key}.npz")


def _with_members(cell: Cell, done: Mapping[str, CellResult], kept: Mapping[str, Path]) -> Cell:
    """An ensemble with its members' checkpoints and results, as many as there are."""
    found = [(kept[member.key], done[member.key].result) for member in cell.members]
    return replace(cell, trained=tuple((path, result) for path, result in found if result is not None and path.is_file()))


def _is_damaged(ranks: Path) -> bool:
    return ranks.is_file() and not zipfile.is_zipfile(ranks)


def _cells(
    groups: Mapping[str, Sequence[str]],
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: int | Sequence[int],
    given: Mapping[str, Any],
    config_files: Sequence[str],
    llms: Sequence[str],
) -> Iterator[Cell]:
    """The cells, the first seed's first, so that a run that is cut short has whole comparisons."""
    for dataset in datasets:
        base = _base(dataset, models[0], config_files, given)
        first = int(base.get("seed", 2020))
        control = {"control_of": "session_text"} if base["intent_source"] == "session_text" else {}
        shared = {**base, **control}
        for own in ("seed", "model", "repeatable"):  # the last is settled when the data are prepared
            shared.pop(own, None)
        shared_hash = short_hash(deciding({**shared, "model": ""}, "prepared", "items", "intents", "training"))
        for seed in range(first, first + seeds) if isinstance(seeds, int) else seeds:
            for title, names in groups.items():
                maker = _CellMaker(title, dataset, control | dict(given), config_files, shared_hash)
                for model in models:
                    named = [each for name in names for each in of_llms(name, model, llms, maker.reads_llm)]
                    yield from (maker.cell(name, model, seed) for name in with_controls(named))


def _base(dataset: str, model: str, config_files: Sequence[str], given: Mapping[str, Any]) -> Settings:
    """The settings of a grid without those of any model: of the default model, or of `model` where settings of its own are given."""
    try:
        return load_settings(None, dataset, config_files, given, of_files)
    except UserError:
        return load_settings(model, dataset, config_files, given, of_files)


def _taken_over(datasets: Sequence[str], model: str, config_files: Sequence[str], given: Mapping[str, Any]) -> str:
    """What all datasets' files said (`data.remembered`) and nobody typed, as options, with which the command makes the same anywhere."""
    found: list[dict[str, Any]] = []
    for dataset in datasets:
        base = _base(dataset, model, config_files, given)
        typed = load_settings(base["model"], dataset, config_files, {**given, "model": base["model"]})
        found.append({key: value for key, value in base.items() if value != typed.get(key)})
    same = {key: value for key, value in found[0].items() if all(other.get(key) == value for other in found)}
    return as_options(same)


@dataclass(frozen=True)
class _CellMaker:
    """Makes the cells of a table of what they share; `given` are settings, `base` as in `Cell`."""

    group: str
    dataset: str
    given: Mapping[str, Any]
    config_files: Sequence[str]
    base: str

    def cell(self, name: str, model: str, seed: int) -> Cell:
        """The cell of a variant, or of an ensemble with its members."""
        if ensemble := EnsembleName.read(name):
            members = tuple(
                self.cell(each.variant, each.model or model, seed + _APART * each.again) for each in ensemble.members
            )
            first = replace(members[0], model=model, variant=name, seed=seed)
            return replace(first, about=ensemble.about, members=members, weights=ensemble.weights)
        variant = make_variant(name, model)
        settings = self._settings(variant, model, seed)
        return Cell(self.group, self.dataset, model, name, seed, variant.about, settings, base=self.base)

    def reads_llm(self, variant: Variant) -> bool:
        """Whether a variant reads the intents of an LLM."""
        settings = self._settings(variant, variant.settings.get("model", "SRGNN"), 0)
        return uses_intents(settings) and intents_of(settings) == "llm"

    def _settings(self, variant: Variant, model: str, seed: int) -> Settings:
        quiet = {"model": model, "seed": seed, "show_progress": False, "state": "error"}
        return load_settings(None, self.dataset, self.config_files, {**self.given, **quiet, **variant.settings}, of_files)


_APART = 1000  # between the seeds of plain and plain'


def _with_those_of_ensembles(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are trained: those that are no ensembles, and the members of those that are."""
    return [each for cell in cells for each in cell.members or (cell,)]


def _check(cells: Sequence[Cell]) -> None:
    """Refuse, before anything is made, what no cell could mend."""
    cells = _with_those_of_ensembles(cells)
    for cell in cells:
        if cell.settings["model"] == cell.model or ":" not in cell.settings["model"]:
            model_class(cell.settings["model"])
        if cell.settings["nproc"] > 1:
            raise UserError("nproc is for one training run; cells train side by side with --workers")
        if cell.settings["ray_address"]:
            check_dealt_out(cell.settings)
    one_call = {
        tuple(cell.settings["views"]) for cell in cells if cell.settings["views_in_one_call"] and uses_intents(cell.settings)
    }
    _warn_of_other_questions(cells)
    if len(one_call) > 1:
        raise UserError(
            "views_in_one_call=true asks for all views together, so that variants with other views cannot share its answers"
        )


def _check_place(out: Path, cells: Sequence[Cell], config_files: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder where somebody else's files stand in the places of the grid's and of its report's."""
    check_folder(out, "--out")
    names = list(dict.fromkeys(report_name(cell.dataset, cell.settings["split"]) for cell in cells))
    names += [OVERVIEW] if len(names) > 1 else []
    files = {out / name: output for name, output in GRID.items()} | report_files(out, names, out / "report.html")
    for path, output in files.items():
        check_output("out", path, output, config_files, overwrite)


_OF_QUESTIONS = (
    "prompt",
    "max_sessions",
    "intent_refresh",
    "views_in_one_call",
    "intent_answers",
    "llm_beams",
    "llm_titles",
    "llm_max_new_tokens",
)


def _warn_of_other_questions(cells: Sequence[Cell]) -> None:
    """Say where LLMs that are compared were not asked the same."""
    reading = [cell.settings for cell in cells if uses_intents(cell.settings) and intents_of(cell.settings) == "llm"]
    for key in _OF_QUESTIONS:
        said = dict.fromkeys(f"{show(settings[key])} for {llm_name(settings)}" for settings in reading)
        if len({str(settings[key]) for settings in reading}) > 1:
            log.warning(
                "the LLMs were asked otherwise, so that they are not compared like with like: %s: %s", key, "; ".join(said)
            )


def _with_keys(cells: Sequence[Cell]) -> list[Cell]:
    """Prepare every dataset, make the feature files that any cell needs, and name the cells."""
    made: dict[str, dict[str, RunFiles]] = {}
    trained = _with_those_of_ensembles(cells)
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        made[dataset] = make_files_of_all([cell.settings for cell in trained if cell.dataset == dataset])

    def named(cell: Cell) -> Cell:
        files = files_for(cell.settings, made[cell.dataset])
        settings = settled(cell.settings, files.prepared)
        base = short_hash([cell.base, files.prepared.files, settings["repeatable"]])
        if not cell.members:
            return replace(cell, settings=settings, key=result_key(settings, files), base=base)
        members = tuple(map(named, cell.members))
        if len({each.key for each in members}) < len(members):
            raise UserError(f"variant {cell.variant!r}: two of its members are one model; plain' is plain with another seed")
        key = short_hash(["ensemble", [each.key for each in members], cell.weights])
        return replace(cell, settings=settings, key=key, base=base, members=members)

    return list(map(named, cells))


def _dry_run(cells: Sequence[Cell]) -> Iterator[str]:
    """How many cells there are, and what would be asked of the LLM, by dataset."""
    trained = {(cell.dataset, cell.model, cell.variant, cell.seed) for cell in _with_those_of_ensembles(cells)}
    yield f"models to train: {len(trained)}, those included that are trained already"
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        yield from dry_run_of_all([cell.settings for cell in _with_those_of_ensembles(cells) if cell.dataset == dataset])


def _keep_grid(path: Path, cells: Sequence[Cell], command: str) -> None:
    """Add the cells to what the folder's grid holds. Earlier ones with other settings or files do not stay in the same table."""
    grid = read_json(path) if path.is_file() else {"commands": [], "cells": []}
    before = [GridEntry.from_json(entry) for entry in grid["cells"]]
    bases = {(cell.group, cell.dataset, cell.settings["split"]): cell.base for cell in cells}
    kept = [entry for entry in before if bases.get((entry.group, entry.dataset, entry.split), entry.base) == entry.base]
    if len(kept) < len(before):
        log.warning(
            "%s earlier cells of this title were run with other settings and leave its table; give the grids different --title or "
            "--out to keep both",
            len(before) - len(kept),
        )
    places = {entry.place: entry for entry in kept}
    for cell in cells:
        entry = GridEntry(
            cell.group,
            cell.dataset,
            cell.settings["split"],
            cell.model,
            cell.variant,
            cell.seed,
            cell.about,
            cell.key,
            cell.base,
        )
        places[entry.place] = entry
    commands = grid["commands"] + ([command] if command and command not in grid["commands"] else [])
    write_json(path, {"commands": commands, "cells": [entry.to_json() for entry in places.values()]})


def _outcome(cell: CellResult) -> str:
    """A cell's result in words."""
    if cell.result is None:
        return f"failed ({cell.reason})"
    result = cell.result
    score = shown_by(result.valid_metric) * result.test_result.get(result.valid_metric.lower(), float("nan"))
    unfinished = f"; {result.advice()}" if result.unfinished else ""
    seconds = duration(result.seconds_training)
    return f"{result.valid_metric} {score:.2f} on test, best epoch {result.best_epoch}, {seconds}{unfinished}"
