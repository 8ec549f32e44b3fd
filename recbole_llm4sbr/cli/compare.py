"""Verbs `compare` and `ablate`: grids of training runs, and their report."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import read_yaml
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb, names_in
from recbole_llm4sbr.cli.report import write_report
from recbole_llm4sbr.experiment.variants import ABLATIONS, read_variants

if TYPE_CHECKING:
    from recbole_llm4sbr.base.grids import CellResult

ABOUT = """
Trains and tests every cell of a grid as `train` does, on the same files and with the same settings, selects on validation, tests once,
and writes a report. A run that was interrupted goes on where it was; cells that are done are not run again.
"""
COMPARE = (
    "usage: recbole-llm4sbr compare --models=SRGNN,GRU4Rec --variants=plain,llm4sbr --datasets=ml-100k [--seeds=5] [--key=value ...]\n"
    + ABOUT
)
ABLATE = (
    "usage: recbole-llm4sbr ablate --model=SRGNN --datasets=ml-100k [--tables=components,views,k,...] [--seeds=5] [--key=value ...]\n"
    + ABOUT
)
_MODELS = Option("models", "names of models, of this package or of RecBole, by default SRGNN; --model for one", None, "names")
_DATASETS = Option("datasets", "names of datasets, by default ml-100k; --dataset for one", None, "names")
_LLMS = Option(
    "llms",
    "names of LLMs: each variant that reads an LLM's intents is trained with those of each; --llm for one",
    None,
    "names",
)
_GRID = (
    _LLMS,
    Option("seeds", "how many, from --seed (2020) on, or which, as [1,2,3]", 3, "value"),
    Option(
        "workers",
        "cells trained at once, each in its own process, which gets its share of the cores; 0 trains in this one",
        1,
        "whole",
        least=0,
    ),
    Option("out", "folder of the grid; the next grid in it adds to its report", "comparison"),
    Option(
        "keep", "keep the checkpoint of every model that is trained, in OUT/checkpoints; cells.jsonl names them", False, "flag"
    ),
    OVERWRITE,
)
_MORE = "With --ray_address a Ray cluster runs the cells; with --intent_source=session_text no LLM is asked at all."


def describe_variants() -> str:
    """The shipped variants, for `--help`."""
    return "\n".join([_MORE, "", "variants", *(f"  {name:16} {each['about']}" for name, each in read_variants().items())])


def run_compare(arguments: Arguments) -> int:
    """Run a grid of models, variants, datasets and seeds."""
    return _run(arguments, {arguments.options["title"]: arguments.options["variants"]})


def run_ablate(arguments: Arguments) -> int:
    """Run the paper's ablations by name."""
    return _run(arguments, {ABLATIONS[table][0]: ABLATIONS[table][1] for table in arguments.options["tables"]})


def _run(arguments: Arguments, groups: Mapping[str, Sequence[str]]) -> int:
    settings, options = dict(arguments.settings), arguments.options
    models = _one_or_many(arguments, settings, "model", "SRGNN")
    datasets = _one_or_many(arguments, settings, "dataset", "ml-100k")
    seeds, out = options["seeds"], options["out"]
    listed = seeds if isinstance(seeds, list) else [seeds]
    if not listed or any(type(each) is not int for each in listed) or (listed is not seeds and listed[0] < 1):
        raise UserError(f"--seeds={seeds!r} must be a number of seeds, as 3, or the seeds, as [1,2,3]")
    from recbole_llm4sbr.experiment.compare import compare

    llms = options["llms"] or []
    if llms and "llm" in settings:
        raise UserError("--llm and --llms are both given; use one of them")
    results = compare(
        groups,
        models,
        datasets,
        seeds,
        settings,
        out,
        options["workers"],
        arguments.config_files,
        arguments.command,
        llms,
        options["keep"],
        options["overwrite"],
    )
    if not results:  # a dry run
        return 0
    if any(result.ok for result in results):
        write_report([out], out, str(Path(out) / "report.html"), overwrite=options["overwrite"])
    if options["keep"]:
        _say_best(results)
    failed = sum(not result.ok for result in results)
    if failed:
        where = Path(out) / "cells.jsonl"
        print(f"{failed} of {len(results)} cells failed; the reasons stand in the report and in {where}", file=sys.stderr)
    return 1 if failed == len(results) else 0


def _say_best(results: Sequence["CellResult"]) -> None:
    """Name, of each dataset, the kept checkpoint of the best score on validation."""
    found = [result.result for result in results if result.result is not None and result.result.checkpoint]
    for dataset in dict.fromkeys(each.settings["dataset"] for each in found):
        own = [each for each in found if each.settings["dataset"] == dataset]
        best = max(own, key=lambda each: each.best_valid_score if each.valid_score_bigger else -each.best_valid_score)
        print(f"best on validation, {dataset}: {best.checkpoint} ({best.settings['model']}, seed {best.settings['seed']})")


def _one_or_many(arguments: Arguments, settings: dict[str, Any], name: str, usual: Any) -> list[str]:
    """`--models` or `--model`, else what the config files name.

    Raises:
        UserError: both are given.
    """
    many = arguments.options[f"{name}s"]
    one = settings.pop(name, None)
    if many and one is not None:
        raise UserError(f"--{name} and --{name}s are both given; use one of them")
    for path in arguments.config_files:
        usual = read_yaml(path).get(name, usual)
    found: list[str] = many or names_in(usual if one is None else one, name)
    return found


VERBS = (
    Verb(
        "compare",
        "models x variants x datasets x seeds, and a report: does the LLM help, and more than chance?",
        COMPARE,
        run_compare,
        (
            _MODELS,
            _DATASETS,
            Option(
                "variants",
                "what each model is compared as; any may be changed, as llm4sbr+intent_k=3",
                ["plain", "llm4sbr"],
                "names",
            ),
            Option("title", "headline of the grid's table in the report; grids of other titles stand beside it", "Comparison"),
            *_GRID,
        ),
        more=describe_variants,
    ),
    Verb(
        "ablate",
        "the paper's ablations of one model, by name, and the controls",
        ABLATE,
        run_ablate,
        (
            _MODELS,
            _DATASETS,
            Option("tables", f"which: {', '.join(ABLATIONS)}", list(ABLATIONS), "names", tuple(ABLATIONS)),
            *_GRID,
        ),
        more=describe_variants,
    ),
)
