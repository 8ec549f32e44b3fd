"""RecBole's SequentialDataset over prepared session files."""

from typing import Any

import pandas as pd
import torch

from recbole_llm4sbr.base.recbole import FeatureSource, SequentialDataset


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """SequentialDataset whose sessions keep their newest `MAX_ITEM_LIST_LENGTH` clicks and are padded to that width.

    RecBole ignores that setting for benchmark files, though some of its models count on the width, and its `seq_len` would keep the
    oldest clicks.
    """

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        feat = super()._load_feat(filepath, source)
        if source == FeatureSource.INTERACTION and feat is not None:
            field, longest = self._clicks
            feat[field] = [clicks[-longest:] for clicks in feat[field]]
            self.field2seqlen[field] = longest
        return feat

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        field, longest = self._clicks
        clicks = self.inter_feat[field]
        self.inter_feat.interaction[field] = torch.nn.functional.pad(clicks, (0, longest - clicks.size(1)))

    @property
    def _clicks(self) -> tuple[str, int]:
        """The field of a session's clicks and its width."""
        return self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"], self.config["MAX_ITEM_LIST_LENGTH"]
