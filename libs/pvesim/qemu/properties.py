"""Property strings (`virtio=…,bridge=vmbr0`): parsing, printing in the original's order, and disk sizes."""

import re
from collections.abc import Callable, Mapping

from libs.pvesim.params import Check

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
NIC_MODELS = frozenset({"e1000", "e1000e", "i82551", "i82557b", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3"})
_UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")

DRIVE_KEYS = frozenset({
    "file", "aio", "backup", "bps", "bps_rd", "bps_wr", "cache", "detect_zeroes", "discard", "format", "import-from",
    "iops", "iops_rd", "iops_wr", "iothread", "mbps", "mbps_rd", "mbps_wr", "media", "model", "product", "queues",
    "replicate", "rerror", "ro", "scsiblock", "serial", "shared", "size", "snapshot", "ssd", "vendor", "werror", "wwn",
    "efitype", "ms-cert", "pre-enrolled-keys", "version",
})  # fmt: skip
NET_KEYS = frozenset({"model", "macaddr", "bridge", "firewall", "link_down", "mtu", "queues", "rate", "tag", "trunks"})
IPCONFIG_KEYS = frozenset({"ip", "gw", "ip6", "gw6"})
AGENT_KEYS = frozenset({"enabled", "freeze-fs", "freeze-fs-on-backup", "fstrim_cloned_disks", "type"})
STARTUP_KEYS = frozenset({"order", "up", "down"})


def parse(text: str, default_key: str) -> dict[str, str]:
    """Split a property string; a bare first item belongs to `default_key`."""
    found: dict[str, str] = {}
    for item in text.split(","):
        key, separator, value = item.partition("=")
        if separator:
            found[key.strip()] = value
        elif item:
            found[default_key] = item
    return found


def render(properties: Mapping[str, str], default_key: str) -> str:
    """Print the default key first and bare, then the rest sorted."""
    rest = [f"{key}={properties[key]}" for key in sorted(properties) if key != default_key]
    first = [properties[default_key]] if default_key in properties else []
    return ",".join([*first, *rest])


def parse_net(text: str) -> dict[str, str]:
    """A network device; the model's own key (`virtio=<MAC>`) becomes `model` and `macaddr`."""
    found = parse(text, "model")
    for model in NIC_MODELS & found.keys():
        found["macaddr"] = found.pop(model)
        found["model"] = model
    return found


def render_net(properties: Mapping[str, str]) -> str:
    rest = {key: value for key, value in properties.items() if key not in {"model", "macaddr"}}
    return ",".join([f"{properties['model']}={properties['macaddr']}", *(f"{key}={rest[key]}" for key in sorted(rest))])


def size_bytes(text: str) -> int:
    """`32G`, `512M` or plain bytes; raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size: {text}")
    return int(float(match[1]) * UNITS.get(match[2], 1))


def size_text(size: int) -> str:
    """The largest binary unit that divides the size evenly."""
    for unit in ("T", "G", "M", "K"):
        if size >= UNITS[unit] and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return str(size)


def _checker(default_key: str, keys: frozenset[str], also: Callable[[dict[str, str]], str | None]) -> Check:
    def check(text: str) -> str | None:
        found = parse(text, default_key)
        for key in found:
            if key not in keys and key not in NIC_MODELS:
                return f"format error\n{key}: {_UNDEFINED}\n"
        complaint = also(found)
        return None if complaint is None else f"format error\n{complaint}\n"

    return check


def _drive_complaint(found: dict[str, str]) -> str | None:
    if "file" not in found:
        return "file: property is missing and it is not optional"
    size = found.get("size")
    return "size: value does not look like a valid disk size" if size and not _SIZE.fullmatch(size) else None


def _net_complaint(found: dict[str, str]) -> str | None:
    models = NIC_MODELS & found.keys()
    model = next(iter(models), found.get("model"))
    if model is None:
        return "model: property is missing and it is not optional"
    if model not in NIC_MODELS:
        return f"model: value '{model}' does not have a value in the enumeration '{', '.join(sorted(NIC_MODELS))}'"
    mac = found.get("macaddr") or found.get(model)
    if mac is not None and not _MAC.fullmatch(mac):
        return "macaddr: value does not look like a valid unicast MAC address"
    tag = found.get("tag")
    return f"tag: type check ('integer') failed - got '{tag}'" if tag is not None and not tag.isdigit() else None


def _ipconfig_complaint(found: dict[str, str]) -> str | None:
    for gateway, address in (("gw", "ip"), ("gw6", "ip6")):
        if gateway in found and address not in found:
            return f"{gateway}: missing property required by '{address}'"
    address = found.get("ip", "dhcp")
    if address != "dhcp" and not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}/\d{1,2}", address):
        return "ip: value does not look like a valid IPv4 network configuration"
    return None


def _no_complaint(_found: dict[str, str]) -> None:
    return None


check_drive = _checker("file", DRIVE_KEYS, _drive_complaint)
check_net = _checker("model", NET_KEYS, _net_complaint)
check_ipconfig = _checker("ip", IPCONFIG_KEYS, _ipconfig_complaint)
check_agent = _checker("enabled", AGENT_KEYS, _no_complaint)
check_startup = _checker("order", STARTUP_KEYS, _no_complaint)
