"""No verb: the whole line, prepare, infer, train and test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import uses_intents
from recbole_llm4sbr.base.files import make_folder, write_json
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.parsing import Arguments, Verb
from recbole_llm4sbr.cli.summary import summary


def run(arguments: Arguments) -> int:
    """Walk the whole line; steps whose result is there already are skipped."""
    from recbole_llm4sbr.data.remembered import of_files

    settings = load_settings(config_files=arguments.config_files, overrides=arguments.settings, recall=of_files)
    from recbole_llm4sbr.quick_start import make_files, train
    from recbole_llm4sbr.training.config import check_runnable

    check_runnable(settings)
    if settings["dry_run"]:
        from recbole_llm4sbr.intent.infer import dry_run

        print(dry_run(settings) if uses_intents(settings) else "this model reads no intents: no LLM is asked")
        return 0
    check_result_file(settings)
    files, counts = make_files(settings)
    finish(settings, train(settings, files, counts))
    return 0


def check_result_file(settings: Mapping[str, Any]) -> None:
    """Refuse a result file that cannot be written, before anything runs.

    Raises:
        UserError: it is a folder, or its folder cannot be made or written to.
    """
    if not settings["result_file"]:
        return
    path = Path(settings["result_file"])
    if path.is_dir():
        raise UserError(f"--result_file={path} is a folder; name a file in it, as {path / 'result.json'}")
    make_folder(path.parent)


def finish(settings: Mapping[str, Any], result: RunResult) -> None:
    """Print the summary and write the result file."""
    print(summary(result))
    if settings["result_file"]:
        write_json(settings["result_file"], result.to_json())
        print(f"written: {settings['result_file']}")


VERB = Verb("", "the whole line: prepare, infer, train, test; steps whose result is there already are skipped", "", run)
