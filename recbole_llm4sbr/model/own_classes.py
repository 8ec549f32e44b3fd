"""Importing the module of a user's own model class, `package.module:Class`, also from the working folder."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from recbole_llm4sbr.base.recbole import import_models


def import_own(module: str) -> ModuleType:
    """Import a module by name; where Python does not find it, the working folder is looked through too.

    The console script's `sys.path` begins with its own folder, not with the working folder. The latter is added behind all others and only
    when the module is not found otherwise, so that no file in it takes the place of an installed module.

    Raises:
        ImportError: there is no such module, or it cannot be imported.
    """
    here = str(Path.cwd())
    if not _is_found(module) and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
        if not _is_found(module):
            sys.path.remove(here)
    return import_models(module)


def _is_found(module: str) -> bool:
    """Whether there is such a module or, of a dotted name, its package, which is not imported."""
    top = module.partition(".")[0]
    return top in sys.modules or (bool(top) and importlib.util.find_spec(top) is not None)
