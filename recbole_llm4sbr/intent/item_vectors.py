"""Text vectors of items, `.itememb`, and the identities of the models that make feature files."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding, engine, intents_of
from recbole_llm4sbr.data.checks import check_prepared, item_differences
from recbole_llm4sbr.data.features import vector_lines
from recbole_llm4sbr.data.folders import ITEMS, dataset_folder
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.pretrained import identify
from recbole_llm4sbr.intent.prompts import item_texts
from recbole_llm4sbr.intent.tuned import check_tuned


def encode_items(settings: Mapping[str, Any], prepared: Manifest | None = None, encoder: Encoder | None = None) -> Manifest:
    """Write `.itememb`, unless it is there, made with the same settings; all that `item_init` and LLMSeqSim need, without an LLM.

    Args:
        settings: what `settings.load_settings` returned.
        prepared: the manifest of the session files, when it is checked already.
        encoder: the encoder of the settings, when it is loaded already.

    Returns:
        The manifest. The file holds unit vectors, zeros for an item without a text.

    Raises:
        UserError: nothing is prepared, a column or the encoder is wrong, or the file was made with other settings.
    """
    prepared = prepared or check_prepared(settings)
    folder = dataset_folder(settings)
    name = f"{settings['dataset']}.itememb"
    made = Manifest.read(folder / ITEMS)
    if made is not None:
        changed = item_differences(made, settings, prepared, model_identities(settings, "encoder")) or made.damage()
        if not changed:
            return made
        if not settings["rebuild"]:
            raise UserError(
                f"{str(folder / name)!r} was made otherwise: {'; '.join(changed)}; add --rebuild=true to make it anew, or choose "
                f"another --atomic_path"
            )
    check_tuned(settings, prepared, ("encoder",))
    items = read_items(folder / f"{settings['dataset']}.item")
    texts = item_texts(items, settings)
    encoder = encoder or Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"])
    lines = vector_lines("iid:token\titem_emb:float_seq", items["item_id"].tolist(), encoder.encode(texts))
    return Manifest(
        folder / ITEMS,
        "infer",
        deciding(settings, "items"),
        {"prepared": prepared.files},
        {"encoder": encoder.identity},
        counts={"items": len(texts)},
    ).write({name: lines})


def model_identities(settings: Mapping[str, Any], *options: str) -> dict[str, str]:
    """Identities of the models that make the files, without loading or fetching one; an endpoint is known by its settings.

    A model that is not there any more is left out: its files still serve.
    """
    local = {"encoder"} | ({"llm"} if intents_of(settings) == "llm" and engine(settings) == "local" else set())
    found = {}
    for option in options:
        if option in local:
            with suppress(UserError):
                found[option] = identify(settings[option], option)
    return found
