"""Files that must never become images: what each tries, the name it comes under, and how it is refused."""

import gzip
import struct
from dataclasses import dataclass

from tests.corpora.images import disks
from tests.corpora.images.disks import EIB_8, KIB, MIB, padded, patched

REJECTED = "image-rejected"
QUOTA = "quota-exceeded"


@dataclass(frozen=True, slots=True)
class Hostile:
    what: str
    filename: str
    content: bytes
    reason: str
    slug: str = REJECTED


_FLAT = disks.vmdk_descriptor(create_type="monolithicFlat", extents=('RW 131072 FLAT "/etc/passwd" 0',))
_HIDDEN_FLAT = b"# \x80 not ASCII\n\nversion=1\n" + _FLAT
_BACKED = disks.qcow2(backing=b"/etc/passwd")
_LUKS = padded(b"LUKS\xba\xbe\x00\x01" + padded(b"aes", 32) + padded(b"xts-plain64", 32), 64 * KIB)
_PARENT_HINT = 'parentFileNameHint="/etc/passwd"'
_BOOT_MARK = b"\x55\xaa"


def _vmdk(**options: object) -> bytes:
    return disks.vmdk(descriptor=disks.vmdk_descriptor(**options))  # type: ignore[arg-type] # passed on as they are


def _beyond_its_end() -> bytes:
    """A descriptor of one sector without a byte to spare: QEMU reads on, and finds a parent."""
    text = disks.vmdk_descriptor()
    return disks.vmdk(
        descriptor=text + b"#" * (511 - len(text)) + b"\n" + _PARENT_HINT.encode() + b"\n", descriptor_sectors=1
    )


_BACKING_FILES = tuple(
    Hostile(f"qcow2 backed by {name}", "a.qcow2", disks.qcow2(backing=name.encode()), "backing file")
    for name in (
        "/etc/passwd",
        "../../auth/keys.json",
        "disk.qcow2",
        'json:{"driver":"nbd","host":"10.0.0.1"}',
        "nbd://10.0.0.1/secret",
        "nbd:unix:/var/run/secret.sock",
        "file:///etc/shadow",
        "file:relative.raw",
        "https://169.254.169.254/latest/meta-data/",
        "fat:rw:/etc",
        "/dev/sda",
        "//./PhysicalDrive0",
    )
)

_QCOW2 = (
    *_BACKING_FILES,
    Hostile("qcow2 v2 with a backing file", "a.qcow2", disks.qcow2(version=2, backing=b"/etc/shadow"), "backing file"),
    Hostile(
        "qcow2 whose backing file's name lies far away",
        "a.qcow2",
        disks.qcow2(backing=b"/etc/passwd", backing_at=60 * KIB),
        "backing file",
    ),
    Hostile("qcow2 with a backing file's place alone", "a.qcow2", patched(disks.qcow2(), 8, b"\1"), "backing file"),
    Hostile(
        "qcow2 with a backing file's format in its header's extensions",
        "a.qcow2",
        disks.qcow2(extensions=((0x6803F857, bytes(48)), (0xE2792ACA, b"raw"))),
        "backing file",
    ),
    Hostile("qcow2 with an external data file", "a.qcow2", disks.qcow2(features=1 << 2), "external file"),
    Hostile(
        "qcow2 with a data file's name in its header's extensions",
        "a.qcow2",
        disks.qcow2(extensions=((0x44415441, b"/etc/passwd"),)),
        "external file",
    ),
    Hostile(
        "qcow2 v2 with a data file's name behind its header",
        "a.qcow2",
        patched(disks.qcow2(version=2), 72, struct.pack(">II", 0x44415441, 11) + b"/etc/passwd"),
        "external file",
    ),
    Hostile(
        "qcow2 with an extension longer than its header's cluster",
        "a.qcow2",
        disks.qcow2(extensions=((0x12345678, bytes(65_600)),)),
        "not known to be safe",
    ),
    Hostile(
        "qcow2 with extensions beyond what is looked at",
        "a.qcow2",
        disks.qcow2(
            cluster_bits=17,
            extensions=((0x12345678, bytes(65_500)), (0x44415441, b"/etc/passwd")),
            l1_at=3 << 17,
            refcounts_at=1 << 17,
            file_size=MIB,
        ),
        "not known to be safe",
    ),
    Hostile("qcow2 with an unknown feature", "a.qcow2", disks.qcow2(features=1 << 40), "not known to be safe"),
    Hostile("qcow2 with the next feature", "a.qcow2", disks.qcow2(features=1 << 5), "not known to be safe"),
    Hostile("qcow2 of an unknown compression", "a.qcow2", disks.qcow2(features=8, compression=9), "not known"),
    Hostile("qcow2 that hides its compression", "a.qcow2", disks.qcow2(compression=1), "not known to be safe"),
    Hostile("qcow2 that is marked as damaged", "a.qcow2", disks.qcow2(features=1 << 1), "marked as damaged"),
    Hostile("qcow2 of version 1", "a.qcow2", disks.qcow2(version=1), "not known to be safe"),
    Hostile("qcow2 of version 4", "a.qcow2", disks.qcow2(version=4), "not known to be safe"),
    Hostile("qcow2 encrypted with AES", "a.qcow2", disks.qcow2(encryption=1), "encrypted"),
    Hostile("qcow2 encrypted with LUKS", "a.qcow2", disks.qcow2(encryption=2), "encrypted"),
    Hostile(
        "qcow2 with a LUKS header in its extensions",
        "a.qcow2",
        disks.qcow2(extensions=((0x0537BE77, struct.pack(">QQ", 0x30000, 4096)),)),
        "encrypted",
    ),
    Hostile("qcow2 whose L1 table lies outside", "a.qcow2", disks.qcow2(l1_at=1 << 40), "outside the file"),
    Hostile("qcow2 whose L1 table goes on outside", "a.qcow2", disks.qcow2(l1_entries=1 << 22), "outside the file"),
    Hostile("qcow2 whose L1 table is its header", "a.qcow2", disks.qcow2(l1_at=0), "outside the file"),
    Hostile("qcow2 whose L1 table is askew", "a.qcow2", disks.qcow2(l1_at=0x30008), "outside the file"),
    Hostile("qcow2 whose refcounts lie outside", "a.qcow2", disks.qcow2(refcounts_at=1 << 41), "outside the file"),
    Hostile(
        "qcow2 whose snapshots lie outside",
        "a.qcow2",
        disks.qcow2(snapshots=60_000, snapshots_at=0x20000),
        "outside the file",
    ),
    Hostile("qcow2 with clusters of 2 bytes", "a.qcow2", disks.qcow2(cluster_bits=1), "outside the file"),
    Hostile("qcow2 with clusters of 16 EiB", "a.qcow2", disks.qcow2(cluster_bits=64), "outside the file"),
    Hostile("qcow2 that was cut off", "a.qcow2", disks.qcow2()[: 100 * KIB], "cut off"),
    Hostile("qcow2 of 8 EiB", "a.qcow2", disks.qcow2(virtual_size=EIB_8), "9.2 EB", QUOTA),
    Hostile("qcow2 of nothing", "a.qcow2", disks.qcow2(virtual_size=0), "empty disk"),
    *(
        Hostile(f"qcow2 with a backing file called {name}", f"a.{name}", _BACKED, "QCOW2")
        for name in ("raw", "img", "iso", "vmdk", "vhd")
    ),
)

_VMDK = (
    Hostile("vmdk descriptor with a FLAT extent", "a.vmdk", padded(_FLAT, KIB), "VMDK descriptor"),
    Hostile("vmdk descriptor of text alone", "a.vmdk", _FLAT + b"#" * KIB, "VMDK descriptor"),
    Hostile("vmdk descriptor of one sparse file", "a.vmdk", padded(disks.vmdk_descriptor(), KIB), "VMDK descriptor"),
    *(
        Hostile(
            f"vmdk descriptor of type {kind}",
            "a.vmdk",
            padded(disks.vmdk_descriptor(create_type=kind, extents=(f'RW 8 {extent} "secret-s001.vmdk"',)), KIB),
            "VMDK descriptor",
        )
        for kind, extent in (("twoGbMaxExtentFlat", "FLAT"), ("twoGbMaxExtentSparse", "SPARSE"), ("vmfs", "VMFS"))
    ),
    Hostile("vmdk descriptor called img", "a.img", padded(_FLAT, KIB), "VMDK"),
    Hostile("vmdk descriptor without padding", "a.raw", _FLAT + b"#" * KIB, "VMDK"),
    Hostile("vmdk descriptor behind a binary comment", "a.img", padded(_HIDDEN_FLAT, KIB), "VMDK"),
    Hostile("vmdk descriptor behind many comments", "a.img", b"# \xff\r\n\r\n   \n" * 40 + _HIDDEN_FLAT, "VMDK"),
    Hostile("vmdk descriptor in UTF-16", "a.vmdk", _FLAT.decode().encode("utf-16") + bytes(KIB), "RAW"),
    Hostile("vmdk descriptor behind a byte order mark", "a.vmdk", b"\xef\xbb\xbf" + padded(_FLAT, KIB), "RAW"),
    Hostile(
        "vmdk descriptor with binary behind it",
        "a.img",
        padded(_FLAT, KIB).replace(b"\0", b"\n") + b"\xff",
        "VMDK descriptor",
    ),
    Hostile("text with binary behind it", "a.img", b"hello world\n" * 50 + b"\xff", "disguised"),
    Hostile("sparse vmdk with a FLAT extent", "a.vmdk", _vmdk(extents=('RW 1 FLAT "secret.raw" 0',)), "other files"),
    Hostile("sparse vmdk with a VMFS extent", "a.vmdk", _vmdk(extents=('RW 1 VMFS "secret.raw"',)), "other files"),
    Hostile("sparse vmdk with a device", "a.vmdk", _vmdk(extents=('RW 1 VMFSRDM "secret"',)), "other files"),
    Hostile("sparse vmdk with a negative extent", "a.vmdk", _vmdk(extents=('RW -1 FLAT "x" 0',)), "other files"),
    Hostile(
        "sparse vmdk with several extents",
        "a.vmdk",
        _vmdk(extents=('RW 8 SPARSE "a.vmdk"', 'RW 8 SPARSE "b.vmdk"')),
        "other files",
    ),
    Hostile("sparse vmdk with /etc/passwd", "a.vmdk", _vmdk(extents=('RW 1 SPARSE "/etc/passwd"',)), "stand-alone"),
    Hostile("sparse vmdk with a way up", "a.vmdk", _vmdk(extents=('RW 1 SPARSE "..\\keys"',)), "other files"),
    Hostile("sparse vmdk without extents", "a.vmdk", _vmdk(extents=()), "stand-alone"),
    Hostile("sparse vmdk of type vmfs", "a.vmdk", _vmdk(create_type="vmfs"), "stand-alone"),
    Hostile("sparse vmdk of type fullDevice", "a.vmdk", _vmdk(create_type="fullDevice"), "stand-alone"),
    Hostile("vmdk with a second type", "a.vmdk", _vmdk(extra='createType="monolithicFlat"'), "stand-alone"),
    Hostile("vmdk with a parent's name", "a.vmdk", _vmdk(extra=_PARENT_HINT), "parent"),
    Hostile("vmdk with a parent's name in a comment", "a.vmdk", _vmdk(extra=f"# {_PARENT_HINT}"), "parent"),
    Hostile("vmdk with a parent's name beyond its descriptor", "a.vmdk", _beyond_its_end(), "parent"),
    Hostile("vmdk with a parent's id", "a.vmdk", _vmdk(parent_cid="deadbeef"), "parent"),
    Hostile("vmdk with a stray line", "a.vmdk", _vmdk(extra="include /etc/passwd"), "stand-alone"),
    Hostile("vmdk without a descriptor", "a.vmdk", disks.vmdk(descriptor=b""), "VMDK"),
    Hostile("vmdk whose descriptor is far away", "a.vmdk", disks.vmdk(descriptor_at=200), "stand-alone"),
    Hostile(
        "vmdk with two descriptors",
        "a.vmdk",
        disks.vmdk(descriptor=disks.vmdk_descriptor() + _FLAT),
        "other files",
    ),
    Hostile("vmdk whose directory lies outside", "a.vmdk", disks.vmdk(directory_at=1 << 40), "outside the file"),
    Hostile("vmdk of nothing, whose descriptor QEMU follows", "a.vmdk", disks.vmdk(sectors=0), "empty disk"),
    Hostile("vmdk of 8 EiB", "a.vmdk", disks.vmdk(sectors=EIB_8 // 512), "9.2 EB", QUOTA),
    Hostile(
        "vmdk whose footer tells of another descriptor",
        "a.vmdk",
        disks.stream_optimised_vmdk(footer_descriptor_sectors=9),
        "footer",
    ),
    Hostile(
        "vmdk whose footer tells of 512 PiB", "a.vmdk", disks.stream_optimised_vmdk(footer_sectors=1 << 50), "footer"
    ),
    Hostile("vmdk whose footer has no mark", "a.vmdk", disks.stream_optimised_vmdk(marker=1), "footer"),
    Hostile("vmdk whose footer was cut off", "a.vmdk", disks.stream_optimised_vmdk()[:-KIB], "footer"),
    Hostile("vmdk of ESX called img", "a.img", padded(b"COWD\x01", KIB), "VMDK"),
)

_VHD = (
    Hostile("vhd with a parent", "a.vhd", disks.dynamic_vhd(disk_type=4), "parent"),
    Hostile(
        "vhd with a parent's name",
        "a.vhd",
        disks.dynamic_vhd(sparse_header=disks.vhd_sparse_header(parent_name="\\\\server\\secret.vhd")),
        "parent",
    ),
    Hostile(
        "vhd with parent locators",
        "a.vhd",
        disks.dynamic_vhd(disk_type=4, sparse_header=disks.vhd_sparse_header(locators=(b"W2ru", b"W2ku"))),
        "parent",
    ),
    Hostile(
        "vhd of which the end alone tells of a parent",
        "a.vhd",
        disks.dynamic_vhd(end=disks.vhd_footer(disk_type=4)),
        "parent",
    ),
    Hostile("vhd whose ends differ", "a.vhd", disks.dynamic_vhd(end=disks.vhd_footer(disk_type=2)), "footer"),
    Hostile("vhd whose end was cut off", "a.vhd", disks.dynamic_vhd()[:-512], "cut off"),
    Hostile("vhd that says it is fixed and begins as dynamic", "a.vhd", disks.dynamic_vhd(disk_type=2), "footer"),
    Hostile("vhd with a dynamic footer alone", "a.vhd", disks.raw_disk() + disks.vhd_footer(disk_type=3), "footer"),
    Hostile("fixed vhd that was cut off", "a.vhd", disks.fixed_vhd(disks.raw_disk())[MIB // 2 :], "cut off"),
    Hostile("vhd with a wrong checksum", "a.vhd", patched(disks.dynamic_vhd(), 24, b"\1"), "checksum"),
    Hostile("vhd whose table has a wrong checksum", "a.vhd", patched(disks.dynamic_vhd(), 536, b"\1"), "checksum"),
    Hostile(
        "vhd whose table lies outside",
        "a.vhd",
        disks.dynamic_vhd(sparse_header=disks.vhd_sparse_header(table_at=1 << 40)),
        "outside the file",
    ),
    Hostile(
        "vhd whose table is too short",
        "a.vhd",
        disks.dynamic_vhd(sparse_header=disks.vhd_sparse_header(blocks=1)),
        "outside the file",
    ),
    Hostile("vhd without a table", "a.vhd", disks.dynamic_vhd(sparse_header=bytes(KIB)), "outside the file"),
    Hostile("vhd of 8 EiB", "a.vhd", disks.dynamic_vhd(virtual_size=EIB_8), "9.2 EB", QUOTA),
    Hostile(
        "vhd that grew to 8 EiB", "a.vhd", disks.dynamic_vhd(original_size=MIB, virtual_size=EIB_8), "9.2 EB", QUOTA
    ),
    Hostile("fixed vhd called img", "a.img", disks.fixed_vhd(disks.raw_disk()), "VHD"),
    Hostile("fixed vhd with partitions called img", "a.img", disks.fixed_vhd(disks.mbr_disk()), "VHD"),
)

_AT_ONCE = (
    Hostile("ISO and qcow2", "a.iso", disks.iso(system_area=_BACKED), "ISO and QCOW2 at once"),
    Hostile("qcow2 and ISO", "a.qcow2", disks.iso(system_area=disks.qcow2()), "at once"),
    Hostile("ISO and qcow2 called img", "a.img", disks.iso(system_area=_BACKED), "at once"),
    Hostile("ISO and VMDK", "a.iso", disks.iso(system_area=disks.vmdk()), "ISO and VMDK at once"),
    Hostile("ISO and VMDK descriptor", "a.iso", disks.iso(system_area=_FLAT), "at once"),
    Hostile("ISO and VHD", "a.iso", disks.iso() + disks.vhd_footer(disk_type=2), "at once"),
    Hostile("ISO and LUKS", "a.iso", disks.iso(system_area=_LUKS), "at once"),
    Hostile("qcow2 and a boot sector", "a.qcow2", patched(disks.qcow2(), 510, _BOOT_MARK), "at once"),
    Hostile("GPT and qcow2", "a.img", patched(disks.gpt_disk(), 0, disks.qcow2()[:446]), "at once"),
    Hostile("VMDK and VHD", "a.vmdk", disks.vmdk() + disks.vhd_footer(disk_type=2), "at once"),
    Hostile("gzip and VHD", "a.vhd", disks.fixed_vhd(gzip.compress(bytes(KIB), mtime=0)), "at once"),
)

_DISGUISED = (
    Hostile("a file without a byte", "a.img", b"", "0 bytes"),
    Hostile("a file of one byte", "a.raw", b"\0", "1 bytes"),
    Hostile("tiny qcow2 with a backing file", "a.qcow2", disks.qcow2(backing=b"")[:104], "104 bytes"),
    Hostile("tiny qcow2 called img", "a.img", _BACKED[:511], "511 bytes"),
    Hostile("tiny vmdk descriptor", "a.vmdk", _FLAT[:400], "bytes"),
    Hostile("raw disk called qcow2", "a.qcow2", disks.raw_disk(), "RAW"),
    Hostile("raw disk called vhd", "a.vhd", disks.mbr_disk(), "partitioned disk"),
    Hostile("ISO called img", "a.img", disks.iso(), "end in .iso"),
    Hostile("hybrid ISO called img", "a.img", disks.iso(system_area=disks.mbr()), "end in .iso"),
    Hostile("ISO that was cut off", "a.iso", disks.iso(blocks=1000), "cut off"),
    Hostile("qcow2 called vmdk", "a.vmdk", disks.qcow2(), "end in .qcow2"),
    Hostile("web page called iso", "a.iso", padded(b"<!doctype html><title>404</title>", KIB), "web page"),
    Hostile("web page called img", "a.img", padded(b"\n<HTML><title>404</title>", KIB), "web page"),
    Hostile("gzip called img", "a.img", padded(gzip.compress(disks.mbr_disk(), mtime=0), KIB), "gzip"),
    Hostile("xz called img", "a.img", padded(b"\xfd7zXZ\0\0\4", KIB), "xz archive"),
    Hostile("zstd called raw", "a.raw", padded(b"\x28\xb5\x2f\xfd", KIB), "Zstandard"),
    Hostile("OVA called img", "a.img", padded(padded(b"disk.ovf", 257) + b"ustar\00000", 2 * KIB), "OVA"),
    Hostile("VDI called img", "a.img", padded(bytes(64) + struct.pack("<I", 0xBEDA107F), KIB), "VDI"),
    Hostile("VHDX called vhd", "a.vhd", padded(b"vhdxfile", 512 * KIB), "VHDX"),
    Hostile("QED called img", "a.img", padded(b"QED\0", KIB), "QED"),
    Hostile("LUKS called raw", "a.raw", _LUKS, "LUKS"),
    Hostile("Parallels called img", "a.img", padded(b"WithouFreSpacExt", KIB), "Parallels"),
    Hostile("Bochs called img", "a.img", padded(b"Bochs Virtual HD Image", KIB), "Bochs"),
    Hostile("cloop called img", "a.img", padded(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", KIB), "cloop"),
    Hostile("DMG called img", "a.img", bytes(KIB) + padded(b"koly", 512), "DMG"),
    Hostile("partition table with a wrong flag", "a.img", disks.mbr_disk(boot_flag=0x7F), "partition table"),
    Hostile("partition table without partitions", "a.img", disks.mbr_disk(kind=0), "partition table"),
    Hostile("partition larger than the disk", "a.img", disks.mbr_disk(sectors=1 << 30), "cut off"),
    Hostile("partition without a sector", "a.img", disks.mbr_disk(sectors=0), "partition table"),
    Hostile("protective partition without a GPT", "a.img", disks.mbr_disk(kind=0xEE), "partition table"),
    Hostile("GPT with a wrong checksum", "a.img", patched(disks.gpt_disk(), 568, b"\1"), "partition table"),
    Hostile("GPT disk that was cut off", "a.img", disks.gpt_disk()[: MIB // 2], "cut off"),
)

HOSTILE = (*_QCOW2, *_VMDK, *_VHD, *_AT_ONCE, *_DISGUISED)
