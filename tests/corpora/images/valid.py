"""Files that must be accepted, and the disk that each holds: made here, and by qemu-img, genisoimage and xorriso."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.corpora.images import disks
from tests.corpora.images.disks import KIB, MIB

_PACKAGES = {"qemu-img": "qemu-utils", "genisoimage": "genisoimage", "xorriso": "xorriso"}


@dataclass(frozen=True, slots=True)
class Valid:
    what: str
    filename: str
    content: bytes
    format: str
    virtual_size: int


VALID = (
    Valid("qcow2 v3", "a.qcow2", disks.qcow2(), "qcow2", 64 * MIB),
    Valid("qcow2 v2", "A.QCOW2", disks.qcow2(version=2), "qcow2", 64 * MIB),
    Valid("qcow2 with lazy refcounts' dirty bit", "a.qcow2", disks.qcow2(features=1), "qcow2", 64 * MIB),
    Valid("qcow2 with zstd", "a.qcow2", disks.qcow2(features=8, compression=1), "qcow2", 64 * MIB),
    Valid("qcow2 with extended L2 entries", "a.qcow2", disks.qcow2(features=16), "qcow2", 64 * MIB),
    Valid(
        "qcow2 that was rebased onto nothing",
        "a.qcow2",
        disks.qcow2(extensions=((0xE2792ACA, b""), (0x6803F857, bytes(48)))),
        "qcow2",
        64 * MIB,
    ),
    Valid("sparse vmdk", "a.vmdk", disks.vmdk(), "vmdk", 64 * MIB),
    Valid("stream-optimised vmdk", "a.vmdk", disks.stream_optimised_vmdk(), "vmdk", 64 * MIB),
    Valid("dynamic vhd", "a.vhd", disks.dynamic_vhd(), "vhd", 64 * MIB),
    Valid("dynamic vhd that grew", "a.vhd", disks.dynamic_vhd(original_size=MIB), "vhd", 64 * MIB),
    Valid("fixed vhd", "a.vhd", disks.fixed_vhd(disks.raw_disk()), "vhd", MIB),
    Valid("fixed vhd with partitions", "a.vhd", disks.fixed_vhd(disks.mbr_disk()), "vhd", MIB),
    Valid("fixed vhd with a GPT", "a.vhd", disks.fixed_vhd(disks.gpt_disk()), "vhd", MIB),
    Valid("ISO", "a.iso", disks.iso(), "iso", 256 * KIB),
    Valid("ISO without its padding", "a.iso", disks.iso(blocks=128 + 150), "iso", 556 * KIB),
    Valid("hybrid ISO", "a.b.iso", disks.iso(system_area=disks.mbr()), "iso", 256 * KIB),
    Valid("hybrid ISO with an odd flag", "a.iso", disks.iso(system_area=disks.mbr(boot_flag=1)), "iso", 256 * KIB),
    Valid("disk with partitions", "a.img", disks.mbr_disk(), "raw", MIB),
    Valid("disk with a GPT", "a.raw", disks.gpt_disk(), "raw", MIB),
    Valid("disk with a GPT of 4 KiB sectors", "a.raw", disks.gpt_disk(sector=4096), "raw", MIB),
    Valid("disk with a GPT of another tool", "a.raw", disks.gpt_disk(start_chs=b"\xfe\xff\xff"), "raw", MIB),
    Valid("file system", "a.img", disks.raw_disk(3 * MIB), "raw", 3 * MIB),
    Valid("FAT floppy", "a.img", disks.volume(b"MSDOS5.0"), "raw", 1440 * KIB),
    Valid("NTFS", "a.img", disks.volume(b"NTFS    ", cluster_sectors=8, media=0xF8, size=MIB), "raw", MIB),
    Valid("the smallest disk", "a.raw", bytes(512), "raw", 512),
)

_DISK = 4 * MIB
_CONVERTED = (
    ("qcow2", "qcow2", "compat=1.1"),
    ("qcow2", "qcow2", "compat=0.10"),
    ("qcow2", "qcow2", "compat=1.1,lazy_refcounts=on"),
    ("qcow2", "qcow2", "compat=1.1,compression_type=zstd"),
    ("qcow2", "qcow2", "compat=1.1,extended_l2=on"),
    ("qcow2", "qcow2", "compat=1.1,preallocation=metadata"),
    ("qcow2", "qcow2", "compat=1.1,preallocation=full"),
    ("qcow2", "qcow2", "compat=1.1,cluster_size=512"),
    ("qcow2", "qcow2", "compat=1.1,cluster_size=1M"),
    ("qcow2", "qcow2", "compat=1.1,refcount_bits=1"),
    ("vmdk", "vmdk", "subformat=monolithicSparse"),
    ("vmdk", "vmdk", "subformat=streamOptimized"),
    ("vpc", "vhd", "subformat=dynamic,force_size=on"),
    ("vpc", "vhd", "subformat=fixed,force_size=on"),
    ("raw", "img", ""),
)
_DISCS = (
    ("plain", ("genisoimage", "-quiet")),
    ("Joliet and UDF", ("genisoimage", "-quiet", "-J", "-R", "-udf")),
    ("hybrid with an MBR", ("xorriso", "-as", "mkisofs", "-quiet", "-append_partition", "2", "0xef", "{efi}")),
    (
        "hybrid with a GPT",
        ("xorriso", "-as", "mkisofs", "-quiet", "-append_partition", "2", "0xef", "{efi}", "-appended_part_as_gpt"),
    ),
)


def made_by_tools(folder: Path) -> list[Valid]:
    """The same disk in every way that qemu-img writes it, and discs of two other tools; their files stay in `folder`.

    Raises RuntimeError where a tool is missing.
    """
    source = folder / "source.raw"
    source.write_bytes(disks.mbr_disk(_DISK))
    return [*_converted(folder, source), *_changed(folder, source), *_discs(folder)]


def _converted(folder: Path, source: Path) -> list[Valid]:
    made = []
    for number, (driver, extension, options) in enumerate(_CONVERTED):
        target = folder / f"{number}.{extension}"
        packed = ("-c",) if "zstd" in options or "streamOptimized" in options else ()
        chosen = ("-o", options) if options else ()
        run("qemu-img", "convert", "-f", "raw", "-O", driver, *packed, *chosen, str(source), str(target))
        stored = "raw" if extension == "img" else extension
        made.append(Valid(f"qemu {driver} {options}".strip(), target.name, target.read_bytes(), stored, _DISK))
    return made


def _changed(folder: Path, source: Path) -> list[Valid]:
    """What is left in a QCOW2 file by snapshots, bitmaps and a backing file that was taken away."""
    snapshot, bitmap, rebased = (folder / f"{name}.qcow2" for name in ("snapshot", "bitmap", "rebased"))
    for target in (snapshot, bitmap):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(source), str(target))
    run("qemu-img", "snapshot", "-c", "before", str(snapshot))
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", str(bitmap), "backup")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(source), "-F", "raw", str(rebased))
    run("qemu-img", "rebase", "-q", "-f", "qcow2", "-b", "", str(rebased))
    return [
        Valid(f"qemu {one.stem}", one.name, one.read_bytes(), "qcow2", _DISK) for one in (snapshot, bitmap, rebased)
    ]


def _discs(folder: Path) -> list[Valid]:
    content = folder / "disc"
    content.mkdir()
    (content / "kernel").write_bytes(bytes(range(256)) * 300)
    efi = folder / "efi.img"
    efi.write_bytes(disks.volume(b"MSDOS5.0", media=0xF8, size=64 * KIB))
    made = []
    for what, (tool, *options) in _DISCS:
        target = folder / f"{what.replace(' ', '-')}.iso"
        run(tool, *(option.format(efi=efi) for option in options), "-o", str(target), str(content))
        made.append(Valid(f"disc, {what}", target.name, target.read_bytes(), "iso", target.stat().st_size))
    return made


def run(tool: str, *arguments: str) -> str:
    """Run one of the tools; gives its output."""
    path = shutil.which(tool)
    if path is None:
        raise RuntimeError(f"{tool} is missing: apt-get install {_PACKAGES[tool]}")
    done = subprocess.run([path, *arguments], check=True, timeout=60, capture_output=True, text=True)
    return done.stdout
