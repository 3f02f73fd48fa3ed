"""Files of a storage: which names and contents it takes, and how a finished file becomes a volume."""

import hashlib
import re
import shutil
from pathlib import Path

from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.lab import Lab
from libs.pvesim.releases import Release
from libs.pvesim.storage.kinds import Storage
from libs.pvesim.storage.volume import Volume

EXTENSIONS = {
    "iso": (".iso", ".img"),
    "vztmpl": (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tar"),
    "import": (".ova", ".qcow2", ".raw", ".vmdk"),
}
ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]")
_QCOW2_MAGIC = b"QFI\xfb"
_VMDK_MAGIC = b"KDMV"
_SECTOR_BYTES = 512
_CHUNK_BYTES = 1024**2


def check_content(storage: Storage, content: str, release: Release) -> None:
    """Raise what forbids a file of this content; older releases took no disk images."""
    if content == "import" and not release.uploads_import_images:
        raise parameter_error("content", "value 'import' does not have a value in the enumeration 'iso, vztmpl'")
    if storage.path is None:
        raise PveError(f"can't upload to storage type '{storage.type}'")
    if content not in storage.content:
        raise PveError(f"storage '{storage.id}' does not support '{content}' content")


def normalised(filename: str, content: str) -> str:
    """The name a file is stored under; raises the 400 errors for names and extensions the content does not take."""
    name = _UNSAFE.sub("_", filename.replace("\\", "/").rsplit("/", 1)[-1])
    if not name or name.startswith("."):
        raise parameter_error("filename", "invalid filename or wrong extension")
    if not name.lower().endswith(EXTENSIONS[content]):
        wrong = "invalid filename or wrong extension" if content == "import" else "wrong file extension"
        raise parameter_error("filename", wrong)
    return name


def digest_of(path: Path, algorithm: str) -> str:
    """Hash a file; blocking, call it in a thread."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


async def check_digest(lab: Lab, path: Path, algorithm: str | None, expected: str | None) -> None:
    """Raise the task error for a wrong checksum."""
    if algorithm is None or expected is None:
        return
    found = await lab.threads.run(digest_of, path, algorithm)
    if found != expected.lower():
        raise PveError(f"checksum mismatch: got '{found}' != expect '{expected.lower()}'")


def header_size(head: bytes, file_bytes: int) -> int:
    """The virtual size of a disk image in bytes, from its first 32.

    A QCOW2 header says it in bytes at offset 24, a VMDK's in sectors at offset 12; other files are as big as they are.
    """
    if head.startswith(_QCOW2_MAGIC):
        return int.from_bytes(head[24:32], "big")
    if head.startswith(_VMDK_MAGIC):
        return int.from_bytes(head[12:20], "little") * _SECTOR_BYTES
    return file_bytes


def _image_size(path: Path) -> int:
    with path.open("rb") as file:
        return header_size(file.read(32), path.stat().st_size)


async def adopt(lab: Lab, storage: Storage, node: str, content: str, name: str, source: Path) -> Volume:
    """Move a finished file to its place and record its volume, replacing one of that name."""
    storages = lab.storages
    target = storages.folder(storage, node, content) / name

    def move() -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        return _image_size(target) if content == "import" else target.stat().st_size

    # Imported late: archives are files, and look into them with what is known of files.
    from libs.pvesim.storage.ova import members  # noqa: PLC0415

    size = await lab.threads.run(move)
    disks = await lab.threads.run(members, target) if name.endswith(".ova") else None
    kind = "iso" if content == "iso" else name.rsplit(".", 1)[-1]
    volid = f"{storage.id}:{content}/{name}"
    scope = storages.scope(storage, node)
    used = target.stat().st_size
    volume = Volume(volid, scope, content, kind, size, used, lab.clock.epoch(), members=disks)
    return storages.put(volume)
