"""OVA archives: the disks inside, and what their OVF description asks of a machine."""

import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from libs.pvesim.errors import PveError
from libs.pvesim.storage.files import header_size

_OVF_LIMIT = 1024**2
_HEAD_BYTES = 32
_CPU, _MEMORY, _NIC = "3", "4", "10"


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _attribute(element: ET.Element, name: str) -> str:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def members(path: Path) -> dict[str, int]:
    """The disks of an archive and their virtual sizes in bytes; blocking. Raises the error of a broken archive."""
    found = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith((".vmdk", ".qcow2", ".raw")) else None
                if file is not None:
                    found[member.name] = header_size(file.read(_HEAD_BYTES), member.size)
    except tarfile.TarError as broken:
        raise PveError(f"unable to read archive '{path.name}': {broken}") from broken
    return found


def metadata(path: Path, volid: str, sizes: dict[str, int]) -> dict[str, Any]:
    """What a create call needs to make the described machine; blocking."""
    root = _description(path)
    items = [{_local(part): part.text or "" for part in item} for item in root.iter() if _local(item) == "Item"]
    arguments: dict[str, Any] = {}
    nets: dict[str, Any] = {}
    for item in items:
        kind = item.get("ResourceType")
        if kind == _CPU:
            arguments["cores"] = int(item["VirtualQuantity"])
        elif kind == _MEMORY:
            arguments["memory"] = int(item["VirtualQuantity"])
        elif kind == _NIC:
            nets[f"net{len(nets)}"] = {"model": item.get("ResourceSubType", "e1000").lower()}
    system = next((element for element in root.iter() if _local(element) == "VirtualSystem"), None)
    if system is not None and _attribute(system, "id"):
        arguments["name"] = _attribute(system, "id")
    files = {_attribute(e, "id"): _attribute(e, "href") for e in root.iter() if _local(e) == "File"}
    disks = [files.get(_attribute(e, "fileRef"), "") for e in root.iter() if _local(e) == "Disk"]
    return {
        "type": "vm",
        "source": volid.partition(":")[2],
        "create-args": arguments,
        "disks": {
            f"scsi{position}": {"volid": f"{volid}/{name}", "size": sizes.get(name, 0)}
            for position, name in enumerate(disks)
        },
        "net": nets,
        "warnings": [{"type": "ova-needs-extracting"}],
    }


def _description(path: Path) -> ET.Element:
    """The archive's OVF file, which comes first."""
    try:
        with tarfile.open(path, "r:") as archive:
            name = next(name for name in archive.getnames() if name.endswith(".ovf"))
            file = archive.extractfile(name)
            text = b"" if file is None else file.read(_OVF_LIMIT)
            return ET.fromstring(text)  # noqa: S314  (expat itself stops entity bombs)
    except (tarfile.TarError, StopIteration, ET.ParseError) as broken:
        raise PveError(f"unable to parse OVF of '{path.name}'") from broken
