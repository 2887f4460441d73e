"""Tells systemd how a service does (sd_notify(3)); silent where nobody asked to be told."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str, address: str | None = None) -> None:
    """Sends `message`, such as "READY=1", to $NOTIFY_SOCKET or `address`; "@" begins an abstract name."""
    target = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
    if not target:
        return
    name = f"\0{target[1:]}" if target.startswith("@") else target
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.sendto(message.encode(), name)  # a service manager that has gone must not stop the service
