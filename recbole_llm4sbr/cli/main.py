"""The command line: `recbole-llm4sbr [verb] --key=value ...`, in the manner of RecBole's run scripts."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.cli.commands import COMMANDS
from recbole_llm4sbr.cli.console import parse_arguments, summary
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import write_json
from recbole_llm4sbr.base.settings import describe, load_settings

USAGE = """\
usage: python run_recbole_llm4sbr.py [verb] --model=SRGNN --dataset=ml-100k [--key=value ...]
       recbole-llm4sbr [verb] ...                                         (the same, from anywhere)

LLM4SBR for RecBole: session intents from a large language model for any session-based recommender.

verbs
  (none)    the whole line: prepare, infer, train, test; steps whose result is there already are skipped
  prepare   click log -> sessions, written as RecBole benchmark files under --atomic_path
  infer     sessions -> LLM intents -> feature files beside them (prepares first where needed)
  train     train on the files that are there, select on validation, test once
  compare   models x variants x datasets x seeds, and a report: does the LLM help, and more than chance? (`compare --help`)
  ablate    the paper's ablations of one model, by name, and the controls (`ablate --help`)
  tune      search k, lambda or anything else with Ray Tune, on validation; test the best once (`tune --help`)
  report    the report again, of several grids if you like (`report --help`)
  answers   the LLM's answers: `answers stats | export | import | drop`, with --atomic_path, --file, --llm, --prompt (`answers --help`)

examples
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k                        first run: all is downloaded or shipped
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k --llm4sbr=false        the plain backbone on the same files
  recbole-llm4sbr --model=NARM --dataset=mine --data_path=dataset --item_name='{title}' --item_text='{title}, {brand}'
  recbole-llm4sbr infer --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct     another LLM: hub id, local folder, .gguf file
  recbole-llm4sbr infer --dataset=mine --dry_run=true                      what it would ask: prompts, tokens, time, cost, examples
  recbole-llm4sbr infer --dataset=mine --llm_backend=openai --llm_url=http://127.0.0.1:8000/v1 --llm=my-model
  recbole-llm4sbr train --model=SRGNN --dataset=ml-100k --intent_k=3 --intent_lambda=0.05 --result_file=out.json

--model: SRGNN, TAGNN, GCEGNN, DHCN (native), or a sequential model of RecBole (GRU4Rec, SASRec, NARM, STAMP, ...), or package.module:Class;
baselines: LLMInfer, LLMSeqSim, LLM2SRGNN (LLM2 + any backbone).
--config_files=a.yaml,b.yaml: settings from files; the command line wins over them. `--key=value` and `--key value` both work.
Every setting of RecBole can be given too. The settings of this package and their defaults:
"""


def run_all(settings: dict[str, Any]) -> None:
    """The whole line."""
    from recbole_llm4sbr.training.config import check_runnable
    from recbole_llm4sbr.quick_start import make_features, train

    check_runnable(settings)
    run_prepare(settings)
    stage1 = make_features(settings)
    if settings["dry_run"]:
        return
    _finish(settings, train(settings, stage1))


def run_prepare(settings: dict[str, Any]) -> None:
    """Verb `prepare`."""
    from recbole_llm4sbr.data.prepare import prepare

    prepare(settings)


def run_infer(settings: dict[str, Any]) -> None:
    """Verb `infer`."""
    from recbole_llm4sbr.intent.infer import encode_items, infer

    run_prepare(settings)
    if settings["intent_source"] == "none":
        encode_items(settings)
    else:
        infer(settings)


def run_train(settings: dict[str, Any]) -> None:
    """Verb `train`."""
    from recbole_llm4sbr.quick_start import train

    _finish(settings, train(settings))


VERBS: dict[str, Callable[[dict[str, Any]], Any]] = {"prepare": run_prepare, "infer": run_infer, "train": run_train}


def _finish(settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    print(summary(result))
    if settings["result_file"]:
        write_json(settings["result_file"], result)
        print(f"written: {settings['result_file']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "faiss", "faiss.loader", "transformers", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as under `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    if {"-h", "--help", "help"} & set(arguments):
        print(USAGE + describe(), flush=True)
        return 0
    if "--version" in arguments:
        print(__version__)
        return 0
    verb, files, given = parse_arguments(arguments)
    if verb is not None and verb not in VERBS:
        raise UserError(f"verb {verb!r} is unknown; choose one of {', '.join([*VERBS, *COMMANDS])}, or none for the whole line")
    settings = load_settings(config_files=files, overrides=given)
    (VERBS[verb] if verb else run_all)(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
