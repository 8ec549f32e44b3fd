"""Stage 2: the contract of a session recommender, backbones, and the wrapper that fuses and aligns intents."""

from recbole_llm4sbr.model.adapter import AdaptedRecommender
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.intent_files import IntentFiles
from recbole_llm4sbr.model.intents import SessionIntents
from recbole_llm4sbr.model.registry import build_model, check_buildable, check_stock, check_wrappable, is_switched, model_class
from recbole_llm4sbr.model.wrapper import LLM4SBRWrapper

__all__ = [
    "AdaptedRecommender",
    "IntentFiles",
    "LLM4SBRWrapper",
    "SessionEmbeddings",
    "SessionIntents",
    "SessionRecommender",
    "build_model",
    "check_buildable",
    "check_stock",
    "check_wrappable",
    "is_switched",
    "model_class",
]
