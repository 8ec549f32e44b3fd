"""Numbers below a float's normal range count as zero in every thread that computes, in a process of its own as a user starts it."""

import os
import subprocess
import sys

import pytest

SMALL = """
import numpy as np, torch
found = torch.full((400_000,), 1, dtype=torch.int32).view(torch.float32)  # 1.4e-45 each, more than one thread takes alone
print(int((found * 1.0 != 0).sum()), int((found.view(-1, 100) @ torch.eye(100) != 0).sum()), torch.get_num_threads())
"""


def kept(*lines: str) -> tuple[list[int], str]:
    """How many of 400,000 such numbers elementwise arithmetic and a matrix product keep; threads; what was said."""
    done = subprocess.run(
        [sys.executable, "-W", "error:The value of the smallest", "-c", "\n".join([*lines, SMALL])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    )
    return [int(each) for each in done.stdout.split()], done.stderr


def test_a_processor_keeps_them_where_nothing_is_said():
    assert kept()[0] == [400_000, 400_000, 2]


@pytest.mark.parametrize("module", ["training.run", "intent.encoder"])
def test_what_trains_or_runs_a_model_flushes_them_in_all_threads(module):
    assert kept(f"import recbole_llm4sbr.{module}") == ([0, 0, 2], "")
