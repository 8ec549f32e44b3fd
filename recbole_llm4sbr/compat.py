"""What RecBole 1.2.0 breaks on today's libraries, mended in one place. Call `apply()` before RecBole is imported.

| what breaks | where in recbole 1.2.0 | mend | can go when |
|---|---|---|---|
| numpy 2 has no `np.float`, `np.str` | evaluator/metrics.py, data/interaction.py:31 (at import) | the two names are set here | RecBole stops using them |
| `np.float_`, `np.complex_`, `np.unicode_` | config/configurator.py:630 | `SessionConfig.compatibility_settings` does nothing | as above |
| `get_model` imports a module that needs kmeans_pytorch | utils/utils.py:64 | `model.model_class` looks in the sequential models only | RecBole guards that import |
| Config reads `sys.argv` and `eval`s what it finds | config/configurator.py:131, 165 | `SessionConfig` takes a finished dict | RecBole parses arguments in its own scripts |
| Config sets CUDA_VISIBLE_DEVICES and so undoes a scheduler's choice of GPU | config/configurator.py:484 | `SessionConfig._init_device` | RecBole leaves the variable alone |
| torch >= 2.6 refuses to load the checkpoints (a pickled Config inside) | trainer/trainer.py:289 | `trainer.safe_checkpoints` saves plain types | RecBole saves plain types |
| `import recbole.quick_start` needs ray and takes seconds | quick_start/quick_start.py | never imported; quick_start.py here | RecBole imports ray lazily |
| the first download waits for a process group that does not exist | data/dataset/dataset.py:252 | `data.atomic` downloads first | RecBole guards the barrier |
| checkpoint names have one-second resolution | trainer/trainer.py | a folder per run | RecBole makes them unique |
| pandas 3: `_fill_nan`, `_load_feat`, `_benchmark_presets` go wrong in silence | data/dataset/ | setup.cfg caps pandas below 3 | RecBole supports pandas 3 |
"""

import warnings

import numpy as np


def apply() -> None:
    """Give numpy back the two old names that RecBole reads, and silence RecBole's deprecation warnings; may be called twice."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"recbole(\.|$)")
    for name, kind in (("float", np.float64), ("str", np.str_)):
        if name not in np.__dict__:
            setattr(np, name, kind)
