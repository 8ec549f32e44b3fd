"""RecBole's SequentialDataset over prepared session files."""

from typing import Any

import pandas as pd

from recbole_llm4sbr import compat

compat.apply()

from recbole.data.dataset import SequentialDataset  # noqa: E402  (numpy must be mended first)
from recbole.utils import FeatureSource  # noqa: E402


class SessionDataset(SequentialDataset):  # type: ignore[misc]
    """SequentialDataset that keeps the newest `MAX_ITEM_LIST_LENGTH` clicks of a session.

    RecBole ignores that setting for benchmark files, and its `seq_len` keeps the oldest clicks.
    """

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        feat = super()._load_feat(filepath, source)
        field = self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"]
        if source == FeatureSource.INTERACTION and feat is not None and field in feat:
            longest = self.config["MAX_ITEM_LIST_LENGTH"]
            feat[field] = [clicks[-longest:] for clicks in feat[field]]
            # The same width in all parts and runs: position embeddings and padding then never depend on a part's longest.
            self.field2seqlen[field] = longest
        return feat
