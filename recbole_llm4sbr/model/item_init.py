"""Item texts in the models: `item_init` starts the item table from them (`pca` after LLM2Seq, Boz et al. 2024), `fusion: late` scores by
them (docs/comparison.md)."""

from typing import Any

import torch
from torch import Tensor

from recbole_llm4sbr.model.contract import SessionRecommender
from recbole_llm4sbr.model.intent_files import item_vectors


def project_texts(vectors: Tensor, size: int, whiten: bool) -> Tensor:
    """Principal components of text vectors.

    Args:
        vectors: of the catalogue's items that have a text, [N, D].
        size: components wanted.
        whiten: scale every component to unit variance; else scale all by one number, so that their mean variance is 1.

    Returns:
        [N, R] with R at most `size`: fewer when the vectors span fewer dimensions.
    """
    centred = (vectors - vectors.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(centred), 1))  # [D], [D, D], in rising order
    variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
    kept = variances > 1e-10 * variances.max().clamp(min=1e-30)
    variances, parts = variances[kept], centred @ directions[:, kept]
    scale = variances if whiten else variances.mean()
    projected: Tensor = (parts / scale.sqrt()).to(vectors.dtype)
    return projected


def items_in_text_space(config: Any, dataset: Any, model: SessionRecommender) -> Tensor | None:
    """The items in the text space in which `fusion: late` scores them: whitened principal components of their text
    vectors, in the spread of the model's own item table (in unit variance a step of the optimizer is too large: docs/comparison.md).

    Args:
        config: reads `fusion`, `intent_source`, `data_path`.
        dataset: RecBole's dataset.
        model: whose embedding size is the number of components.

    Returns:
        [n_items, R] with R at most the embedding size, zeros for padding and items without a text; None where nothing is scored there.
    """
    if "late" not in config["fusion"].split("+") or config["intent_source"] == "none":
        return None
    vectors = item_vectors(config, dataset)
    known = vectors.abs().sum(1) > 0
    own = model.item_table.detach()[1 : len(vectors)]
    parts = project_texts(vectors[known], own.size(1), whiten=True) * own.std().cpu()
    table = vectors.new_zeros(len(vectors), parts.size(1))
    table[known] = parts
    return table


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
