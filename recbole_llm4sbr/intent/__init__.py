"""Stage 1, offline: prompts, LLM answers, localization, feature files."""
