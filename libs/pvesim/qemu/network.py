"""Network cards: the bridges there are, and who may use them."""

from libs.pvesim.endpoints import Call
from libs.pvesim.qemu.model import Config
from libs.pvesim.qemu.options import NETS
from libs.pvesim.qemu.properties import parse_net

BRIDGES = frozenset({"vmbr0", "vmbr1"})
_ZONE = "/sdn/zones/localnetwork"


def require_bridges(call: Call, config: Config) -> None:
    """Raise the 403 error for a bridge, or a VLAN of it, that the caller may not use; older releases guard none."""
    if not call.lab.settings.release.guards_bridges:
        return
    for name, value in config.items():
        net = parse_net(str(value)) if name in NETS else {}
        if "bridge" in net:
            vlan = f"/{net['tag']}" if "tag" in net else ""
            call.require(f"{_ZONE}/{net['bridge']}{vlan}", "SDN.Use")


def missing_bridge(name: str, value: str) -> str | None:
    """The bridge of a card that does not exist on any node."""
    bridge = parse_net(value).get("bridge") if name in NETS else None
    return None if bridge in BRIDGES else bridge
