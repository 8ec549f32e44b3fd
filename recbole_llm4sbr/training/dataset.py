"""RecBole's SequentialDataset over prepared session files."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_llm4sbr.base.recbole import FeatureType, SequentialDataset


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """SequentialDataset whose items are the catalogue in sorted order, whatever the order of the rows, and whose sessions keep their newest
    `MAX_ITEM_LIST_LENGTH` clicks, padded to that width.

    RecBole numbers items as they first appear, beginning with the targets. It ignores that setting for benchmark files, though some of
    its models count on the width, and its `seq_len` would keep the oldest clicks.
    """

    def _get_remap_list(self, field_list: Any) -> list[Any]:
        found: list[Any] = super()._get_remap_list(field_list)
        if self.iid_field in field_list:
            tokens, _ = self._concat_remaped_tokens(found)
            # RecBole numbers tokens in the order of this list.
            ordered = pd.DataFrame({self.iid_field: np.sort(pd.unique(tokens))})
            found.insert(0, (ordered, self.iid_field, FeatureType.TOKEN))
        return found

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
