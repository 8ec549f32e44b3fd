"""Verb `ensemble`: several trained models as one."""

from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.cli.line import check_result_file, finish
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr ensemble CHECKPOINT... [--weights=equal] [--result_file=FILE.json] [--key=value ...]

Adds the log-probabilities of trained models, validates and tests the sum as any model. The models must be trained on the same session
files; backbones, intents and all other settings may differ. Compare an ensemble with one of plain models: two seeds of one model gain too
(`compare --variants="plain,ensemble(plain,text-init)"` does it for you).

  recbole-llm4sbr ensemble saved/SRGNN-*/SRGNN.pth saved/GCEGNN-*/GCEGNN.pth
  recbole-llm4sbr ensemble a.pth b.pth --weights=valid              the weights that make the validation targets most likely
  recbole-llm4sbr ensemble a.pth b.pth --weights=[0.3,0.7]
"""


def run(arguments: Arguments) -> int:
    """Load, validate, test."""
    if not arguments.words:
        raise UserError("ensemble needs checkpoints, the files that `train` named, as `ensemble a.pth b.pth`")
    settings: dict[str, Any] = dict(arguments.settings)
    result_file = settings.pop("result_file", None)
    check_result_file({"result_file": result_file}, arguments.options["overwrite"], arguments.words)
    named = settings.pop("model", None)
    from recbole_llm4sbr.quick_start import run_ensemble

    result = run_ensemble(arguments.words, arguments.options["weights"], classes=[named] if named else [], **settings)
    finish({"result_file": result_file}, result)
    return 0


VERB = Verb(
    "ensemble",
    "several trained models as one: their log-probabilities are added",
    USAGE,
    run,
    (
        Option(
            "weights", "equal, valid (found on validation), or a number for each checkpoint, as [0.3,0.7]", "equal", "value"
        ),
        OVERWRITE,
    ),
    words="CHECKPOINT...",
    takes_files=False,
)
