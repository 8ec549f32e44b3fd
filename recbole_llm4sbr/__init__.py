"""LLM4SBR as a RecBole extension: session intents from a large language model for any session-based recommender."""

from typing import Any

from recbole_llm4sbr._version import __version__

_OFFERED = ("Recommender", "load_ensemble", "load_model", "run_ensemble", "run_recbole_llm4sbr")  # of quick_start
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    # torch and RecBole are imported only when a run is asked for: `--help` and `prepare` stay quick
    if name in _OFFERED:
        from recbole_llm4sbr import quick_start

        return getattr(quick_start, name)
    raise AttributeError(f"module 'recbole_llm4sbr' has no attribute {name!r}")
