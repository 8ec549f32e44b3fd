"""`finetune`: from prepared sessions to a folder with a tuned LLM or text encoder, which `--llm` and `--encoder` take."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import beams, check_beams, check_titles, deciding, several_answers, titles_asked
from recbole_llm4sbr.base.files import check_folder, make_folder, read_json, sha256_file, write_json, write_whole
from recbole_llm4sbr.base.settings import Settings, answering_backend
from recbole_llm4sbr.base.wording import duration
from recbole_llm4sbr.data.checks import settled
from recbole_llm4sbr.data.manifest import Manifest, setting_differences
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.data.sessions import PARTS
from recbole_llm4sbr.finetune import contrast, llm, packing
from recbole_llm4sbr.finetune.examples import Pairs, training_pairs
from recbole_llm4sbr.finetune.judge import describe, judge, sample
from recbole_llm4sbr.finetune.loop import HISTORY, PLAN, Pace, Plan, State, Tunable, tune
from recbole_llm4sbr.intent.backends.chat import render
from recbole_llm4sbr.intent.backends.transformers import check_full_attention, compute_dtype
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.llm_intents import asked_about
from recbole_llm4sbr.intent.pretrained import Pretrained, resolve
from recbole_llm4sbr.intent.prompts import PromptTemplate
from recbole_llm4sbr.intent.tuned import EXAMPLES, MANIFEST, UNFINISHED, check_tuned, fingerprints, rows_read

log = logging.getLogger(__name__)

Part = Literal["llm", "encoder"]

_TITLES = 20  # that a tuned LLM is asked for; its greedy answer is one of few titles
_HELD_OUT = 300  # pairs that are held out; a check looks at each of them in every view
_READ = ("prompt", "views", "item_name", "item_name_length", "item_text", "article_last", "missing_item_text", "intent_refresh")


@dataclass(frozen=True)
class Options(Pace):
    """What a user asks `finetune` for, beside the pace.

    Attributes:
        part: what is tuned.
        out: folder of the result.
        max_examples: sessions of the training part to tune on, each with its next item; 0 for all.
        answers: whether an encoder reads the LLM's answers about the sessions too.
        lora_rank, batch_tokens, checkpointing, list_weight: of an LLM, as in `llm.TunableLLM`.
        quantize: whether an LLM's frozen weights are kept in four bits (QLoRA), which needs a GPU and bitsandbytes.
        check_sessions: validation sessions for the table of before and after; 0 for no table.
    """

    part: Part
    out: Path
    max_examples: int
    answers: bool
    lora_rank: int
    batch_tokens: int
    checkpointing: bool
    list_weight: float
    quantize: bool
    check_sessions: int


def finetune(settings: Mapping[str, Any], options: Options) -> str:
    """Tune, write the folder, and judge the model before and after; what came of it, in words.

    A run that was killed goes on; one that has ended is not repeated.

    Raises:
        UserError: a mistake in the input, before anything long begins.
    """
    _check_options(settings, options)
    prepared = prepare(settings)
    settings = settled(settings, prepared)
    teachers = (options.part, "llm") if options.answers else (options.part,)
    check_tuned(settings, prepared, teachers)  # a model may be tuned further, on no other rows
    device = _device(settings)
    source = resolve(settings[options.part], options.part)
    pairs = training_pairs(settings, options.max_examples, _HELD_OUT, options.seed)
    made_of = _made_of(settings, prepared, source, options)
    if (options.out / MANIFEST).is_file() and not _has_begun(options.out):
        state = _finished(options.out, made_of)
    elif settings["dry_run"]:
        return _dry_run(settings, source, pairs, options)
    else:
        torch.manual_seed(options.seed)  # adapters begin with random numbers
        making: Callable[..., tuple[Tunable, Callable[[Path], None]]] = _llm if options.part == "llm" else _encoder
        model, save = making(settings, source, pairs, options, device)
        asked = {"asked": _asked(settings)} if isinstance(model, llm.TunableLLM) and model.searches_beams else {}
        plan = Plan(pairs=len(model.lengths), **{each.name: getattr(options, each.name) for each in fields(Pace)})
        log.info("tuning %s on %s examples in %s steps", settings[options.part], f"{plan.pairs:,}", f"{plan.steps:,}")
        state = tune(model, plan, made_of, options.out / UNFINISHED)
        earlier = {row for each in teachers for row in rows_read(settings[each])}
        _write(options.out, {**made_of, **asked}, pairs, earlier, state, save)
    return "\n".join([_said(state, options), *_table(settings, options)])


def _check_options(settings: Mapping[str, Any], options: Options) -> None:
    """Refuse what cannot be tuned, before anything is made."""
    template = PromptTemplate.load(settings["prompt"])
    template.check_views(settings["views"])
    if settings["views_in_one_call"]:
        raise UserError("finetune tunes for one view per question; leave out --views_in_one_call")
    if titles_asked(settings) > 1:
        raise UserError("finetune tunes for one title per question; leave out --intent_answers, or add --llm_beams=true")
    check_beams(settings)
    check_titles(settings)
    if settings["llm_backend"] in ("openai", "echo"):
        raise UserError(
            f"llm_backend={settings['llm_backend']!r} has no weights here to tune; take a local model, with transformers or vllm"
        )
    check_folder(options.out, "--out")
    there = [each for each in options.out.glob("*") if each.name != UNFINISHED or any(each.glob("*"))]
    if there and not (options.out / MANIFEST).is_file() and not _has_begun(options.out):
        raise UserError(f"--out={str(options.out)!r} is there and was not made by `finetune`; choose another folder")
    if options.part == "llm" and options.lora_rank:
        try:
            import peft  # noqa: F401
        except ImportError:
            raise UserError(
                "adapters of an LLM need peft; pip install 'recbole-llm4sbr[finetune]', or tune all weights with --lora_rank=0"
            ) from None
    if options.quantize:
        if not options.lora_rank:
            raise UserError("weights in four bits cannot be tuned as a whole; leave out --quantize, or give --lora_rank")
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise UserError("--quantize needs a GPU and bitsandbytes; pip install bitsandbytes, or leave it out") from None


def _has_begun(out: Path) -> bool:
    """Whether a run that has not ended stands in a folder; a folder of the same name alone is somebody else's, as one of `tune`."""
    return (out / UNFINISHED / PLAN).is_file()


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the LLM is asked once it is tuned: for its likeliest titles, of items of the session only where they can come again."""
    titles = "catalogue" if settings["repeatable"] else "new"
    return {"llm_beams": True, "llm_titles": titles, "intent_answers": _TITLES, "intent_k_max": _TITLES}


def _device(settings: Mapping[str, Any]) -> torch.device:
    name = settings["llm_device"]
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _made_of(settings: Mapping[str, Any], prepared: Manifest, source: Pretrained, options: Options) -> dict[str, Any]:
    """All that decides the result."""
    decided = deciding(settings, "items", "intents")
    own: tuple[str, ...] = ("max_examples", *(each.name for each in fields(Pace)))
    own += ("lora_rank", "batch_tokens", "list_weight", "quantize") if options.part == "llm" else ("answers",)
    return {
        "part": options.part,
        "base": source.identity,
        "dataset": settings["dataset"],
        "split": settings["split"],
        "training_part": prepared.files[f"{settings['dataset']}.{PARTS[0]}.inter"],
        "settings": {key: decided[key] for key in _READ if key in decided},
        "options": {key: getattr(options, key) for key in own},
    }


def _finished(out: Path, made_of: Mapping[str, Any]) -> State:
    """The end of a run that is there.

    Raises:
        UserError: it had other settings.
    """
    made = read_json(out / MANIFEST)
    if changed := setting_differences({key: made.get(key) for key in made_of}, json.loads(json.dumps(made_of))):
        raise UserError(
            f"--out={str(out)!r} holds a model that was tuned otherwise: {'; '.join(changed)}; choose another folder"
        )
    log.info("%s is tuned already", out)
    return State(**made["result"])


def _llm(
    settings: Mapping[str, Any], source: Pretrained, pairs: Pairs, options: Options, device: torch.device
) -> tuple[Tunable, Callable[[Path], None]]:
    """An LLM, and what writes it, with nothing of adapters left."""
    examples = list(packing.questions(settings, pairs))
    if len({each.held_out for each in examples}) < 2:
        raise UserError(
            f"no item of {settings['dataset']!r} that could be an answer has a title; name the column with --item_name"
        )
    dtype = compute_dtype(device)
    if options.quantize:
        model, tokenizer = source.load_quantized(dtype, device), source.load_tokenizer()
    else:
        model, tokenizer = source.load_causal_lm(dtype, device)
    if settings["llm_beams"]:
        check_full_attention(model, settings["llm"])
    if not tokenizer.chat_template:
        log.warning("%s has no chat template: its prompts are plain text, as in `infer`", settings["llm"])
    parameters = sum(each.numel() for each in model.parameters())
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    how = (options.lora_rank, options.batch_tokens, options.list_weight, options.checkpointing)
    tuned = llm.TunableLLM(model, tokenizer, examples, *how)
    config, width = model.config.get_text_config(), max(tuned.lengths) if tuned.keeps_attention else 0
    needed = llm.memory_needed(
        config, weights, parameters, options.batch_tokens, options.lora_rank, options.checkpointing, width
    )
    log.info("tuning needs %s", llm.check_memory(needed, device))

    def save(folder: Path) -> None:
        """What was tuned is put together with unrounded weights, and rounded once."""
        whole, own = source.load_causal_lm(torch.float32, torch.device("cpu"))
        merged = tuned.merged_into(whole)
        merged.to(torch.bfloat16).save_pretrained(folder)
        own.save_pretrained(folder)

    return tuned, save


def _encoder(
    settings: Mapping[str, Any], source: Pretrained, pairs: Pairs, options: Options, device: torch.device
) -> tuple[Tunable, Callable[[Path], None]]:
    """A text encoder, and what writes it."""
    model, tokenizer = source.load_encoder(device)
    texts = contrast.texts_of(settings, pairs)
    queries = [(pair, contrast.session_query(texts, pairs.clicks(pair))) for pair in range(len(pairs))]
    if options.answers:
        queries += _answers(settings, pairs)
    tuned = contrast.ContrastiveEncoder(model, tokenizer, texts, pairs, queries, options.batch)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return tuned, save


def _answers(settings: Mapping[str, Any], pairs: Pairs) -> list[tuple[int, str]]:
    """The names in the LLM's stored answers about the pairs, as further queries.

    Raises:
        UserError: there are none.
    """
    asked = asked_about(settings, pairs.rows)
    found = [(pair, name) for pair in range(len(pairs)) for each in asked[pairs.row[pair]].values() for name in each.names[:1]]
    if not found:
        raise UserError(
            f"--answers=true: {settings['llm']!r} has not been asked about the training sessions yet; run `infer` first, or leave it out"
        )
    log.info("%s answers of %s are queries too", f"{len(found):,}", settings["llm"])
    return found


def _write(
    out: Path, made: Mapping[str, Any], pairs: Pairs, earlier: Collection[str], state: State, save: Callable[[Path], None]
) -> None:
    """Write the folder of the result; `config.json`, without which it is no model, comes last.

    `earlier` are the rows that the models behind it had read before, which it knows as well.
    """
    scratch = make_folder(out / UNFINISHED / "model")
    save(scratch)
    of_rows = fingerprints(pairs.rows)
    read = sorted({of_rows[row] for row in pairs.row}.union(earlier))
    with write_whole(out / EXAMPLES) as handle:
        handle.write("\n".join(read) + "\n")
    result = {"done": state.done, "best": state.best, "best_step": state.best_step, "bad": state.bad, "first": state.first}
    shutil.copy(out / UNFINISHED / HISTORY, out / HISTORY)
    for path in sorted(scratch.iterdir(), key=lambda each: each.name == "config.json"):
        if path.name == "config.json":
            write_json(
                out / MANIFEST,
                {**made, "examples_sha256": sha256_file(out / EXAMPLES), "result": result, "version": __version__},
            )
        os.replace(path, out / path.name)
    # A kill among the removals must not leave half a state, which would look like an unfinished run.
    done = out / f".{UNFINISHED}-done"
    os.replace(out / UNFINISHED, done)
    shutil.rmtree(done)


def _said(state: State, options: Options) -> str:
    """What came of tuning."""
    what = llm.TunableLLM.what if options.part == "llm" else contrast.ContrastiveEncoder.what
    lines = [f"held-out {what}: {state.first:.4f} before, {state.best:.4f} after {state.best_step:,} of {state.done:,} steps"]
    if state.seconds:
        rate = state.tokens / state.seconds
        lines.append(f"{duration(state.seconds)} of tuning, {state.tokens:,} tokens, {rate:,.0f} tokens/s")
    if not state.best_step:
        lines.append("tuning made nothing better: the folder holds the model as it was")
    elif state.best_step == state.done:
        lines.append("the best check is the last: more --epochs or --max_examples may make it better still")
    lines.append(f"{options.out} is a model: add --{options.part}={options.out} to infer, train, compare")
    return "\n".join(lines)


def _table(settings: Mapping[str, Any], options: Options) -> list[str]:
    """The models before and after on validation sessions."""
    if not options.check_sessions:
        return []
    rows = sample(settings, options.check_sessions)
    judged = {}
    as_tuned = Settings(settings)
    searched = options.part == "llm" and answering_backend(settings) == "transformers"
    if searched and not several_answers(settings):  # both are asked as `infer` will ask the tuned one
        as_tuned |= read_json(options.out / MANIFEST).get("asked", {})
    for name, model in (("before", settings[options.part]), ("after", str(options.out))):
        mine = as_tuned | {options.part: model, "intent_source": "llm" if options.part == "llm" else "session_text"}
        encoder = Encoder(mine["encoder"], mine["encoder_batch_size"], mine["llm_device"])
        judged[name] = judge(mine, rows, encoder)
    source = "the LLM's intents" if options.part == "llm" else "intents from the session's texts"
    if options.part == "llm" and (number := beams(as_tuned)) > 1:
        source += f" of its {number} likeliest titles"
    return ["", f"{source} on {len(rows.ids):,} validation sessions", describe(judged, settings["intent_k"])]


def _dry_run(settings: Mapping[str, Any], source: Pretrained, pairs: Pairs, options: Options) -> str:
    """What would be tuned on, without tuning."""
    kept_back = int(pairs.held_out.sum())
    lines = [f"{len(pairs) - kept_back:,} pairs of a session and its next item to tune on, {kept_back:,} held out"]
    if options.part == "llm":
        tokenizer = source.load_tokenizer()
        example = next(packing.questions(settings, pairs))
        prompt, answer = render(tokenizer, example.requests[0]), example.answer
        tokens = len(tokenizer(prompt + answer, add_special_tokens=False).input_ids)
        lines[0] += f", each in the views {', '.join(settings['views'])}, some {tokens:,} tokens in a view"
        lines += ["", "an example", *(f"  | {line}" for line in (prompt + "[" + answer + "]").split("\n"))]
    else:
        texts = contrast.texts_of(settings, pairs)
        lines += ["", f"a query: {contrast.session_query(texts, pairs.clicks(0))}", f"its item: {texts[pairs.target[0]]}"]
    return "\n".join(lines)
