"""Identity and health of the cluster and its nodes: version, status, nodes, networks, the next free id."""

from typing import Any

from libs.pvesim.access.permissions import needs
from libs.pvesim.cluster.nodes import GIB, Node
from libs.pvesim.cluster.resources import node_entry, node_load
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import VMID_OPTIONAL, one_of
from libs.pvesim.qemu.network import BRIDGES

routes = Routes()
_REPOID = "5ac30304265fbd8e"
_NODE_AUDIT = needs("/nodes/{node}", "Sys.Audit")
_INTERFACE_TYPES = (
    "bridge", "bond", "eth", "alias", "vlan", "fabric", "OVSBridge", "OVSBond", "OVSPort", "OVSIntPort", "vnet",
    "any_bridge", "any_local_bridge", "include_sdn",
)  # fmt: skip
_NODE_DIRS = ("network", "qemu", "rrddata", "status", "storage", "tasks", "version")


def _version(call: Call) -> dict[str, Any]:
    settings = call.lab.settings
    return {"version": settings.version, "release": settings.release.shown, "repoid": _REPOID}


@routes.get("/version")
async def version(call: Call) -> dict[str, Any]:
    return _version(call)


@routes.get("/nodes/{node}/version")
async def node_version(call: Call) -> dict[str, Any]:
    return _version(call)


@routes.get("/cluster/nextid", {"vmid": VMID_OPTIONAL})
async def next_id(call: Call) -> str:
    """The lowest unused id, as text. Nothing is reserved."""
    taken = call.lab.vms.by_id
    wanted = call.get("vmid")
    if wanted is not None:
        if wanted in taken:
            raise parameter_error("vmid", f"VM {wanted} already exists")
        return str(wanted)
    ids = call.lab.datacenter.ids()
    free = next((vmid for vmid in ids if vmid not in taken), None)
    if free is None:
        raise PveError(f"unable to get any free VMID in range [{ids.start}, {ids.stop}]")
    return str(free)


@routes.get("/cluster/status", permission=needs("/", "Sys.Audit"))
async def cluster_status(call: Call) -> list[dict[str, Any]]:
    lab = call.lab
    quorate = lab.nodes.quorate and not lab.faults.no_quorum()
    name = lab.settings.cluster_name
    count = len(lab.nodes.by_name)
    head = {"id": "cluster", "type": "cluster", "name": name, "nodes": count, "quorate": int(quorate), "version": count}
    return [
        head,
        *(
            {
                "id": f"node/{node.name}",
                "type": "node",
                "name": node.name,
                "nodeid": node.nodeid,
                "ip": node.address,
                "local": int(node.name == call.api_node),
                "online": int(node.up),
                "level": "",
            }
            for node in lab.nodes
        ),
    ]


@routes.get("/nodes")
async def list_nodes(call: Call) -> list[dict[str, Any]]:
    lab = call.lab
    fingerprint = lab.certificate.fingerprint
    return [
        node_entry(lab, node, full=call.allows(f"/nodes/{node.name}", "Sys.Audit")) | {"ssl_fingerprint": fingerprint}
        for node in lab.nodes
    ]


@routes.get("/nodes/{node}", on_node=False)
async def node_index(call: Call) -> list[dict[str, str]]:  # noqa: ARG001  (an index is the same for every node)
    return [{"name": name} for name in _NODE_DIRS]


@routes.get("/nodes/{node}/status", permission=_NODE_AUDIT)
async def node_status(call: Call) -> dict[str, Any]:
    lab = call.lab
    node = lab.nodes.by_name[call.node]
    entry = node_entry(lab, node, full=True)
    return {
        "uptime": entry["uptime"],
        "loadavg": node_load(lab, node),
        "cpu": entry["cpu"],
        "wait": 0.001,
        "idle": 0,
        "cpuinfo": _cpuinfo(node),
        "memory": {
            "total": entry["maxmem"],
            "used": entry["mem"],
            "free": entry["maxmem"] - entry["mem"],
            **({"available": entry["maxmem"] - entry["mem"]} if lab.settings.release.has((9,)) else {}),
        },
        "swap": {"total": 8 * GIB, "used": 0, "free": 8 * GIB},
        "ksm": {"shared": 0},
        "rootfs": {
            "total": entry["maxdisk"],
            "used": entry["disk"],
            "free": entry["maxdisk"] - entry["disk"],
            "avail": entry["maxdisk"] - entry["disk"],
        },
        "kversion": "Linux 6.17.4-1-pve #1 SMP PREEMPT_DYNAMIC",
        "current-kernel": {"sysname": "Linux", "release": "6.17.4-1-pve", "version": "#1 SMP", "machine": "x86_64"},
        "boot-info": {"mode": "efi", "secureboot": 0},
        "pveversion": f"pve-manager/{lab.settings.version}/{_REPOID}",
    }


def _cpuinfo(node: Node) -> dict[str, Any]:
    cores = node.settings.cores
    return {
        "cpus": cores, "cores": cores // 2 or 1, "sockets": 1, "model": "AMD EPYC 9124 16-Core Processor",
        "mhz": "2996.250", "flags": "svm aes avx2", "hvm": "1", "user_hz": 100,
    }  # fmt: skip


@routes.get("/nodes/{node}/network", {"type": one_of(*_INTERFACE_TYPES)})
async def networks(call: Call) -> list[dict[str, Any]]:
    node = call.lab.nodes.by_name[call.node]
    found = [
        {
            "iface": bridge,
            "type": "bridge",
            "active": 1,
            "autostart": 1,
            "method": "static" if bridge == "vmbr0" else "manual",
            "method6": "manual",
            "bridge_ports": f"eno{position}",
            "bridge_stp": "off",
            "bridge_fd": "0",
            "priority": position + 2,
            **({"address": node.address, "cidr": f"{node.address}/24", "netmask": "24"} if bridge == "vmbr0" else {}),
        }
        for position, bridge in enumerate(sorted(BRIDGES), start=1)
        if call.allows(f"/sdn/zones/localnetwork/{bridge}", "SDN.Audit", "SDN.Use", any_of=True)
    ]
    wanted = call.get("type", "any_bridge")
    return found if wanted in {"bridge", "any_bridge", "any_local_bridge", "include_sdn"} else []
