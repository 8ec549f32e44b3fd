"""Verb `finetune`."""

from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.parsing import Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr finetune --dataset=ml-100k --out=FOLDER [--llm=MODEL | --encoder=MODEL] [--key=value ...]

Tunes an LLM, or a text encoder, on the training part of a dataset, and writes a folder that --llm or --encoder takes. No session of the
validation and test parts is read, and `infer` refuses the folder wherever they would differ. A killed run goes on where it was.

  recbole-llm4sbr finetune --dataset=ml-100k --out=tuned-llm                     the embedded LLM: its prompt of a session -> the next title
  recbole-llm4sbr finetune --dataset=ml-100k --out=tuned-llm --lora_rank=0       all its weights: better, where there is memory for them
  recbole-llm4sbr infer --dataset=ml-100k --llm=tuned-llm                        and its intents, of its twenty likeliest titles
  recbole-llm4sbr finetune --dataset=ml-100k --encoder=all-minilm-l6-v2 --out=tuned-encoder
  recbole-llm4sbr finetune --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct --quantize --out=tuned-7b       QLoRA, on a GPU
  recbole-llm4sbr finetune --dataset=mine --out=tuned-llm --dry_run=true         how many examples there are, and how one reads
"""
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llm": {"epochs": 1, "batch": 16, "learning_rate": 5e-4},
    "encoder": {"epochs": 5, "batch": 128, "learning_rate": 5e-5},
}


def run(arguments: Arguments) -> int:
    """Tune, unless it is done."""
    given = dict(arguments.options)
    if not given["out"]:
        raise UserError("finetune needs --out=FOLDER, where the tuned model goes")
    named = [part for part in ("llm", "encoder") if part in arguments.settings]
    part = given.pop("part") or (named[0] if len(named) == 1 else "llm" if not named else None)
    if part is None:
        raise UserError("--llm and --encoder are both given; add --part=llm or --part=encoder to say which of them is tuned")
    whole = part == "llm" and not given["lora_rank"]
    for key, value in (_DEFAULTS[part] | ({"learning_rate": 3e-4} if whole else {})).items():
        given[key] = value if given[key] is None else given[key]

    from recbole_llm4sbr.data.remembered import of_prepared
    from recbole_llm4sbr.finetune.run import Options, finetune

    settings = load_settings(config_files=arguments.config_files, overrides=arguments.settings, recall=of_prepared)
    print(finetune(settings, Options(part=part, **given | {"out": Path(given["out"]).expanduser()})))
    return 0


VERB = Verb(
    "finetune",
    "an LLM or a text encoder tuned on the training part, for --llm or --encoder",
    USAGE,
    run,
    (
        Option("out", "folder for the tuned model"),
        Option("part", "llm or encoder, where both are given", choices=("llm", "encoder")),
        Option("max_examples", "sessions to tune on, each with its next item; 0: all", 10_000, "whole", least=0),
        Option("epochs", "times that each session is seen at most  (default: llm 1, encoder 5)", None, "whole", least=1),
        Option(
            "batch", "sessions of a step  (default: llm 16, encoder 128, contrasted with each other)", None, "whole", least=2
        ),
        Option(
            "learning_rate",
            "the highest; it rises, then falls to 0  (default: llm 5e-4, all its weights 3e-4, encoder 5e-5)",
            None,
            "number",
            least=0,
        ),
        Option("checks", "checks on held-out sessions per epoch", 4, "whole", least=1),
        Option("patience", "checks without a better held-out loss before the end", 3, "whole", least=1),
        Option("seed", "of the sample, the order and dropout", 2020, "whole", least=0),
        Option(
            "answers", "encoder: what --llm has answered about the training sessions is read too (see --part)", False, "flag"
        ),
        Option("lora_rank", "of an LLM's adapters; 0: none, all its weights are tuned", 16, "whole", least=0),
        Option(
            "list_weight",
            "of the loss on an LLM's list of the session, each item after those before it; 0: none",
            1.0,
            "number",
            least=0,
        ),
        Option("batch_tokens", "tokens of an LLM computed at once; lower for less memory", 4096, "whole", least=64),
        Option(
            "checkpointing",
            "compute an LLM's activations twice, not keep them: a third slower, far less memory",
            False,
            "flag",
        ),
        Option("quantize", "keep an LLM's frozen weights in four bits (QLoRA): needs a GPU and bitsandbytes", False, "flag"),
        Option("check_sessions", "validation sessions for the table of before and after; 0: none", 200, "whole", least=0),
    ),
    shows=("infer",),
)
