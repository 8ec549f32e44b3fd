"""RecBole's SequentialDataset over prepared session files."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_llm4sbr.base.recbole import FeatureType, SequentialDataset
from recbole_llm4sbr.model.cold_items import ColdItems, trained_part


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """SequentialDataset whose items are the catalogue in sorted order, whatever the order of the rows, and whose sessions keep their newest
    `MAX_ITEM_LIST_LENGTH` clicks, padded to that width. Under `cold_items` those that no row of the training part holds come last, and
    `trained_items` says how many there are before them, padding included.

    RecBole numbers items as they first appear, beginning with the targets. It ignores that setting for benchmark files, though some of
    its models count on the width, and its `seq_len` would keep the oldest clicks.
    """

    def _get_remap_list(self, field_list: Any) -> list[Any]:
        found: list[Any] = super()._get_remap_list(field_list)
        if self.iid_field in field_list:
            tokens, _ = self._concat_remaped_tokens(found)
            names = np.sort(pd.unique(tokens))
            if self.config["cold_items"]:
                trained = pd.Index(names).isin(self._training_tokens())
                names, self.trained_items = np.concatenate([names[trained], names[~trained]]), int(trained.sum()) + 1
            # RecBole numbers tokens in the order of this list.
            ordered = pd.DataFrame({self.iid_field: names})
            found.insert(0, (ordered, self.iid_field, FeatureType.TOKEN))
        return found

    def _training_tokens(self) -> Any:
        """The items in the rows of the training part, before they are numbered."""
        rows = self.inter_feat[: self.file_size_list[0]]
        return np.concatenate([rows[self.iid_field].to_numpy(), *rows[self._clicks[0]]])

    def add_items(self, items: ColdItems) -> None:
        """Number items behind all others; the parts that were split off this dataset know them too."""
        tokens = self.field2id_token
        self.trained_items = trained_part(self).item_num
        tokens[self.iid_field] = np.concatenate([tokens[self.iid_field], items.tokens])
        self.added = items  # `model.intent_files.item_vectors` has their vectors from here

    def _remap_ID_all(self) -> None:
        super()._remap_ID_all()  # before old clicks are cut off: an item that stands only in them has a number too
        field, longest = self._clicks
        self.inter_feat[field] = [clicks[-longest:] for clicks in self.inter_feat[field]]
        self.field2seqlen[field] = longest

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        field, longest = self._clicks
        clicks = self.inter_feat[field]
        self.inter_feat.interaction[field] = torch.nn.functional.pad(clicks, (0, longest - clicks.size(1)))

    @property
    def _clicks(self) -> tuple[str, int]:
        """The field of a session's clicks and its width."""
        return self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"], self.config["MAX_ITEM_LIST_LENGTH"]
