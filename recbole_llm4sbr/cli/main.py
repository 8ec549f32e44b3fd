"""The command line: `recbole-llm4sbr [verb] --key=value ...`, in the manner of RecBole's run scripts."""

import errno
import logging
import os
import sqlite3
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.errors import NotYet, UserError
from recbole_llm4sbr.base.schema import describe_settings
from recbole_llm4sbr.base.screen import Screen, hide_requests
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.cli import (
    answers,
    compare,
    ensemble,
    finetune,
    import_clicks,
    infer,
    inspect,
    line,
    prepare,
    recommend,
    report,
    serve,
    train,
    tune,
)
from recbole_llm4sbr.cli.parsing import Verb, parse_arguments

VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        line.VERB,
        import_clicks.VERB,
        prepare.VERB,
        infer.VERB,
        finetune.VERB,
        train.VERB,
        ensemble.VERB,
        recommend.VERB,
        serve.VERB,
        inspect.VERB,
        *compare.VERBS,
        tune.VERB,
        report.VERB,
        answers.VERB,
    )
}
_LATER = 75  # EX_TEMPFAIL of sysexits.h, so that a script can tell what is under way from what is done
USAGE = """\
usage: python run_recbole_llm4sbr.py [verb] --model=SRGNN --dataset=ml-100k [--key=value ...]
       recbole-llm4sbr [verb] ...                                         (the same, from anywhere)

LLM4SBR for RecBole: session intents from a large language model for any session-based recommender.

verbs (each has a --help of its own)
{verbs}

examples
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k --config_files=strong   first run: all is downloaded or shipped
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k --llm4sbr=false        the plain backbone on the same files
  recbole-llm4sbr import clicks.csv --items=products.csv --dataset=mine   own data; then --dataset=mine is all there is to say
  recbole-llm4sbr --model=NARM --dataset=mine --item_text='{{title}}, {{brand}}'
  recbole-llm4sbr infer --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct     another LLM: hub id, local folder, .gguf file
  recbole-llm4sbr infer --dataset=mine --dry_run=true                      what it would ask: prompts, tokens, time, cost, examples
  recbole-llm4sbr infer --dataset=mine --llm_backend=openai --llm_url=http://127.0.0.1:8000/v1 --llm=my-model
  recbole-llm4sbr train --model=SRGNN --dataset=ml-100k --intent_k=3 --intent_lambda=0.05 --result_file=out.json

--model: SRGNN, TAGNN, GCEGNN, DHCN, BSARec, STAMP (native), or a sequential model of RecBole (GRU4Rec, SASRec, NARM, CORE, FEARec, ...),
or package.module:Class;
baselines: LLMInfer, LLMSeqSim, LLM2SRGNN (LLM2 + any backbone).
--config_files=a.yaml,b.yaml: settings from files, or from the shipped recipes `paper` (as the paper has it), `strong` (what wins on
validation) and `strong-plain` (the same for plain models); the command line wins over them. `--key=value` and `--key value` both work.
--verbose: the screen shows RecBole's own log too, and an error its traceback; without it RecBole's log stands in log/<model>/ alone.
--overwrite: --result_file may replace a file that this package did not write.
Every setting of RecBole can be given too. The settings of this package and their defaults:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0; 1 when all cells of a grid failed; 2 for a user's mistake or a machine that is too small; 70 for a fault of this program or of a
    library; 75 when nothing is wrong and the same command must be run again later, since batches are under way; 130 when interrupted. An
    error is one line, with its traceback only under `--verbose`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = bool({"--verbose", "--verbose=true"} & set(arguments))
    arguments = [each for each in arguments if each.partition("=")[0] != "--verbose"]
    logging.basicConfig(level=logging.INFO, handlers=[Screen(verbose)])
    hide_requests()
    for noisy in ("faiss", "faiss.loader", "transformers", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries to each other
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(
            "interrupted; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # as under `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NotYet as later:
        print(printable(str(later)))
        return _LATER
    except Exception as error:
        if verbose:
            traceback.print_exc()
        said = str(error) if isinstance(error, UserError) else _of_the_machine(error)
        print(f"error: {printable(said or _unexpected(error))}", file=sys.stderr)
        return 2 if said else 70


def _of_the_machine(error: Exception) -> str:
    """What a user can do about an error of the disk, the memory or the answer store; "" for any other error."""
    if isinstance(error, sqlite3.Error):
        full = "full" in str(error)
        remedy = "make room" if full else "move answers.sqlite away (`answers import` takes over an export)"
        return f"the answer store cannot be {'written' if full else 'read'} ({error}); {remedy} and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.filename or error}); files are whole or not there and answers are kept: make room and run the same "
            f"command again"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"the memory is too small ({error}); lower --train_batch_size, --eval_batch_size, --llm_batch_tokens or --encoder_batch_size"
    return ""


def _unexpected(error: Exception) -> str:
    """A line for an error that nobody foresaw; its traceback goes to a file."""
    with tempfile.NamedTemporaryFile("w", prefix="recbole_llm4sbr-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write("".join(traceback.format_exception(error)).encode("utf-8", "replace").decode())
    said = f"{type(error).__name__}: {str(error)[:300]}"
    return f"{said}; a fault of this program or of a library: {log.name} says where (--verbose shows it)"


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
