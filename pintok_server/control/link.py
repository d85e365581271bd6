"""A network interface as the kernel describes it over netlink, in this network namespace.

Not from sysfs: a mounted sysfs may show the interfaces of another namespace.
"""

from __future__ import annotations

import dataclasses
import socket

from pyroute2 import IPRoute
from pyroute2.ethtool import Ethtool
from pyroute2.ethtool.ioctl import EthtoolError


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """One interface. `kind` is empty for hardware, else veth, bond, vlan and so on."""

    name: str
    kind: str
    state: str
    mtu: int
    rx_queues: int
    master: str | None
    has_xdp: bool


def read_link(name: str) -> Link | None:
    """The interface of this name, or None when there is none."""
    with IPRoute() as route:
        links = {link["index"]: link for link in route.get_links()}
    found = [link for link in links.values() if link.get_attr("IFLA_IFNAME") == name]
    if not found:
        return None
    link = found[0]
    info = link.get_attr("IFLA_LINKINFO")
    master = links.get(link.get_attr("IFLA_MASTER"))
    xdp = link.get_attr("IFLA_XDP")
    return Link(
        name=name,
        kind=(info.get_attr("IFLA_INFO_KIND") if info is not None else None) or "",
        state=(link.get_attr("IFLA_OPERSTATE") or "unknown").lower(),
        mtu=link.get_attr("IFLA_MTU"),
        rx_queues=_combined_channels(name) or link.get_attr("IFLA_NUM_RX_QUEUES"),
        master=master.get_attr("IFLA_IFNAME") if master is not None else None,
        has_xdp=bool(xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED")),
    )


def interface_index(name: str) -> int | None:
    """The index of the interface that has this name now; None when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def is_usable(name: str) -> bool:
    """Whether the interface is up and has an address, so that a server can start on it."""
    link = read_link(name)
    if link is None or link.state not in {"up", "unknown"}:
        return False
    with IPRoute() as route:
        return any(True for _ in route.get_addr(index=interface_index(name)))


def _combined_channels(name: str) -> int | None:
    """Channels that receive, as ethtool counts them; None when the driver does not say."""
    try:
        with Ethtool() as ethtool:
            channels = ethtool.get_channels(name)
    except (EthtoolError, OSError):
        return None
    combined = getattr(channels, "combined_count", None) or 0
    return int(combined) + int(getattr(channels, "rx_count", None) or 0) or None
