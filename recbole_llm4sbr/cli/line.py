"""No verb: the whole line, prepare, infer, train and test."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.facts import uses_intents
from recbole_llm4sbr.base.files import write_json
from recbole_llm4sbr.base.outputs import RESULT, check_output
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Verb
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
    check_result_file(settings, arguments.options["overwrite"], arguments.config_files)
    files, counts = make_files(settings)
    finish(settings, train(settings, files, counts))
    return 0


def check_result_file(settings: Mapping[str, Any], overwrite: bool, inputs: Iterable[str]) -> None:
    """Refuse a result file that must not be written, before anything runs.

    Args:
        settings: of the run, whose data and models are inputs too; of an ensemble `result_file` alone.
        overwrite, inputs: as for `check_output`.

    Raises:
        UserError: as `check_output`.
    """
    if not settings["result_file"]:
        return
    folders = [Path(settings[key]) / settings["dataset"] for key in ("data_path", "atomic_path") if key in settings]
    models = [settings.get(key) for key in ("llm", "encoder", "prompt")]
    check_output("result_file", settings["result_file"], RESULT, [*inputs, *folders, *models], overwrite)


def finish(settings: Mapping[str, Any], result: RunResult) -> None:
    """Print the summary and write the result file."""
    print(summary(result))
    if settings["result_file"]:
        write_json(settings["result_file"], result.to_json())
        print(f"written: {settings['result_file']}")


VERB = Verb(
    "", "the whole line: prepare, infer, train, test; steps whose result is there already are skipped", "", run, (OVERWRITE,)
)
