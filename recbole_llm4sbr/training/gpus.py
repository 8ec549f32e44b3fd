"""Which GPUs a run trains on."""

from collections.abc import Mapping
from typing import Any

import torch

from recbole_llm4sbr.base.errors import UserError


def gpus(settings: Mapping[str, Any]) -> list[int]:
    """Numbers, as torch counts them, of the GPUs that a run may train on; none where it trains on the CPU.

    They are those of `gpu_id`, of those that are visible (CUDA_VISIBLE_DEVICES, which RecBole would overwrite); all of them where it is
    not given.

    Raises:
        UserError: `gpu_id` names one that is not there.
    """
    named = settings.get("gpu_id")
    if not torch.cuda.is_available() or settings.get("use_gpu") is False or named in ("", []):
        return []
    here = range(torch.cuda.device_count())
    if named is None:
        return list(here)
    chosen = [int(each) for each in (named if isinstance(named, list) else str(named).split(","))]
    if missing := [each for each in chosen if each not in here]:
        raise UserError(
            f"gpu_id={named!r}: there is no GPU {missing[0]}; {len(here)} are visible, numbered from 0; choose of these, or leave it out"
        )
    return chosen


def check_dealt_out(settings: Mapping[str, Any]) -> None:
    """Refuse a choice of GPUs where Ray makes it.

    Raises:
        UserError: `gpu_id` names some.
    """
    if settings.get("gpu_id") not in (None, "", []):
        raise UserError(
            f"gpu_id={settings['gpu_id']!r}: Ray deals out the GPUs; leave it out, and start Ray, or this command, with "
            f"CUDA_VISIBLE_DEVICES={settings['gpu_id']} to keep it to these"
        )
