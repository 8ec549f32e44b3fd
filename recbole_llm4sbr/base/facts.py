"""What follows from settings: whose intents a run reads, what answers for the LLM, and on which settings each artefact depends."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, cast
from urllib.parse import urlsplit

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.schema import Artefact, Setting, model_schema, read_yaml, schema
from recbole_llm4sbr.base.settings import answering_backend, class_name

IntentsOf = Literal["llm", "session_text", "none"]
SESSION_TEXT = "session_text"


class Lookup(Protocol):
    """Settings, or RecBole's Config made of them."""

    def __getitem__(self, key: str) -> Any:
        """The value of a setting."""
        ...


def intents_of(settings: Lookup) -> IntentsOf:
    """Whose feature files a run reads; the controls `shuffled` and `random` change those of `control_of`."""
    source = settings["intent_source"]
    return cast(IntentsOf, settings["control_of"] if source in ("shuffled", "random") else source)


def llm_name(settings: Lookup) -> str:
    """What an LLM is called: as it was given, but an endpoint's by `llm_name` where there is one, and `echo`."""
    if engine(settings) == "echo":
        return "echo"
    return str((settings["llm_name"] if engine(settings) == "openai" else None) or settings["llm"])


def intents_name(settings: Lookup) -> str:
    """Whose intents a run reads, as the name of their folder: `session_text`, or the LLM's name in characters that every disk allows.

    A path becomes its last part, with a few digits that tell it from others which end alike.

    >>> intents_name({"intent_source": "llm", "llm_backend": "vllm", "llm": "Qwen/Qwen2.5-7B-Instruct"})
    'Qwen-Qwen2.5-7B-Instruct'
    """
    if intents_of(settings) != "llm":
        return intents_of(settings)
    name = llm_name(settings)
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith("."):
        digits = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:6]
        name = f"{path.resolve().name}-{digits}"
    shown = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:100] or "llm"
    return f"{shown}-llm" if shown == SESSION_TEXT else shown


def reads_intents(settings: Lookup) -> bool:
    """Whether the model takes intents at all."""
    return bool(settings["llm4sbr"] or settings["model"] == "LLMInfer")


def uses_intents(settings: Lookup) -> bool:
    """Whether training reads `.sessemb`."""
    return reads_intents(settings) and settings["intent_source"] != "none"


def uses_item_texts(settings: Lookup) -> bool:
    """Whether training reads `.itememb`."""
    switched = settings["items"] != "id" or settings["item_init"] != "random"
    return uses_intents(settings) or switched or settings["model"] == "LLMSeqSim"


def reads_cold(settings: Lookup) -> bool:
    """Whether the model reads and ranks items that it was not trained on, by their texts."""
    return bool(settings["items"] == "text" or settings["model"] in ("LLMInfer", "LLMSeqSim"))


def tower_said(settings: Lookup) -> str:
    """That items are known by their texts, to stand behind the name of a model with a text tower; else ""."""
    return ", items by their text" if settings["items"] == "text" else ""


def several_answers(settings: Lookup) -> bool:
    """Whether the LLM is asked for more than one title per view."""
    return bool(settings["intent_answers"] > 1)


def beams(settings: Lookup) -> int:
    """How many titles beam search reads from a question for one; 1 where there is none."""
    return int(settings["intent_answers"]) if settings["llm_beams"] else 1


def titles_asked(settings: Lookup) -> int:
    """How many titles per view the question asks for: with `llm_beams` one, however many are read."""
    return 1 if settings["llm_beams"] else int(settings["intent_answers"])


def check_beams(settings: Lookup) -> None:
    """Refuse beam search where it cannot be.

    Raises:
        UserError: names the setting that stands in its way.
    """
    if not settings["llm_beams"]:
        return
    backend = answering_backend(settings)
    if backend != "transformers":
        raise UserError(
            f"llm_beams=true needs llm_backend=transformers, not {backend!r}, which does not show the probabilities"
        )
    if settings["intent_answers"] == 1 or settings["views_in_one_call"]:
        raise UserError(
            "llm_beams=true takes several titles of one question; add --intent_answers=5, and no --views_in_one_call"
        )


def check_titles(settings: Lookup) -> None:
    """Refuse to hold greedy answers to titles.

    Raises:
        UserError: names what is missing.
    """
    if settings["llm_titles"] != "any" and not settings["llm_beams"]:
        raise UserError(
            f"llm_titles={settings['llm_titles']} needs beam search; add --llm_beams=true --intent_answers=5, or leave it out"
        )


def answers_as_json(settings: Lookup) -> bool:
    """Whether the LLM is held to a JSON schema: for several titles, by an endpoint that can do that."""
    return titles_asked(settings) > 1 and engine(settings) == "openai" and bool(settings["llm_json"])


def engine(settings: Lookup) -> str:
    """What computes the LLM's answers: `local` (transformers and vllm, also under ray, share their answers), `openai` or `echo`."""
    backend = answering_backend(settings)
    return "local" if backend in ("transformers", "vllm") else backend


def check_intent_k(settings: Lookup) -> None:
    """Refuse `intent_k=0`, the answer's own vector, where no LLM answers, and where the intent's items are raised.

    Raises:
        UserError: says what needs items or answers.
    """
    if settings["intent_k"] == 0 and intents_of(settings) == "session_text":
        raise UserError("intent_k=0 needs an LLM's answers, which intents from session_text do not have; raise it")
    if settings["intent_k"] == 0 and settings["llm4sbr"] and "boost" in settings["fusion"].split("+"):
        raise UserError(
            f"fusion={settings['fusion']!r} raises the items nearest to an intent, of which intent_k=0 has none; raise it"
        )


def deciding(settings: Mapping[str, Any], *artefacts: Artefact) -> dict[str, Any]:
    """The settings on which artefacts depend, and no others, with the values that they depend on.

    The prompt template stands there with its whole content, an address without what may be secret in it, and a local engine under one
    name, since local engines share their answers. Keys of RecBole that the schema does not name decide training.
    """
    found = {key: settings[key] for key in deciding_keys(settings, *artefacts)}
    if "prompt" in found:
        found["prompt"] = template_content(found["prompt"], settings["views"], titles_asked(settings) > 1)
    if "llm_backend" in found:
        found["llm_backend"] = engine(settings)
    if "llm_url" in found:
        found["llm_url"] = address(found["llm_url"])
    return found


def deciding_keys(settings: Mapping[str, Any], *artefacts: Artefact) -> list[str]:
    """The names of the settings on which artefacts depend."""
    facts = {"intents_of": intents_of, "engine": engine, "several_answers": several_answers, "reads_intents": reads_intents,
             "uses_intents": uses_intents}  # fmt: skip

    def lookup(key: str) -> Any:
        return facts[key](settings) if key in facts else settings.get(key)

    known = schema() | model_schema(class_name(settings["model"]))
    return [
        key
        for key in settings
        if ("training" in artefacts if key not in known else _decides(known[key], artefacts) and known[key].active(lookup))
    ]


def artefacts_of(settings: Lookup) -> list[Artefact]:
    """What a training run makes and reads, beside its session files."""
    items: list[Artefact] = ["items"] if uses_item_texts(settings) else []
    intents: list[Artefact] = ["intents"] if uses_intents(settings) else []
    return ["training", *items, *intents]


def _decides(setting: Setting, artefacts: Iterable[Artefact]) -> bool:
    return any(artefact in (setting.decides, setting.also) for artefact in artefacts)


def template_path(prompt: str) -> Path:
    """The YAML file of a prompt template: a shipped one by name, or a path.

    Raises:
        UserError: neither a shipped name nor a .yaml file.
    """
    path = PROPERTIES / "prompt" / f"{prompt}.yaml"
    if path.is_file():
        return path
    if Path(prompt).suffix not in (".yaml", ".yml"):
        shipped = sorted(each.stem for each in (PROPERTIES / "prompt").glob("*.yaml"))
        raise UserError(f"prompt={prompt!r} is unknown; choose one of {', '.join(shipped)}, or the path of a .yaml file")
    return Path(prompt)


def template_content(prompt: str, views: Iterable[str], several: bool) -> dict[str, Any]:
    """All that answers depend on in a prompt template: its texts, and of its views those that are asked for.

    Args:
        prompt: a shipped template by name, or a path.
        views: that are asked for.
        several: whether several titles are asked for; else the questions for them do not count.
    """
    content = read_yaml(template_path(prompt))
    if not several:
        content = {part: text for part, text in content.items() if part not in ("several", "joint_several")}
    own = content.get("views")
    return content | {"views": {view: own.get(view) for view in views} if isinstance(own, dict) else own}


def address(url: str | None) -> str | None:
    """An address without user name, password and query.

    >>> address("https://me:secret@host:8000/v1/?key=secret")
    'https://host:8000/v1'
    """
    if url is None:
        return None
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
