"""Joining Ray: a cluster by its address, or one of this machine's cores."""

import socket
from typing import Any

from recbole_llm4sbr.base.errors import UserError


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
    _check_reachable(address)
    own = {} if address else {"include_dashboard": False, **options}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _not_reachable(address, " ".join(str(error).split())[:200]) from None


def _check_reachable(address: str | None) -> None:
    """Try to connect to `host:port` first: Ray itself would try for ten minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _not_reachable(address, str(error)) from None


def _not_reachable(address: str | None, reason: str) -> UserError:
    """The error that names the address and the next step."""
    return UserError(
        f"no Ray cluster answers at ray_address={address!r} ({reason}); start one with `ray start --head`, or leave --ray_address out "
        f"for Ray on this machine"
    )
