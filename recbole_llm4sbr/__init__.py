"""LLM4SBR as a RecBole extension: session intents from a large language model for any session-based recommender."""

__version__ = "0.1.0"
