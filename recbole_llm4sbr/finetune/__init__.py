"""Tuning an LLM and a text encoder on the training part of a prepared dataset (docs/finetuning.md).

`examples.py` makes the examples, `lora.py` and `contrast.py` say what a step computes, `loop.py` trains either, `folder.py` keeps what a
killed run needs, `verb.py` walks the whole way. `intent/tuned.py`, below, refuses a tuned model where it would leak.
"""
