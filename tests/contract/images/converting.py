"""What tests of conversions do: make disks, have them converted by the service, compare them with qemu-img."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.images.adapters.qemu_img import DRIVERS
from services.images.domain import Format
from tests.contract.images.harness import Service
from tests.contract.images.importing import ended, shown
from tests.corpora.images import disks

QEMU_IMG = shutil.which("qemu-img") or ""
MIB = 1 << 20
EXTENSIONS = {"qcow2": "qcow2", "raw": "img", "vmdk": "vmdk", "vhd": "vhd"}
CREATED = {"vmdk": ["-o", "subformat=streamOptimized"], "vhd": ["-o", "subformat=dynamic,force_size=on"]}
SLOW = f"""#!/bin/sh
if [ "$1" = convert ]; then shift; exec {QEMU_IMG} convert -r 4M "$@"; fi
exec {QEMU_IMG} "$@"
"""
"""A converter that writes 4 MiB a second."""
needs_qemu_img = pytest.mark.usefixtures("qemu_img")


def a_disk(size: int = 24 * MIB) -> bytes:
    """A disk with partitions, some content here and there, and nothing elsewhere."""
    disk = bytearray(disks.mbr_disk(size))
    for start in range(MIB, size, 5 * MIB):
        disk[start : start + MIB // 2] = os.urandom(MIB // 2)
    return bytes(disk)


def scattered(size: int = 64 * MIB) -> bytes:
    """A disk with one sector of content in each block of a VHD, which makes all of it a VHD's content."""
    disk = bytearray(disks.mbr_disk(size))
    for start in range(0, size, 2 * MIB):
        disk[start + 4096 : start + 4608] = os.urandom(512)
    return bytes(disk)


def as_format(folder: Path, disk: bytes, name: str) -> bytes:
    raw, made = folder / "made.raw", folder / f"made.{name}"
    raw.write_bytes(disk)
    if name == "raw":
        return disk
    command = [QEMU_IMG, "convert", "-f", "raw", "-O", DRIVERS[Format(name)], *CREATED.get(name, ())]
    subprocess.run([*command, str(raw), str(made)], check=True, timeout=60)
    return made.read_bytes()


def is_same_disk(folder: Path, disk: bytes, content: bytes, name: str) -> bool:
    raw, found = folder / "expected.raw", folder / f"found.{name}"
    raw.write_bytes(disk)
    found.write_bytes(content)
    command = [QEMU_IMG, "compare", "-f", "raw", "-F", DRIVERS[Format(name)], str(raw), str(found)]
    return subprocess.run(command, check=False, timeout=60, capture_output=True).returncode == 0


def program(folder: Path, text: str) -> str:
    path = folder / "qemu-img"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


async def convert(service: Service, user: str, image_id: str, target: str, **wish: Any) -> httpx.Response:
    return await service.http.post(
        f"/api/v1/images/{image_id}/convert", headers=service.as_user(user), json={"format": target, **wish}
    )


async def converted(service: Service, user: str, image_id: str, target: str, **wish: Any) -> dict[str, Any]:
    """The active image that a conversion ended as."""
    answer = await convert(service, user, image_id, target, **wish)
    assert answer.status_code == 202, answer.text
    end = await ended(service, user, answer.json()["id"])
    assert end["state"] == "succeeded", end
    return await shown(service, user, answer.json()["image"]["id"])


async def failed(service: Service, user: str, image_id: str, target: str, **wish: Any) -> dict[str, Any]:
    """The problem that a conversion failed with, of which nothing may be left but the record."""
    answer = await convert(service, user, image_id, target, **wish)
    assert answer.status_code == 202, answer.text
    end = await ended(service, user, answer.json()["id"])
    assert end["state"] == "failed", end
    image = await shown(service, user, answer.json()["image"]["id"])
    assert (image["status"], image["reason"]) == ("rejected", end["error"]["detail"])
    assert work_files(service) == []
    problem: dict[str, Any] = end["error"]
    assert str(service.settings.common.data_dir) not in problem["detail"]
    return problem


async def content(service: Service, user: str, image_id: str) -> bytes:
    answer = await service.http.get(f"/api/v1/images/{image_id}/download", headers=service.as_user(user))
    return answer.content


def work_files(service: Service) -> list[Path]:
    return list(service.settings.work_folder.iterdir())
