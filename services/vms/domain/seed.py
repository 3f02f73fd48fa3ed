"""What a machine's NoCloud seed says: the user's own data, and beside it what Telar was asked to set; pure.

Source: cloud-init's documentation of the data source NoCloud and of network configuration, version 2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.vms.domain.network import mac_of
from services.vms.errors import SeedRefused

LABEL = "CIDATA"
MAX_PASSWORD_BYTES = 72
"""bcrypt, the form of crypt(3) in which a password goes into a seed, takes no more."""


def require_hashable(password: str) -> None:
    """Raise SeedRefused for a password that cannot be kept as a hash whole."""
    if len(password.encode()) > MAX_PASSWORD_BYTES:
        raise SeedRefused(f"With user_data a password has at most {MAX_PASSWORD_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Seed:
    """What goes into the seed; `password_hash` is in the form of crypt(3)."""

    vm_id: str
    hostname: str
    user_data: str
    user: str | None = None
    password_hash: str | None = None
    public_keys: Sequence[str] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    card: str | None = None

    def files(self) -> dict[str, bytes]:
        """The files by name. JSON is YAML as well, and leaves nothing to quote wrongly."""
        told = {
            "user-data": self.user_data,
            "meta-data": json.dumps({"instance-id": self.vm_id, "local-hostname": self.hostname}),
            "vendor-data": "#cloud-config\n" + json.dumps(self._vendor()),
            "network-config": json.dumps(self._network()),
        }
        return {name: text.encode() for name, text in told.items()}

    def _vendor(self) -> dict[str, Any]:
        """What the user's own data may override."""
        told: dict[str, Any] = {}
        if self.user is not None:
            told["user"] = self.user
        if self.public_keys:
            told["ssh_authorized_keys"] = list(self.public_keys)
        if self.password_hash is not None:
            told["password"] = self.password_hash
            told["chpasswd"] = {"expire": False}
        return told

    def _network(self) -> dict[str, Any]:
        wanted = self.network
        card: dict[str, Any] = {"dhcp4": wanted.get("ip", "dhcp") == "dhcp"}
        mac = mac_of(self.card)
        card["match"] = {"macaddress": mac} if mac is not None else {"name": "e*"}
        fixed = [wanted[name] for name in ("ip", "ip6") if wanted.get(name) not in (None, "dhcp", "auto")]
        if fixed:
            card["addresses"] = fixed
        card["dhcp6"] = wanted.get("ip6") == "dhcp"
        card["accept-ra"] = wanted.get("ip6") == "auto"
        routes = [
            {"to": to, "via": wanted[name]}
            for to, name in (("0.0.0.0/0", "gateway"), ("::/0", "gateway6"))
            if wanted.get(name)
        ]
        if routes:
            card["routes"] = routes
        names: dict[str, Any] = {}
        if wanted.get("nameservers"):
            names["addresses"] = list(wanted["nameservers"])
        if wanted.get("search_domain"):
            names["search"] = [wanted["search_domain"]]
        if names:
            card["nameservers"] = names
        return {"version": 2, "ethernets": {"primary": card}}
