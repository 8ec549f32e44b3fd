"""Ask the LLM whatever is not answered yet; every answer is stored as it comes (paper section 4.1.2)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from recbole_llm4sbr.intent.answers import AnswerStore, answer_key, shipped_answers
from recbole_llm4sbr.intent.backends import LLMBackend, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """Raw answers by key, the key of every request, and how they came: calls made, reused from the store, shipped."""

    raw: Mapping[str, str]
    keys: Sequence[str]
    calls: int
    reused: int
    shipped: int


def ask(
    backend: LLMBackend, requests: Sequence[Request], store_path: str | Path, template: str, refresh: bool = False
) -> Answers:
    """Answer all requests, calling the LLM once per distinct request that neither the store nor the package answers.

    Args:
        backend: what answers.
        requests: questions; equal ones are sent once.
        store_path: the answer store's file.
        template: name of the prompt template, noted beside the answers.
        refresh: call for every distinct request, whatever is stored.

    Returns:
        The answers. A killed run has lost at most the batch under way.
    """
    keys = [answer_key(backend.identity, backend.decoding, request) for request in requests]
    distinct = dict(zip(keys, requests))
    store = AnswerStore(store_path)
    found: dict[str, str] = {} if refresh else store.get(list(distinct))
    reused = len(found)
    if not refresh and reused < len(distinct):
        ours = shipped_answers(backend.identity, backend.decoding)
        found |= {key: ours[key] for key in distinct if key in ours and key not in found}
    missing = [key for key in distinct if key not in found]
    log.info(
        "%s prompts, %s distinct: %s answered in the store, %s shipped with the package, %s to ask of %s",
        *(f"{number:,}" for number in (len(requests), len(distinct), reused, len(found) - reused, len(missing))),
        backend.identity,
    )
    waiting: list[tuple[str, str]] = []
    with tqdm(total=len(missing), unit="prompt", desc="LLM", disable=not missing, smoothing=0.05) as bar:
        for position, answer in backend.generate([distinct[key] for key in missing]):
            waiting.append((missing[position], answer))
            if len(waiting) >= 64:
                store.put(waiting, backend.identity, template)
                found.update(waiting)
                waiting.clear()
            bar.update()
        store.put(waiting, backend.identity, template)
        found.update(waiting)
    store.close()
    return Answers(found, keys, len(missing), reused, len(distinct) - reused - len(missing))
