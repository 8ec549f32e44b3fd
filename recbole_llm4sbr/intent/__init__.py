"""Stage 1, offline: prompts, LLM answers, localization, feature files."""

import os

NO_MODELS = "RECBOLE_LLM4SBR_NO_MODELS"  # environment: where no model may be asked, as in the trials of a search


def check_allowed(what: str) -> None:
    """Refuse to load a model where none may be asked.

    Raises:
        RuntimeError: the environment says so.
    """
    if where := os.environ.get(NO_MODELS):
        raise RuntimeError(f"{what} was asked for {where}, where no model may be")
