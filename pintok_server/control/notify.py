"""Tell a service manager (systemd's Type=notify) when the server serves and when it stops."""

from __future__ import annotations

import os
import socket


def notify_manager(message: str) -> None:
    """Send a message such as READY=1 to the socket that NOTIFY_SOCKET names; nothing without one.

    A manager that does not listen is its own affair: the server goes on.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        # An abstract address begins with a zero byte.
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode(), address)
        except OSError:
            return
