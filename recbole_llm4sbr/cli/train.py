"""Verb `train`."""

from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.line import check_result_file, finish
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Verb

USAGE = """\
usage: recbole-llm4sbr train --model=SRGNN --dataset=ml-100k [--key=value ...]

Trains on the files that are there, selects the epoch on validation and tests once.

  recbole-llm4sbr train --model=SRGNN --dataset=ml-100k --intent_k=3 --intent_lambda=0.05 --result_file=out.json
  recbole-llm4sbr train --model=NARM --dataset=ml-100k --llm4sbr=false
"""


def run(arguments: Arguments) -> int:
    """Train and test."""
    from recbole_llm4sbr.data.remembered import of_files_alone

    settings = load_settings(config_files=arguments.config_files, overrides=arguments.settings, recall=of_files_alone)
    check_result_file(settings, arguments.options["overwrite"], arguments.config_files)
    from recbole_llm4sbr.training.run import train

    finish(settings, train(settings))
    return 0


VERB = Verb(
    "train",
    "train on the files that are there, select on validation, test once",
    USAGE,
    run,
    (OVERWRITE,),
    shows=("train", "RecBole's own", "Settings of"),
)
