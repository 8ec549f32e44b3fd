"""The command line: `recbole-llm4sbr [verb] --key=value ...`, in the manner of RecBole's run scripts."""

import logging
import os
import sys
from collections.abc import Sequence

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import describe_settings
from recbole_llm4sbr.cli import answers, compare, infer, line, prepare, report, train, tune
from recbole_llm4sbr.cli.parsing import Verb, parse_arguments

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (line.VERB, prepare.VERB, infer.VERB, train.VERB, *compare.VERBS, tune.VERB, report.VERB, answers.VERB)
}
USAGE = """\
usage: python run_recbole_llm4sbr.py [verb] --model=SRGNN --dataset=ml-100k [--key=value ...]
       recbole-llm4sbr [verb] ...                                         (the same, from anywhere)

LLM4SBR for RecBole: session intents from a large language model for any session-based recommender.

verbs (each has a --help of its own)
{verbs}

examples
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k                        first run: all is downloaded or shipped
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k --llm4sbr=false        the plain backbone on the same files
  recbole-llm4sbr --model=NARM --dataset=mine --data_path=dataset --item_name='{{title}}' --item_text='{{title}}, {{brand}}'
  recbole-llm4sbr infer --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct     another LLM: hub id, local folder, .gguf file
  recbole-llm4sbr infer --dataset=mine --dry_run=true                      what it would ask: prompts, tokens, time, cost, examples
  recbole-llm4sbr infer --dataset=mine --llm_backend=openai --llm_url=http://127.0.0.1:8000/v1 --llm=my-model
  recbole-llm4sbr train --model=SRGNN --dataset=ml-100k --intent_k=3 --intent_lambda=0.05 --result_file=out.json

--model: SRGNN, TAGNN, GCEGNN, DHCN (native), or a sequential model of RecBole (GRU4Rec, SASRec, NARM, STAMP, ...), or package.module:Class;
baselines: LLMInfer, LLMSeqSim, LLM2SRGNN (LLM2 + any backbone).
--config_files=a.yaml,b.yaml: settings from files; the command line wins over them. `--key=value` and `--key value` both work.
Every setting of RecBole can be given too. The settings of this package and their defaults:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 when all cells of a grid failed, 2 for a user's mistake, 130 when interrupted."""
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


def describe_program() -> str:
    """What `--help` prints without a verb."""
    verbs = "\n".join(f"  {verb.name or '(none)':9} {verb.about}" for verb in VERBS.values())
    return USAGE.format(verbs=verbs) + describe_settings()


def _run(arguments: list[str]) -> int:
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if name == "help":
        name, arguments = (arguments or [""])[0], ["--help"]
    if name not in VERBS:
        raise UserError(f"verb {name!r} is unknown; choose one of {', '.join(filter(None, VERBS))}, or none for the whole line")
    if {"-h", "--help"} & set(arguments):
        print(VERBS[name].help() if name else describe_program(), flush=True)
        return 0
    if "--version" in arguments:
        print(__version__)
        return 0
    return VERBS[name].run(parse_arguments(VERBS[name], arguments))


if __name__ == "__main__":
    sys.exit(main())
