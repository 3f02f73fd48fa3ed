"""How a machine is connected: the bridge and VLAN of its card, and the addresses it is given; pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from services.vms.errors import NetworkRefused

_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Rules:
    """Which bridges and VLANs an operator lets users choose."""

    bridges: Sequence[str] = ("vmbr0",)
    vlans: Sequence[tuple[int, int]] = ()

    def require(self, *, bridge: str | None, vlan: int | None) -> None:
        """Raise NetworkRefused, naming what may be chosen."""
        if bridge is not None and bridge not in self.bridges:
            raise NetworkRefused(f"The bridge {bridge} is not offered; there are: {', '.join(self.bridges) or 'none'}")
        if vlan is not None and not any(first <= vlan <= last for first, last in self.vlans):
            told = ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in self.vlans)
            raise NetworkRefused(f"The VLAN {vlan} is not offered; there are: {told or 'none'}")


def check_addresses(wanted: Mapping[str, Any]) -> None:
    """Raise ValueError unless addresses and gateways belong together; `ip` is `dhcp` or `10.0.0.5/24`, and so on."""
    for name, gateway, automatic, version in (
        ("ip", "gateway", ("dhcp",), 4),
        ("ip6", "gateway6", ("dhcp", "auto"), 6),
    ):
        address, through = wanted.get(name), wanted.get(gateway)
        interface = None if address is None or address in automatic else _interface(name, address, version)
        if through is None:
            continue
        _require_unscoped(gateway, through)
        if interface is None:
            raise ValueError(f"{gateway} needs a fixed address in {name}")
        if ip_address(through) not in interface.network or ip_address(through) == interface.ip:
            raise ValueError(f"{gateway} must be another address of the network {interface.network}")
    for server in wanted.get("nameservers") or ():
        _require_unscoped("nameservers", server)


def _require_unscoped(name: str, address: str) -> None:
    """A zone (`fe80::1%eth0`) may be any text, and means nothing outside the guest."""
    if "%" in address:
        raise ValueError(f"{name} takes addresses without a zone")


def _interface(name: str, text: str, version: int) -> IPv4Interface | IPv6Interface:
    _require_unscoped(name, text)
    address, _, length = text.partition("/")
    if not _LENGTH.fullmatch(length):  # a netmask, for instance
        raise ValueError(f"{name} needs a prefix length: {address}/{24 if version == 4 else 64}")  # noqa: PLR2004 - IPv4
    interface = ip_interface(text)
    if interface.version != version:
        raise ValueError(f"{name} takes an IPv{version} address")
    whole = interface.network.prefixlen >= interface.max_prefixlen - 1
    edge = interface.ip in (interface.network.network_address, interface.network.broadcast_address)
    if interface.is_multicast or interface.is_loopback or interface.is_unspecified:
        raise ValueError(f"{name} is not an address that a machine can have")
    if version == 4 and edge and not whole:  # noqa: PLR2004 - IPv4 alone has broadcasts
        raise ValueError(f"{name} is the network's or its broadcast address")
    return interface


def card(now: str | None, *, bridge: str | None, vlan: int | None) -> str:
    """The text of a network card on that bridge and VLAN; its model, its MAC and its other options stay.

    So does its VLAN on the bridge that it is on: nobody leaves the template's VLAN by naming its bridge.
    """
    options: dict[str, str] = {}
    model = "virtio"
    for part in (now or "").split(","):
        name, _, value = part.partition("=")
        if _MAC.fullmatch(value) and name != "macaddr":
            model = f"{name}={value}"
        elif name == "model":
            model = f"{value}{model.removeprefix('virtio')}"
        elif name == "macaddr":
            model += f"={value}"
        elif name:
            options[name] = value
    if bridge not in (None, options.get("bridge")):
        options["bridge"] = bridge
        options.pop("tag", None)
    if vlan is not None:
        options["tag"] = str(vlan)
    options.setdefault("bridge", "vmbr0")
    return ",".join([model, *(f"{name}={value}" for name, value in sorted(options.items()))])


def ipconfig(wanted: Mapping[str, Any]) -> str:
    """The cluster's text for the addresses of the first card; `ip=dhcp` if none is asked for."""
    parts = [
        f"{key}={wanted[name]}"
        for key, name in (("ip", "ip"), ("gw", "gateway"), ("ip6", "ip6"), ("gw6", "gateway6"))
        if wanted.get(name)
    ]
    return ",".join(parts) or "ip=dhcp"


def mac_of(now: str | None) -> str | None:
    """The hardware address of a card."""
    found = _MAC.search(now or "")
    return found[0].lower() if found else None
