"""Tuning an LLM and a text encoder on the training part of a prepared dataset (docs/finetuning.md).

`examples.py` makes the examples, `packing.py` rows of tokens of them; `llm.py` and `contrast.py` say what a step computes, `loop.py`
trains either and keeps what a killed run needs, `judge.py` compares before and after, `run.py` walks the whole way. `intent/tuned.py`,
below, refuses a tuned model where it would leak.
"""
