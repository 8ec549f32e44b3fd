"""Which GPUs a run trains on."""

from collections.abc import Mapping, Sequence
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
    if not torch.cuda.is_available() or settings.get("use_gpu") is False:
        return []
    here = range(torch.cuda.device_count())
    chosen = named_gpus(settings)
    if chosen is None:
        return list(here)
    if missing := [each for each in chosen if each not in here]:
        raise UserError(
            f"gpu_id={_shown(chosen)}: there is no GPU {missing[0]}; {len(here)} are visible, numbered from 0; choose of these, or leave "
            f"it out"
        )
    return chosen


def named_gpus(settings: Mapping[str, Any]) -> list[int] | None:
    """The numbers in `gpu_id`; none where it is the empty text, which means the CPU, and None where it is not given.

    >>> named_gpus({"gpu_id": "0,2"}), named_gpus({"gpu_id": 1}), named_gpus({"gpu_id": ""}), named_gpus({})
    ([0, 2], [1], [], None)
    """
    named = settings.get("gpu_id")
    texts = named if isinstance(named, list) else str(named).split(",")
    return None if named is None else [int(each) for each in texts if each != ""]


def _shown(chosen: Sequence[int]) -> str:
    return ",".join(map(str, chosen))


def check_dealt_out(settings: Mapping[str, Any]) -> None:
    """Refuse a choice of GPUs where Ray makes it.

    Raises:
        UserError: `gpu_id` names some.
    """
    if chosen := named_gpus(settings):
        raise UserError(
            f"gpu_id={_shown(chosen)}: Ray deals out the GPUs; leave it out, and start Ray, or this command, with "
            f"CUDA_VISIBLE_DEVICES={_shown(chosen)} to keep it to these"
        )
