"""What a result depends on besides settings and files: versions, machine, memory."""

import importlib.metadata
import os
import platform
import sys

import psutil
import torch

from recbole_llm4sbr._version import __version__

_LIBRARIES = ("recbole", "torch", "transformers", "numpy", "pandas", "faiss-cpu")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far in MB: of the GPU where one trains, else resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return round(float(psutil.Process().memory_info().peak_wset) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on."""
    found = {"recbole_llm4sbr": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def machine() -> str:
    """This machine in words: cores, memory, GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GB, {gpu}"
