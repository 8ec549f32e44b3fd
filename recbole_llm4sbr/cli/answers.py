"""Verb `answers`: look after the store of LLM answers."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.outputs import REQUESTS, check_output
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.base.wording import aligned
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb

if TYPE_CHECKING:
    from recbole_llm4sbr.intent.store import AnswerStore

USAGE = """\
usage: recbole-llm4sbr answers stats | export | import | drop | forget [--file=NAME.jsonl] [--llm=...] [--prompt=...] [--decoding=...]
                                                                            [--atomic_path=...]
       recbole-llm4sbr answers requests --file=NAME.jsonl --dataset=... [--key=value ...]

Looks after the store of LLM answers, <atomic_path>/answers.sqlite.

  stats    what it holds, by model and prompt template, and what is under way in batches
  export   write one model's answers to --file, in the form in which answers are shipped
  import   take over the answers of --file, an export or what a runner of `requests` wrote; what is stored already stays
  drop     remove the answers of the models whose name holds --llm, of the template --prompt, decoded as --decoding says
  forget   give up the batches under way of the models whose name holds --llm; `infer` asks their questions anew, and pays anew
  requests write what `infer` would ask with these settings to --file, as OpenAI's batches and `vllm run-batch` read it

Answers of a runner of your own, on a machine without this package:

  recbole-llm4sbr answers requests --file=requests.jsonl --dataset=mine --llm_backend=openai --llm=Qwen/Qwen2.5-7B-Instruct --llm_name=qwen
  vllm run-batch -i requests.jsonl -o replies.jsonl --model Qwen/Qwen2.5-7B-Instruct
  recbole-llm4sbr answers import --file=replies.jsonl
  recbole-llm4sbr infer --dataset=mine --llm_backend=openai --llm=Qwen/Qwen2.5-7B-Instruct --llm_name=qwen      (makes no call)
"""
ACTIONS = ("stats", "export", "import", "drop", "forget", "requests")


def run(arguments: Arguments) -> int:
    """Do what the action says."""
    from recbole_llm4sbr.intent.llm_intents import STORE
    from recbole_llm4sbr.intent.store import AnswerStore

    if len(arguments.words) != 1 or arguments.words[0] not in ACTIONS:
        typed = " ".join(["answers", *arguments.words])
        raise UserError(f"`{typed}` names no action that there is; name one of {', '.join(ACTIONS)}, as `answers stats`")
    (action,) = arguments.words
    options = arguments.options
    if action in ("export", "import", "requests") and not options["file"]:
        raise UserError(f"answers {action} needs --file=NAME.jsonl")
    if action == "requests":
        check_output("file", options["file"], REQUESTS, arguments.config_files, options["overwrite"])
        return _write_requests(arguments)
    if unused := [*arguments.settings, *(["config_files"] if arguments.config_files else [])]:
        raise UserError(
            f"`answers {action}` has no option --{unused[0]}; `--help` lists its options, settings are for `requests`"
        )
    if action == "drop" and not (options["llm"] or options["prompt"]):
        raise UserError("answers drop needs --llm or --prompt; to drop all, delete the file answers.sqlite")
    folder = options["atomic_path"] or schema()["atomic_path"].default
    with closing(AnswerStore(Path(folder) / STORE, make=action == "import")) as store:
        print(_done(action, store, options))
    return 0


def _done(action: str, store: "AnswerStore", options: Mapping[str, Any]) -> str:
    """Do what the action says; what came of it."""
    from recbole_llm4sbr.intent.batch_rows import BatchRows
    from recbole_llm4sbr.intent.request_files import holds_replies, import_replies

    file, llm, prompt, decoding = (options[each] for each in ("file", "llm", "prompt", "decoding"))
    batches = BatchRows(store)
    if action == "stats":
        said = aligned(store.statistics()) if len(store) else f"{str(store.path)!r} holds no answers"
        lines = [
            f"under way at {each.url}: {len(batches.questions(each.tag)):,} requests in "
            + (f"batch {each.id}" if each.id else "a batch that is being made")
            for each in batches.batches()
        ]
        return "\n".join([said, *lines])
    if action == "export":
        return f"{store.export(file, llm, prompt, decoding, options['overwrite']):,} answers written to {file}"
    if action == "forget":
        return f"{batches.forget(llm):,} requests under way given up; the store holds {len(store):,} answers"
    if action == "drop":
        return f"{store.drop(llm, prompt, decoding):,} answers dropped; the store holds {len(store):,}"
    if not holds_replies(file):
        return f"{store.import_answers(file):,} new answers; the store holds {len(store):,}"
    came = import_replies(store, file)
    counts = {"stored already": came.there, "failed": came.failed, "to requests that were not written here": came.unknown}
    counts["unreadable lines"] = came.unreadable
    others = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    return f"{came.new:,} new answers{others}; the store holds {len(store):,}"


def _write_requests(arguments: Arguments) -> int:
    """Prepare where needed, and write what `infer` would ask."""
    from recbole_llm4sbr.data.folders import asked_files, dataset_folder
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.data.remembered import of_prepared
    from recbole_llm4sbr.data.rows import read_sessions
    from recbole_llm4sbr.intent.llm_intents import write_requests

    given = {key: value for key in ("llm", "prompt", "atomic_path") if (value := arguments.options[key])}
    overrides = {**arguments.settings, **given}
    settings = load_settings(config_files=arguments.config_files, overrides=overrides, recall=of_prepared)
    if settings["llm_backend"] != "openai":
        raise UserError(
            f"llm_backend={settings['llm_backend']!r} sends no requests that a file could hold; add --llm_backend=openai"
        )
    if settings["llm_refresh"]:
        raise UserError(
            "llm_refresh=true has no effect on a file of requests, whose replies leave stored answers as they are; drop those first "
            "(`answers drop --llm=...`), then write the file without it"
        )
    prepare(settings)
    longest = settings["MAX_ITEM_LIST_LENGTH"]
    rows = read_sessions(dataset_folder(settings), settings["dataset"], *asked_files(settings), longest=longest)
    file = arguments.options["file"]
    print(f"{write_requests(settings, rows, file):,} requests written to {file}; `answers import` takes the replies")
    return 0


VERB = Verb(
    "answers",
    "the LLM's answers: `answers stats | export | import | drop | forget | requests`, with --atomic_path, --file, --llm",
    USAGE,
    run,
    (
        Option("atomic_path", f"folder that holds answers.sqlite  (default: {schema()['atomic_path'].default})"),
        Option("file", "for export, import and requests: a .jsonl file"),
        Option("llm", "part of the model's name as `stats` shows it; for requests its whole name", ""),
        Option("prompt", "name of the prompt template", ""),
        Option("decoding", "for export and drop: part of the decoding as `stats` shows it, as greedy", ""),
        OVERWRITE,
    ),
    words="ACTION",
)
