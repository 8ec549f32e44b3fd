"""LLM4SBR as a RecBole extension: session intents from a large language model for any session-based recommender."""

from typing import Any

from recbole_llm4sbr._version import __version__

__all__ = ["__version__", "run_recbole_llm4sbr"]


def __getattr__(name: str) -> Any:
    # torch and RecBole are imported only when a run is asked for: `--help` and `prepare` stay quick
    if name == "run_recbole_llm4sbr":
        from recbole_llm4sbr.quick_start import run_recbole_llm4sbr

        return run_recbole_llm4sbr
    raise AttributeError(f"module 'recbole_llm4sbr' has no attribute {name!r}")
