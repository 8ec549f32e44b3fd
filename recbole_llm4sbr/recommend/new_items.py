"""Items that came after training: those of the raw `.item` file that a checkpoint does not know, with vectors of their texts."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import reads_cold
from recbole_llm4sbr.data.raw import locate, read_raw_items
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.prompts import item_names, item_texts
from recbole_llm4sbr.model.cold_items import ColdItems
from recbole_llm4sbr.training.trainer import read_checkpoint

log = logging.getLogger(__name__)


def new_items(settings: Mapping[str, Any], known: Sequence[str]) -> ColdItems:
    """The items of a data set's catalogue that are not known, in sorted order; one without a text is left out.

    Args:
        settings: of the run; its own `item_text` and `encoder` make their vectors.
        known: ids that training had.

    Raises:
        UserError: there is no raw `.item` file, or a column or the encoder is not there.
    """
    path = locate(settings) / f"{settings['dataset']}.item"
    if not path.is_file():
        raise UserError(
            f"cold_items=true: there is no {str(path)!r}, which has the new items' texts; name its folder with data_path"
        )
    table = read_raw_items(path, settings["item_column"]).table
    table = table[~table["item_id"].isin(set(known))].sort_values("item_id", ignore_index=True)
    log.info("cold_items: %s items of %s are new to the checkpoint", f"{len(table):,}", path)
    if table.empty:
        return ColdItems([], [], np.zeros((0, 0), np.float32))
    given = {**settings, "missing_item_text": "unknown"}
    texts = np.array(item_texts(table, given), object)
    table = table[texts != ""]
    encoder = Encoder(settings["encoder"], settings["encoder_batch_size"], settings["llm_device"])
    return ColdItems(table["item_id"].tolist(), item_names(table, given), encoder.encode(texts[texts != ""].tolist()))


def check_reads_cold(checkpoints: Sequence[str | Path]) -> None:
    """Refuse checkpoints of which none reads items that it was not trained on.

    Raises:
        UserError: names the first and what to train instead.
    """
    given = [read_checkpoint(each)["config"].get("given", {}) for each in checkpoints]
    if not any(reads_cold({"items": "id", "model": "", **each}) for each in given):
        raise UserError(
            f"cold_items=true: {str(checkpoints[0])!r} knows the items of its training alone (items=id), and nothing of others; train with "
            f"--items=text"
        )
