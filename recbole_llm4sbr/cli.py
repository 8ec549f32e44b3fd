"""The command line: `recbole-llm4sbr [verb] --key=value ...`, in the manner of RecBole's run scripts."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import write_json
from recbole_llm4sbr.settings import describe, load_settings, parse_value

USAGE = """\
usage: python run_recbole_llm4sbr.py [verb] --model=SRGNN --dataset=ml-100k [--key=value ...]
       recbole-llm4sbr [verb] ...                                         (the same, from anywhere)

LLM4SBR for RecBole: session intents from a large language model for any session-based recommender.

verbs
  (none)    the whole line: prepare, infer, train, test; steps whose result is there already are skipped
  prepare   click log -> sessions, written as RecBole benchmark files under --atomic_path
  infer     sessions -> LLM intents -> feature files beside them (prepares first where needed)
  train     train on the files that are there, select on validation, test once

examples
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k                        first run: all is downloaded or shipped
  recbole-llm4sbr --model=SRGNN --dataset=ml-100k --llm4sbr=false        the plain backbone on the same files
  recbole-llm4sbr --model=NARM --dataset=mine --data_path=dataset --item_name='{title}' --item_text='{title}, {brand}'
  recbole-llm4sbr infer --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct     another LLM: hub id, local folder, .gguf file
  recbole-llm4sbr train --model=SRGNN --dataset=ml-100k --intent_k=3 --intent_lambda=0.05 --result_file=out.json

--model: SRGNN (native), or a sequential model of RecBole (GRU4Rec, SASRec, NARM, STAMP, ...), or package.module:Class.
--config_files=a.yaml,b.yaml: settings from files; the command line wins over them. `--key=value` and `--key value` both work.
Every setting of RecBole can be given too. The settings of this package and their defaults:
"""


def parse_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str], dict[str, Any]]:
    """Split arguments into verb, config files and settings (values read as YAML).

    Raises:
        UserError: an unknown verb, a key without a value, or a key given twice with different values.
    """
    rest = list(arguments)
    verb = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if verb is not None and verb not in VERBS:
        raise UserError(f"verb {verb!r} is unknown; choose one of {', '.join(VERBS)}, or none for the whole line")
    settings: dict[str, Any] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"argument {word!r} is not understood; settings are given as --key=value")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value, as --{key}=value")
            text = rest.pop(0)
        value = parse_value(text, key)
        if settings.setdefault(key, value) != value:
            raise UserError(f"--{key} is given twice, as {settings[key]!r} and {value!r}")
    files = settings.pop("config_files", None) or []
    return verb, files.split(",") if isinstance(files, str) else [str(each) for each in files], settings


def run_all(settings: dict[str, Any]) -> None:
    """The whole line."""
    from recbole_llm4sbr.config import check_runnable, uses_intents
    from recbole_llm4sbr.quick_start import train

    check_runnable(settings)
    run_prepare(settings)
    stage1 = run_infer(settings, prepared=True) if uses_intents(settings) else None
    _finish(settings, train(settings, stage1))


def run_prepare(settings: dict[str, Any]) -> None:
    """Verb `prepare`."""
    from recbole_llm4sbr.data.atomic import prepare

    prepare(settings)


def run_infer(settings: dict[str, Any], prepared: bool = False) -> Mapping[str, Any]:
    """Verb `infer`."""
    from recbole_llm4sbr.intent.infer import infer

    if not prepared:
        run_prepare(settings)
    return infer(settings)


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


def summary(result: Mapping[str, Any]) -> str:
    """One table of the run: metrics of validation and test, then how they came about."""
    settings, counts, stage1 = result["settings"], result["prepare"], result["infer"]
    kind = f"LLM4SBR({settings['model']})" if settings["llm4sbr"] else f"{settings['model']}, plain"
    cutoffs = settings["topk"] if isinstance(settings["topk"], list) else [settings["topk"]]
    columns = [f"{metric}@{cutoff}" for metric in settings["metrics"] for cutoff in cutoffs]
    lines = ["", f"{kind} on {settings['dataset']}", " " * 6 + "".join(f"{column:>9}" for column in columns)]
    for part, values in (("valid", result["best_valid_result"]), ("test", result["test_result"])):
        numbers = (values.get(column.lower()) for column in columns)
        lines.append(f"{part:6}" + "".join(f"{'-' if number is None else format(number, '.4f'):>9}" for number in numbers))
    per_epoch = result["seconds_per_epoch"]
    lines += [
        f"sessions {counts['sessions']:,}, items {counts['items']:,}, clicks {counts['clicks']:,}; rows "
        + ", ".join(f"{part} {number:,}" for part, number in counts["rows"].items()),
        f"best epoch {result['best_epoch']} of 0..{result['epochs'] - 1} by {result['valid_metric']} on validation; "
        f"{sum(per_epoch) / max(len(per_epoch), 1):.2f} s per epoch, {result['seconds_training']:.0f} s training, "
        f"peak memory {result['peak_memory_mb']:,.0f} MB",
    ]
    if stage1:
        lines.append(
            f"intents from {settings['intent_source']}: {stage1.get('prompts', 0):,} prompts, {stage1.get('calls', 0):,} calls made, "
            f"{stage1.get('reused', 0):,} answers reused, {stage1.get('failed', 0):,} without an intent"
        )
    if result["checkpoint"]:
        lines.append(f"checkpoint {result['checkpoint']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(word in ("-h", "--help", "help") for word in arguments):
        print(USAGE + describe())
        return 0
    if "--version" in arguments:
        print(__version__)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "faiss", "faiss.loader", "transformers", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        verb, files, given = parse_arguments(arguments)
        settings = load_settings(config_files=files, overrides=given)
        (VERBS[verb] if verb else run_all)(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
