"""RecBole 1.2.0, mended for today's libraries, and every name of it that this package uses. Nothing else here imports `recbole`.

| what breaks | where in recbole 1.2.0 | mend | can go when |
|---|---|---|---|
| numpy 2 has no `np.float`, `np.str` | evaluator/metrics.py, data/interaction.py:31 (at import) | the two names are set here | RecBole stops using them |
| `np.float_`, `np.complex_`, `np.unicode_` | config/configurator.py:630 | `SessionConfig.compatibility_settings` does nothing | as above |
| `get_model` imports a module that needs kmeans_pytorch | utils/utils.py:64 | `model.registry.model_class` looks in the sequential models only | RecBole guards that import |
| Config reads `sys.argv` and `eval`s what it finds | config/configurator.py:131, 165 | `SessionConfig` takes a finished dict | RecBole parses arguments in its own scripts |
| Config sets CUDA_VISIBLE_DEVICES and so undoes a scheduler's choice of GPU | config/configurator.py:484 | `SessionConfig._init_device` | RecBole leaves the variable alone |
| torch >= 2.6 refuses to load the checkpoints (a pickled Config inside) | trainer/trainer.py:289 | `training.trainer` saves plain types | RecBole saves plain types |
| `import recbole.quick_start` needs ray and takes seconds | quick_start/quick_start.py | never imported; quick_start.py here | RecBole imports ray lazily |
| the first download waits for a process group that does not exist | data/dataset/dataset.py:252 | `data.raw` downloads first | RecBole guards the barrier |
| checkpoint names have one-second resolution | trainer/trainer.py | a folder per run | RecBole makes them unique |
| importing the sequential models turns autograd's anomaly detection on for the whole process (2-3 x slower) | model/sequential_recommender/sine.py:25 | `import_models` restores the switch | RecBole drops that line |
| BERT4Rec's loss of a batch in which nothing is masked, as of one row, is 0/0 | model/sequential_recommender/bert4rec.py:197, 212 | `model.registry` makes it 0 | RecBole guards the quotient |
| AUC, MAE and RMSE import sklearn.metrics, and that scipy.stats: a third of the seconds that RecBole and torch take to import | evaluator/metrics.py:29 | `_imported_when_called`: sklearn comes when one of them is computed | RecBole imports it there |
| metrics count padding among the items and recommend it where fewer candidates are left than `topk`; equal scores rank by item number | evaluator/collector.py:87, 159 | `training.evaluation` | RecBole leaves out padding and what scores -inf, and breaks ties |
| GAUC is below 0 where a target is no candidate, and nan where no row has another candidate | evaluator/collector.py:178, metrics.py:315 | `training.evaluation` | RecBole ranks such a target last |
| the reader of atomic files takes a token as NA or None for a missing value, and fails at a cell of more than 131,072 characters | data/dataset/dataset.py:486 | `_read_cells` stands in for `pandas.read_csv` there | RecBole passes `keep_default_na=False` |
| `data_preparation` unpickles dataloaders that happen to lie in `checkpoint_dir` | data/utils.py:98 | `load_split_dataloaders` finds none | RecBole asks for them by a setting |
| pandas 3: `_fill_nan`, `_load_feat`, `_benchmark_presets` go wrong without an error | data/dataset/ | setup.cfg caps pandas below 3 | RecBole supports pandas 3 |
"""

import csv
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_llm4sbr.base.denormals import flush_denormals
from recbole_llm4sbr.base.names import MISSING

flush_denormals()
# The two old names of numpy that RecBole reads must be there before RecBole is imported.
for _name, _type in (("float", np.float64), ("str", np.str_)):
    if _name not in np.__dict__:
        setattr(np, _name, _type)
for _category in (FutureWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"recbole(\.|$)")


def _imported_when_called(module: str, *functions: str) -> ModuleType:
    """A stand-in for a module whose functions import the module itself when they are called."""

    def late(function: str) -> Callable[..., Any]:
        return lambda *args, **named: getattr(importlib.import_module(module), function)(*args, **named)

    stand_in = ModuleType(module)
    vars(stand_in).update({function: late(function) for function in functions})
    return stand_in


_SKLEARN = "sklearn.metrics"
if _SKLEARN not in sys.modules:
    sys.modules[_SKLEARN] = _imported_when_called(_SKLEARN, "auc", "mean_absolute_error", "mean_squared_error")
    try:
        importlib.import_module("recbole.evaluator.metrics")
    finally:
        del sys.modules[_SKLEARN]


def _read_cells(path: str, *, dtype: dict[str, type], **given: Any) -> pd.DataFrame:
    """Read an atomic file as RecBole asks `pandas.read_csv` to, but take no text for a missing value except an empty cell."""
    csv.field_size_limit(2**31 - 1)
    missing = {column: [""] if kind is str else list(MISSING) for column, kind in dtype.items()}
    return pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=missing, **given)


_pandas = ModuleType("pandas")
vars(_pandas).update(vars(pd), read_csv=_read_cells)
vars(importlib.import_module("recbole.data.dataset.dataset")).update(pd=_pandas)
vars(importlib.import_module("recbole.data.utils")).update(load_split_dataloaders=lambda config: None)

from recbole.config import Config  # noqa: E402
from recbole.data.dataloader.general_dataloader import TrainDataLoader  # noqa: E402
from recbole.data.dataset import SequentialDataset  # noqa: E402
from recbole.data.interaction import Interaction, cat_interactions  # noqa: E402
from recbole.data.utils import data_preparation  # noqa: E402
from recbole.evaluator.collector import Collector  # noqa: E402
from recbole.evaluator.evaluator import Evaluator  # noqa: E402
from recbole.evaluator.metrics import (  # noqa: E402
    GAUC,
    AveragePopularity,
    GiniIndex,
    ItemCoverage,
    ShannonEntropy,
    TailPercentage,
)
from recbole.model.abstract_recommender import SequentialRecommender  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import FeatureType, InputType, get_trainer, init_logger, init_seed  # noqa: E402
from recbole.utils.url import download_url, extract_zip, rename_atomic_files  # noqa: E402

__all__ = [
    "GAUC",
    "AveragePopularity",
    "Collector",
    "Config",
    "Evaluator",
    "FeatureType",
    "GiniIndex",
    "InputType",
    "Interaction",
    "ItemCoverage",
    "SequentialDataset",
    "SequentialRecommender",
    "ShannonEntropy",
    "TailPercentage",
    "TrainDataLoader",
    "Trainer",
    "cat_interactions",
    "data_preparation",
    "download_url",
    "extract_zip",
    "get_trainer",
    "import_models",
    "init_logger",
    "init_seed",
    "rename_atomic_files",
]

MODELS = "recbole.model.sequential_recommender"


def import_models(module: str = MODELS) -> ModuleType:
    """Import a module of models, by default RecBole's sequential ones, and leave autograd's anomaly detection as it was."""
    before = torch.is_anomaly_enabled()
    checks_nan = torch.is_anomaly_check_nan_enabled()
    try:
        return importlib.import_module(module)
    finally:
        torch.autograd.set_detect_anomaly(before, checks_nan)
