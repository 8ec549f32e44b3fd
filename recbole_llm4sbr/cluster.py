"""Joining Ray: a cluster by its address, or one of this machine's cores."""

from typing import Any

from recbole_llm4sbr.errors import UserError


def connect(address: str | None, **options: Any) -> None:
    """Connect to Ray, unless this process is connected already.

    Args:
        address: of a cluster, as `auto` or `ray://head:10001`; None for Ray on this machine.
        options: more arguments of `ray.init`, for Ray on this machine.

    Raises:
        UserError: no cluster answers there.
    """
    import ray

    if ray.is_initialized():
        return
    own = {} if address else {"include_dashboard": False, **options}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at ray_address={address!r} ({' '.join(str(error).split())[:200]}); start one with "
            f"`ray start --head`, or leave --ray_address out for Ray on this machine"
        ) from None
