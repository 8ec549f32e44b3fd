"""Item texts in the models: `item_init` starts the item table from them (`pca` after LLM2Seq, Boz et al. 2024), under `items: text` it is a
projection of them (docs/backbones.md), `fusion: late` scores by them (docs/comparison.md)."""

from typing import Any

import torch

from recbole_llm4sbr.model.contract import SessionRecommender
from recbole_llm4sbr.model.intent_files import item_vectors
from recbole_llm4sbr.model.text_items import TextItems
from recbole_llm4sbr.model.text_space import Components, TextSpace, project_texts


def items_in_text_space(config: Any, dataset: Any, model: SessionRecommender) -> TextSpace | None:
    """The items in the text space in which `fusion: late` scores them: whitened principal components of their text
    vectors, in the spread of the model's own item table (in unit variance a step of the optimizer is too large: docs/comparison.md).

    Args:
        config: reads `fusion`, `intent_source`, `data_path`.
        dataset: RecBole's dataset.
        model: whose embedding size is the number of components.

    Returns:
        The space, of at most so many components; None where nothing is scored there.
    """
    if "late" not in config["fusion"].split("+") or config["intent_source"] == "none":
        return None
    vectors = item_vectors(config, dataset)
    own = model.item_table.detach()[1 : len(vectors)]
    return TextSpace(Components.of(vectors[vectors.abs().sum(1) > 0], own.size(1)), vectors, float(own.std()))


@torch.no_grad()
def start_from_text(model: SessionRecommender, config: Any, dataset: Any) -> None:
    """Start a model's item table from the texts, in the spread that the model itself gave it; it goes on being trained.

    Items without a text keep the start that the model gave them, and so do the last dimensions of all items where the texts span fewer
    dimensions than the table has.

    Args:
        model: changed in place.
        config: reads `item_init` (`text`: whitened; `pca`: not), `data_path`.
        dataset: RecBole's dataset.
    """
    vectors = item_vectors(config, dataset)
    known = vectors.abs().sum(1) > 0
    table = model.item_table
    own = table[1 : len(vectors)]
    parts = project_texts(vectors[known], table.size(1), config["item_init"] == "text") * own.std()
    rows = known.nonzero().squeeze(1).to(table.device)
    table[rows, : parts.size(1)] = parts.to(table.device)


def project_from_text(model: SessionRecommender, config: Any, dataset: Any) -> None:
    """Put a text tower in the place of a model's item table (`items: text`).

    Args:
        model: changed in place.
        config: reads `item_init`, `data_path`.
        dataset: RecBole's dataset.
    """
    vectors = item_vectors(config, dataset)
    model.take_items(TextItems(vectors, model.item_table.detach()[: len(vectors)], config["item_init"]))
