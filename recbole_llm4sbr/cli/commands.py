"""Verbs with a help of their own: answers, compare, ablate, tune, report."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_llm4sbr.cli.console import aligned, parse_arguments, summary
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.settings import read_yaml


def run_answers(arguments: Sequence[str]) -> int:
    """Verb `answers`: look after the store of LLM answers."""
    from recbole_llm4sbr.intent.store import AnswerStore
    from recbole_llm4sbr.intent.infer import STORE

    parser = argparse.ArgumentParser(
        "recbole-llm4sbr answers", description="Look after the store of LLM answers, <atomic_path>/answers.sqlite."
    )
    actions = {
        "stats": "what it holds, by model and prompt template",
        "export": "write one model's answers to --file, in the form in which answers are shipped",
        "import": "take over the answers of --file; what is stored already stays",
        "drop": "remove the answers of the models whose name holds --llm, of the template --prompt",
    }
    parser.add_argument("action", choices=actions, help="; ".join(f"{name}: {what}" for name, what in actions.items()))
    parser.add_argument(
        "--atomic_path", default=read_yaml(PROPERTIES / "overall.yaml")["atomic_path"], help="(default: %(default)s)"
    )
    parser.add_argument("--file", help="for export and import: a .jsonl file")
    parser.add_argument("--llm", default="", help="part of the model's name as `stats` shows it")
    parser.add_argument("--prompt", default="", help="name of the prompt template")
    options = parser.parse_args(arguments)
    if options.action in ("export", "import") and not options.file:
        raise UserError(f"answers {options.action} needs --file=NAME.jsonl")
    if options.action == "drop" and not (options.llm or options.prompt):
        raise UserError("answers drop needs --llm or --prompt; to drop all, delete the file answers.sqlite")
    store = AnswerStore(Path(options.atomic_path) / STORE, make=options.action == "import")
    if options.action == "stats":
        print(aligned(store.statistics()) if len(store) else f"{str(store.path)!r} holds no answers")
    elif options.action == "export":
        print(f"{store.export(options.file, options.llm, options.prompt):,} answers written to {options.file}")
    elif options.action == "import":
        print(f"{store.import_answers(options.file):,} new answers; the store holds {len(store):,}")
    else:
        print(f"{store.drop(options.llm, options.prompt):,} answers dropped; the store holds {len(store):,}")
    store.close()
    return 0


TABLES = ("components", "baselines", "views", "k", "lambda", "controls", "switches")
GRID_HELP = """\
usage: recbole-llm4sbr compare --models=SRGNN,GRU4Rec --variants=plain,llm4sbr --datasets=ml-100k [--seeds=5] [--key=value ...]
       recbole-llm4sbr ablate  --model=SRGNN --datasets=ml-100k [--tables=components,views,k,...] [--seeds=5] [--key=value ...]

Trains and tests every cell of a grid as `train` does, on the same files and with the same settings, selects on validation, tests once,
and writes a report. A run that was interrupted goes on where it was; cells that are done are not run again.

  --models      names of models, of this package or of RecBole                                        (default: SRGNN)
  --datasets    names of datasets                                                                     (default: ml-100k)
  --variants    compare: what each model is compared as; any may be changed, as llm4sbr+intent_k=3    (default: plain,llm4sbr)
  --title       compare: headline of its table in the report; grids of other titles stand beside it    (default: Comparison)
  --tables      ablate: {tables}  (default: all)
  --seeds       how many, from --seed (2020) on, or which, as [1,2,3]                                 (default: 3)
  --workers     cells trained at once, each in its own process, which gets its share of the cores     (default: 1)
  --ray_address run the cells on a Ray cluster instead (auto on one of its nodes), each with --ray_cpus_per_worker
  --out         folder of the grid; the next grid in it adds to its report                            (default: comparison)
  --key=value   any setting, for every cell; with --intent_source=session_text no LLM is asked at all

variants:
{variants}
"""


def run_grid(verb: str, arguments: Sequence[str]) -> int:
    """Verbs `compare` and `ablate`."""
    if {"-h", "--help"} & set(arguments):
        names = "\n".join(f"  {name:16} {each['about']}" for name, each in read_yaml(PROPERTIES / "variants.yaml").items())
        print(GRID_HELP.format(tables=", ".join(TABLES), variants=names))
        return 0
    _, files, given = parse_arguments(arguments)
    models, datasets = (
        _one_spelling(given, files, name, usual) for name, usual in (("model", "SRGNN"), ("dataset", "ml-100k"))
    )
    variants = names_of(given, "variants", "plain,llm4sbr")
    tables, title = names_of(given, "tables", ",".join(TABLES)), given.pop("title", "Comparison")
    seeds, workers, out = given.pop("seeds", 3), given.pop("workers", 1), str(given.pop("out", "comparison"))
    listed = seeds if isinstance(seeds, list) else [seeds]
    if not listed or any(type(each) is not int for each in listed) or (listed is not seeds and listed[0] < 1):
        raise UserError(f"--seeds={seeds!r} must be a number of seeds, as 3, or the seeds, as [1,2,3]")
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"--workers={workers!r} must be a number of processes; 0 trains in this one")
    for table in tables:
        if table not in TABLES:
            raise UserError(f"table {table!r} is unknown; choose from {', '.join(TABLES)}")
    from recbole_llm4sbr.experiment.compare import ABLATIONS, compare

    groups = {str(title): variants}
    if verb == "ablate":
        groups = {ABLATIONS[table][0]: ABLATIONS[table][1] for table in tables}
    command = shlex.join(["recbole-llm4sbr", verb, *arguments])
    rows = compare(groups, models, datasets, seeds, given, out, workers, files, command)
    if not rows:  # a dry run
        return 0
    if any(row["status"] == "ok" for row in rows):
        _report([out], out, str(Path(out) / "report.html"))
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        print(
            f"{failed} of {len(rows)} cells failed; the reasons stand in the report and in {Path(out) / 'cells.jsonl'}",
            file=sys.stderr,
        )
    return 1 if failed == len(rows) else 0


TUNE_HELP = """\
usage: recbole-llm4sbr tune --model=SRGNN --dataset=ml-100k [--space=file.hyper] [--trials=20] [--key=value ...]
       recbole-llm4sbr tune --paper --model=SRGNN --dataset=ml-100k                  the paper's Figure 7: k of 0, 1, 3, 5

Searches settings of training with Ray Tune. Trials see validation only; data and intents are loaded once and shared by them; none asks an
LLM. The best setting is written as YAML, trained again and tested once. A search that was killed goes on where it was.

  --space           a .hyper file, or the name of a shipped one: {spaces}           (default: default)
  --trials          how many; a grid has as many as combinations                               (default: 20)
  --search          random, grid (every combination of choices) or optuna                      (default: random)
  --scheduler       asha (stops poor trials early) or none                                     (default: asha; grid: none)
  --cpus_per_trial  CPUs of a trial, and threads                                               (default: 1)
  --gpus_per_trial  GPUs of a trial; fractions share one                                       (default: 1 where there is one)
  --ray_address     of a cluster, as auto on one of its nodes                                  (default: this machine)
  --seed            of the search and of every trial                                           (default: 2020)
  --out             folder of the search                                                       (default: tuning)
  --key=value       any setting, for every trial

The space has a line per setting, as in RecBole: `intent_k choice [0,1,3,5]`, `intent_lambda loguniform -5,0` (powers of e),
`weight_decay uniform 0,0.001`, `embedding_size quniform 32,128,32`, `step randint 1,4`.
"""


def run_tune(arguments: Sequence[str]) -> int:
    """Verb `tune`."""
    if {"-h", "--help"} & set(arguments):
        print(TUNE_HELP.format(spaces=", ".join(sorted(path.stem for path in (PROPERTIES / "tune").glob("*.hyper")))))
        return 0
    _, files, given = parse_arguments(["--paper=true" if word == "--paper" else word for word in arguments])
    paper = given.pop("paper", False)
    space = str(given.pop("space", "paper" if paper else "default"))
    how = str(given.pop("search", "grid" if paper else "random"))
    scheduler = str(given.pop("scheduler", "none" if how == "grid" else "asha"))
    for name, value, choices in (("search", how, ("random", "grid", "optuna")), ("scheduler", scheduler, ("asha", "none"))):
        if value not in choices:
            raise UserError(f"--{name}={value!r} is unknown; choose one of {', '.join(choices)}")
    numbers = {"trials": 20, "cpus_per_trial": 1, "gpus_per_trial": None}
    trials, cpus, gpus = (given.pop(name, default) for name, default in numbers.items())
    if not isinstance(trials, int) or trials < 1:
        raise UserError(f"--trials={trials!r} must be a number of at least 1")
    for name, value in (("cpus_per_trial", cpus), ("gpus_per_trial", gpus)):
        if value is not None and (not isinstance(value, int | float) or value < 0):
            raise UserError(f"--{name}={value!r} must be a number, as 1 or 0.5")
    out = str(given.pop("out", "tuning"))
    from recbole_llm4sbr.experiment.tune import search

    command = shlex.join(["recbole-llm4sbr", "tune", *arguments])
    found = search(given, out, space, trials, how, scheduler, cpus, gpus, files, command)
    if not found:  # a dry run
        return 0
    print(summary(found["best"]["result"]))
    print(f"best of {len(found['trials'])} trials: {Path(out) / 'best.yaml'}; all of them: {Path(out) / 'trials.csv'}")
    _report([out], out, str(Path(out) / "report.html"))
    return 0


def _one_spelling(given: dict[str, Any], files: Sequence[str], name: str, usual: str) -> list[str]:
    """`--models` or `--model`, else what the config files name.

    Raises:
        UserError: both are given.
    """
    if name in given and f"{name}s" in given:
        raise UserError(f"--{name} and --{name}s are both given; use one of them")
    for path in files:
        usual = read_yaml(path).get(name, usual)
    return names_of(given, f"{name}s", given.pop(name, usual))


def names_of(given: dict[str, Any], key: str, default: str) -> list[str]:
    """Take a list of names out of the settings: `a,b` or `[a, b]`."""
    value = given.pop(key, default)
    names = [str(each).strip() for each in (value if isinstance(value, list) else str(value).split(","))]
    if not all(names) or not names:
        raise UserError(f"--{key}={value!r} must be names with commas between them")
    return names


def run_report(arguments: Sequence[str]) -> int:
    """Verb `report`."""
    parser = argparse.ArgumentParser(
        "recbole-llm4sbr report", description="Write the report of grids again, from their folders."
    )
    parser.add_argument("folders", nargs="+", help="folders of compare, ablate and tune (their --out)")
    parser.add_argument("--markdown", help="folder for one <dataset>.md each (default: the first folder)")
    parser.add_argument("--html", help="the page, which needs no network (default: report.html in the first folder)")
    options = parser.parse_args(arguments)
    first = options.folders[0]
    _report(options.folders, options.markdown or first, options.html or str(Path(first) / "report.html"))
    return 0


def _report(folders: Sequence[str], markdown: str, page: str) -> None:
    from recbole_llm4sbr.report.page import report

    written, tables = report(folders, markdown, page)
    for title, (first, *_) in tables.items():
        print(f"\n{title}: {first.title}\n" + aligned([dict(zip(first.head, row)) for row in first.rows]))
    print("written: " + ", ".join(map(str, written)))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "answers": run_answers,
    "compare": lambda arguments: run_grid("compare", arguments),
    "ablate": lambda arguments: run_grid("ablate", arguments),
    "tune": run_tune,
    "report": run_report,
}
