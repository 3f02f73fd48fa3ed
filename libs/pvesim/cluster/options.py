"""Options of the datacenter: which ids are handed out, how MAC addresses begin, and what is only kept."""

import random
from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.params import OPTION_LIST, Schema, boolean, integer, one_of, split_list, text
from libs.pvesim.qemu.options import KEYBOARDS
from libs.pvesim.qemu.properties import parse
from libs.pvesim.releases import Release
from libs.pvesim.store import Store

routes = Routes()
_LOWEST_ID, _END_OF_IDS = 100, 1_000_000
_LOCAL_BIT, _GROUP_BIT = 0x02, 0x01
_FIELDS: Schema = {
    **{name: text() for name in (
        "bwlimit", "crs", "email_from", "ha", "migration", "next-id", "notify", "registered-tags",
        "replication", "tag-style", "u2f", "user-tag-access", "webauthn",
    )},
    "consent-text": text(65536),
    "console": one_of("applet", "vv", "html5", "xtermjs"),
    "description": text(65536),
    "fencing": one_of("watchdog", "hardware", "both"),
    "http_proxy": text(pattern="http://.*"),
    "keyboard": one_of(*KEYBOARDS),
    "language": one_of(
        "ar", "ca", "da", "de", "en", "es", "eu", "fa", "fr", "hr", "he", "it", "ja", "ka", "kr", "nb", "nl", "nn",
        "pl", "pt_BR", "ru", "sl", "sv", "tr", "ukr", "zh_CN", "zh_TW",
    ),
    "mac_prefix": text(pattern=r"[a-fA-F0-9][02468aceACE](:[a-fA-F0-9]{2}){0,2}:?"),
    "max_workers": integer(1),
    "migration_unsecure": boolean(),
}  # fmt: skip


class DatacenterOptions:
    """The options as they were set; the rest has its default."""

    def __init__(self, store: Store, release: Release, rng: random.Random, loaded: dict[str, dict[str, Any]]) -> None:
        self._store = store
        self._release = release
        self._rng = rng
        self.values: dict[str, Any] = dict(loaded.get("datacenter", {}))

    def change(self, values: dict[str, Any], dropped: list[str]) -> None:
        self.values = {key: value for key, value in self.values.items() if key not in dropped} | values
        self._store.put("option", "datacenter", self.values)

    def ids(self) -> range:
        """The ids that are handed out."""
        limits = parse(str(self.values.get("next-id", "")), "lower")
        return range(int(limits.get("lower", _LOWEST_ID)), int(limits.get("upper", _END_OF_IDS)))

    def new_mac(self) -> str:
        """An address with the datacenter's prefix; where there is none, a random one of local administration."""
        prefix = self.values.get("mac_prefix") or self._release.mac_prefix
        octets = [int(part, 16) for part in str(prefix).rstrip(":").split(":")] if prefix else []
        if not octets:
            octets = [(self._rng.randrange(256) | _LOCAL_BIT) & ~_GROUP_BIT]
        octets += [self._rng.randrange(256) for _ in range(6 - len(octets))]
        return ":".join(f"{octet:02X}" for octet in octets)


@routes.get("/cluster/options", permission=needs("/", "Sys.Audit"))
async def read(call: Call) -> dict[str, Any]:
    prefix = call.lab.settings.release.mac_prefix
    return ({"mac_prefix": prefix} if prefix else {}) | call.lab.datacenter.values


@routes.put("/cluster/options", {**_FIELDS, "delete": OPTION_LIST}, needs("/", "Sys.Modify"))
async def change(call: Call) -> None:
    values = {name: call.get(name) for name in _FIELDS if name in call.params}
    call.lab.datacenter.change(values, split_list(call.get("delete", "")))
