"""Verb `prepare`."""

from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.parsing import Arguments, Verb

USAGE = """\
usage: recbole-llm4sbr prepare --dataset=ml-100k [--key=value ...]

Cuts a click log into sessions, splits them into train, valid and test, and writes RecBole benchmark files under --atomic_path.

  recbole-llm4sbr prepare --dataset=ml-100k --atomic_path=atomic_data
  recbole-llm4sbr prepare --dataset=mine --data_path=FOLDER --session_rule=gap --session_gap=1800
"""


def run(arguments: Arguments) -> int:
    """Write the session files, unless they are there."""
    from recbole_llm4sbr.data.prepare import prepare

    prepare(load_settings(config_files=arguments.config_files, overrides=arguments.settings))
    return 0


VERB = Verb(
    "prepare", "click log -> sessions, written as RecBole benchmark files under --atomic_path", USAGE, run, shows=("prepare",)
)
