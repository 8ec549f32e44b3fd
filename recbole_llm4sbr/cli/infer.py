"""Verb `infer`."""

from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.parsing import Arguments, Verb

USAGE = """\
usage: recbole-llm4sbr infer --dataset=ml-100k [--key=value ...]

Asks an LLM for every session's intent, finds the items nearest to each answer, and writes the feature files beside the session files
(prepares first where needed). A killed run goes on where it was; no answer is paid for twice.

  recbole-llm4sbr infer --dataset=mine --dry_run=true                    prompts, tokens, time, cost and examples, without a call
  recbole-llm4sbr infer --dataset=mine --llm=Qwen/Qwen2.5-7B-Instruct     a hub id, a local folder or a .gguf file
  recbole-llm4sbr infer --dataset=mine --llm_backend=openai --llm=MODEL --llm_batch=true
      half the price: hands the questions in as batches of the endpoint and ends with code 75; the same command, run again within a day,
      collects the answers and goes on. --llm_batch_wait=86400 waits for them instead. Nothing is handed in twice, whenever it is killed
  recbole-llm4sbr answers --help                                          questions and answers as files, for a runner of your own
"""


def run(arguments: Arguments) -> int:
    """Write the feature files, unless they are there."""
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.data.remembered import of_prepared
    from recbole_llm4sbr.intent.infer import check_askable, dry_run, infer
    from recbole_llm4sbr.intent.item_vectors import encode_items
    from recbole_llm4sbr.intent.quality import describe_quality

    settings = load_settings(config_files=arguments.config_files, overrides=arguments.settings, recall=of_prepared)
    if settings["dry_run"]:
        print(dry_run(settings))
        return 0
    check_askable(settings)
    prepared = prepare(settings)
    if settings["intent_source"] == "none":
        encode_items(settings, prepared)
    else:
        quality = infer(settings, prepared).counts.quality
        if quality is not None:
            print(describe_quality(quality, settings["intent_k"]))
    return 0


VERB = Verb(
    "infer", "sessions -> LLM intents -> feature files beside them (prepares first where needed)", USAGE, run, shows=("infer",)
)
