"""Numbers below a float's normal range count as zero, as on GPUs.

Weight decay takes parameters that nothing trains to 1e-38 and below, where a processor computes many times more slowly
(`benchmarks/denormals.py`). A thread passes the switch on to those that it starts, and torch starts its own at its first large operation:
so the modules that train or run a model turn it on when they are imported, before there is one.
"""

import numpy as np
import torch


def flush_denormals() -> None:
    """Turn it on for this thread and those that it starts from now on; where a processor cannot, nothing happens."""
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looked up once: numpy before 2.4 warns where the smallest number is zero by then
    torch.set_flush_denormal(True)
