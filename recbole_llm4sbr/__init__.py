"""LLM4SBR as a RecBole extension: session intents from a large language model for any session-based recommender."""

from typing import Any

from recbole_llm4sbr._version import __version__

_OFFERED = ("Recommender", "import_clicks", "load_ensemble", "load_model", "run_ensemble", "run_recbole_llm4sbr")
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    # torch and RecBole are imported only when a run is asked for: `--help`, `import_clicks` and `prepare` stay quick
    if name == "import_clicks":
        from recbole_llm4sbr.data.importing import import_clicks

        return import_clicks
    if name in _OFFERED:
        from recbole_llm4sbr import quick_start

        return getattr(quick_start, name)
    raise AttributeError(f"module 'recbole_llm4sbr' has no attribute {name!r}")
