"""Verb `answers`: look after the store of LLM answers."""

from pathlib import Path

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.wording import aligned
from recbole_llm4sbr.cli.parsing import Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr answers stats | export | import | drop [--file=NAME.jsonl] [--llm=...] [--prompt=...] [--atomic_path=...]

Looks after the store of LLM answers, <atomic_path>/answers.sqlite.

  stats    what it holds, by model and prompt template
  export   write one model's answers to --file, in the form in which answers are shipped
  import   take over the answers of --file; what is stored already stays
  drop     remove the answers of the models whose name holds --llm, of the template --prompt
"""
ACTIONS = ("stats", "export", "import", "drop")


def run(arguments: Arguments) -> int:
    """Do what the action says."""
    from recbole_llm4sbr.intent.llm_intents import STORE
    from recbole_llm4sbr.intent.store import AnswerStore

    if len(arguments.words) != 1 or arguments.words[0] not in ACTIONS:
        typed = " ".join(["answers", *arguments.words])
        raise UserError(f"`{typed}` names no action that there is; name one of {', '.join(ACTIONS)}, as `answers stats`")
    (action,) = arguments.words
    options = arguments.options
    file, llm, prompt = options["file"], options["llm"], options["prompt"]
    if action in ("export", "import") and not file:
        raise UserError(f"answers {action} needs --file=NAME.jsonl")
    if action == "drop" and not (llm or prompt):
        raise UserError("answers drop needs --llm or --prompt; to drop all, delete the file answers.sqlite")
    store = AnswerStore(Path(options["atomic_path"]) / STORE, make=action == "import")
    if action == "stats":
        print(aligned(store.statistics()) if len(store) else f"{str(store.path)!r} holds no answers")
    elif action == "export":
        print(f"{store.export(file, llm, prompt):,} answers written to {file}")
    elif action == "import":
        print(f"{store.import_answers(file):,} new answers; the store holds {len(store):,}")
    else:
        print(f"{store.drop(llm, prompt):,} answers dropped; the store holds {len(store):,}")
    store.close()
    return 0


VERB = Verb(
    "answers",
    "the LLM's answers: `answers stats | export | import | drop`, with --atomic_path, --file, --llm, --prompt",
    USAGE,
    run,
    (
        Option("atomic_path", "folder that holds answers.sqlite", schema()["atomic_path"].default),
        Option("file", "for export and import: a .jsonl file"),
        Option("llm", "part of the model's name as `stats` shows it", ""),
        Option("prompt", "name of the prompt template", ""),
    ),
    words="ACTION",
    takes_settings=False,
)
