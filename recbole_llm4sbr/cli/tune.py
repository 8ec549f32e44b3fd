"""Verb `tune`: a search with Ray Tune."""

from pathlib import Path

from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb
from recbole_llm4sbr.cli.report import write_report
from recbole_llm4sbr.cli.summary import summary

USAGE = """\
usage: recbole-llm4sbr tune --model=SRGNN --dataset=ml-100k [--space=file.hyper] [--trials=20] [--key=value ...]
       recbole-llm4sbr tune --paper --model=SRGNN --dataset=ml-100k                  the paper's Figure 7: k of 0, 1, 3, 5

Searches settings of training with Ray Tune. Trials see validation only; data and intents are loaded once and shared by them, and no trial
asks an LLM: intents that are missing are asked for once, before the first (--dry_run says how many). The best setting is written as YAML,
trained again and tested once. A search that was killed goes on where it was.
"""
MORE = """\
The space has a line per setting, as in RecBole: `intent_k choice [0,1,3,5]`, `intent_lambda loguniform -5,0` (powers of e),
`weight_decay uniform 0,0.001`, `embedding_size quniform 32,128,32`, `step randint 1,4`. --seed is that of the search and of every trial;
--ray_address=auto runs it on a cluster, typed on one of its nodes."""


def describe_spaces() -> str:
    """The form of spaces and the shipped ones, for `--help`."""
    return f"{MORE}\n\nshipped spaces: {', '.join(sorted(path.stem for path in (PROPERTIES / 'tune').glob('*.hyper')))}"


def run(arguments: Arguments) -> int:
    """Search, test the best setting, report."""
    from recbole_llm4sbr.experiment.tune import search

    options = arguments.options
    paper = options["paper"]
    how = options["search"] or ("grid" if paper else "random")
    found = search(
        arguments.settings,
        options["out"],
        options["space"] or ("paper" if paper else "default"),
        options["trials"],
        how,
        options["scheduler"] or ("none" if how == "grid" else "asha"),
        options["cpus_per_trial"],
        options["gpus_per_trial"],
        arguments.config_files,
        arguments.command,
        options["overwrite"],
    )
    if found is None or found.best is None:  # a dry run
        return 0
    out = options["out"]
    print(summary(found.best.result))
    print(f"best of {len(found.trials)} trials: {Path(out) / 'best.yaml'}; all of them: {Path(out) / 'trials.csv'}")
    write_report([out], out, str(Path(out) / "report.html"), overwrite=options["overwrite"])
    return 0


VERB = Verb(
    "tune",
    "search k, lambda or anything else with Ray Tune, on validation; test the best once",
    USAGE,
    run,
    (
        Option("paper", "the paper's Figure 7: a grid over items per intent", False, "flag"),
        Option("space", "a .hyper file, or the name of a shipped one; by default `default`"),
        Option("trials", "how many; a grid has as many as combinations", 20, "whole", least=1),
        Option("search", "random, grid (every combination) or optuna; by default random", choices=("random", "grid", "optuna")),
        Option(
            "scheduler", "asha (stops poor trials early) or none; by default asha, for a grid none", choices=("asha", "none")
        ),
        Option("cpus_per_trial", "CPUs of a trial, and threads", 1, "number", least=0),
        Option(
            "gpus_per_trial", "GPUs of a trial, fractions share one; by default 1 where there is one", None, "number", least=0
        ),
        Option("out", "folder of the search", "tuning"),
        OVERWRITE,
    ),
    more=describe_spaces,
)
