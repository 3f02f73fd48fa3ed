"""Builds small disk images byte by byte, so that the corpora need no tool and no stored binaries."""

import struct
import zlib

KIB = 1024
MIB = 1024 * KIB
EIB_8 = (1 << 63) - 512
SECTOR = 512


def padded(content: bytes, size: int) -> bytes:
    return content + bytes(max(0, size - len(content)))


def patched(content: bytes, at: int, change: bytes) -> bytes:
    """The same with some bytes replaced; `at` may count from the end."""
    at %= len(content)
    return content[:at] + change + content[at + len(change) :]


def qcow2(
    *,
    version: int = 3,
    backing: bytes = b"",
    backing_at: int = 512,
    features: int = 0,
    compression: int = 0,
    encryption: int = 0,
    cluster_bits: int = 16,
    l1_at: int = 0x30000,
    l1_entries: int = 1,
    refcounts_at: int = 0x10000,
    snapshots: int = 0,
    snapshots_at: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
    virtual_size: int = 64 * MIB,
    file_size: int = 256 * KIB,
) -> bytes:
    """A QCOW2 header (docs/interop/qcow2.txt of QEMU) with its extensions and its backing file's name behind it."""
    name_at = backing_at if backing else 0
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", version, name_at, len(backing), cluster_bits, virtual_size)
    header += struct.pack(">IIQQIIQ", encryption, l1_entries, l1_at, refcounts_at, 1, snapshots, snapshots_at)
    if version >= 3:
        header += struct.pack(">QQQII", features, 0, 0, 4, 112) + padded(bytes([compression]), 8)
    for kind, value in extensions:
        header += struct.pack(">II", kind, len(value)) + padded(value, (len(value) + 7) // 8 * 8)
    return padded(padded(header, backing_at if backing else 0) + backing, file_size)


def vmdk_descriptor(
    *,
    create_type: str = "monolithicSparse",
    extents: tuple[str, ...] = ('RW 131072 SPARSE "disk.vmdk"',),
    parent_cid: str = "ffffffff",
    extra: str = "",
) -> bytes:
    lines = ["# Disk DescriptorFile", "version=1", "CID=12345678", f"parentCID={parent_cid}"]
    lines += [f'createType="{create_type}"', *([extra] if extra else []), "", "# Extent description", *extents]
    lines += ["", "# The Disk Data Base", "#DDB", "", 'ddb.virtualHWVersion = "4"', 'ddb.adapterType = "ide"', ""]
    return "\n".join(lines).encode()


def sparse_header(*, sectors: int, directory_at: int, descriptor_at: int = 1, descriptor_sectors: int = 20) -> bytes:
    """VMware's «Hosted Sparse Extent» header (Virtual Disk Format 5.0, 4.1)."""
    header = struct.pack(
        "<4sIIQQQQIQQ", b"KDMV", 1, 3, sectors, 128, descriptor_at, descriptor_sectors, 512, 0, directory_at
    )
    return padded(header, SECTOR)


def vmdk(
    *,
    descriptor: bytes | None = None,
    sectors: int = 131_072,
    directory_at: int = 26,
    descriptor_at: int = 1,
    descriptor_sectors: int = 20,
    file_size: int = 128 * KIB,
) -> bytes:
    text = vmdk_descriptor() if descriptor is None else descriptor
    header = sparse_header(
        sectors=sectors,
        directory_at=directory_at,
        descriptor_at=descriptor_at,
        descriptor_sectors=descriptor_sectors,
    )
    return padded(padded(header, descriptor_at * SECTOR) + text, file_size)


def stream_optimised_vmdk(
    *,
    footer_descriptor_sectors: int = 20,
    footer_sectors: int = 131_072,
    footer_directory_at: int = 100,
    marker: int = 3,
) -> bytes:
    """A VMDK whose grain directory is told by the footer at its end (Virtual Disk Format 5.0, 4.3)."""
    text = vmdk_descriptor(create_type="streamOptimized")
    body = padded(sparse_header(sectors=131_072, directory_at=(1 << 64) - 1) + text, 128 * KIB)
    footer = sparse_header(
        sectors=footer_sectors, directory_at=footer_directory_at, descriptor_sectors=footer_descriptor_sectors
    )
    return body + padded(struct.pack("<QII", 1, 0, marker), SECTOR) + footer + bytes(SECTOR)


def _summed(sector: bytes, at: int) -> bytes:
    """A VHD's sector with its checksum: the one's complement of the sum of all other bytes."""
    return patched(sector, at, struct.pack(">I", ~sum(sector) & 0xFFFFFFFF))


def vhd_footer(*, disk_type: int, virtual_size: int = 64 * MIB, original_size: int | None = None) -> bytes:
    """A VHD's footer (Virtual Hard Disk Image Format Specification 1.0): 2 fixed, 3 dynamic, 4 differencing."""
    data_at = (1 << 64) - 1 if disk_type == 2 else SECTOR
    original_size = virtual_size if original_size is None else original_size
    footer = struct.pack(">8sIIQI4sI4s", b"conectix", 2, 0x10000, data_at, 0, b"tela", 1, b"Wi2k")
    footer += struct.pack(">QQHBBI", original_size, virtual_size, 1000, 16, 63, disk_type)
    return _summed(padded(footer, SECTOR), 64)


def vhd_sparse_header(
    *, blocks: int = 32, table_at: int = 1536, parent_name: str = "", locators: tuple[bytes, ...] = ()
) -> bytes:
    """A dynamic VHD's second header: where its block allocation table lies, and of what parent it is."""
    header = struct.pack(">8sQQIII", b"cxsparse", (1 << 64) - 1, table_at, 0x10000, blocks, 2 * MIB)
    header = padded(padded(header, 64) + parent_name.encode("utf-16-be"), 576)
    for locator in locators:
        header += struct.pack(">4sIIIQ", locator, 512, 40, 0, 2048)
    return _summed(padded(header, 1024), 36)


def dynamic_vhd(
    *,
    disk_type: int = 3,
    virtual_size: int = 64 * MIB,
    original_size: int | None = None,
    sparse_header: bytes | None = None,
    end: bytes | None = None,
) -> bytes:
    footer = vhd_footer(disk_type=disk_type, virtual_size=virtual_size, original_size=original_size)
    header = vhd_sparse_header() if sparse_header is None else sparse_header
    table = padded(b"\xff" * 128, SECTOR)
    return padded(footer + header + table, 128 * KIB) + (footer if end is None else end)


def fixed_vhd(disk: bytes) -> bytes:
    return disk + vhd_footer(disk_type=2, virtual_size=len(disk))


def mbr(*, boot_flag: int = 0x80, kind: int = 0x83, first: int = 63, sectors: int = 1024) -> bytes:
    """A boot sector with one partition."""
    entry = struct.pack("<B3sB3sII", boot_flag, b"\x20\x21\x00", kind, b"\xfe\xff\xff", first, sectors)
    return padded(b"\xfa\x33\xc0", 446) + padded(entry, 64) + b"\x55\xaa"


def gpt_disk(
    size: int = MIB, *, sector: int = SECTOR, backup_at: int | None = None, start_chs: bytes = b"\x00\x02\x00"
) -> bytes:
    """A disk with a protective MBR, a GPT header and one partition (UEFI 2.10, 5.2.3 and 5.3)."""
    last = size // sector - 1
    protective = struct.pack("<B3sB3sII", 0, start_chs, 0xEE, b"\xff\xff\xff", 1, last)
    linux = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entries = padded(struct.pack("<16s16sQQQ", linux, b"telar-partition1", 64, last - 64, 0), 128 * 128)
    header = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, backup_at or last, 34, last - 34)
    header += struct.pack("<16sQIII", b"telar-disk-id-01", 2, 128, 128, zlib.crc32(entries))
    header = patched(header, 16, struct.pack("<I", zlib.crc32(header)))
    first = padded(bytes(446) + padded(protective, 64) + b"\x55\xaa", sector)
    return padded(first + padded(header, sector) + entries, size)


def raw_disk(size: int = MIB) -> bytes:
    """A file system without a partition table: ext4's superblock magic lies at 1080."""
    return padded(bytes(1080) + b"\x53\xef", size)


def mbr_disk(size: int = MIB, *, boot_flag: int = 0x80, kind: int = 0x83, sectors: int | None = None) -> bytes:
    wanted = max(1, size // SECTOR - 63) if sectors is None else sectors
    return padded(mbr(boot_flag=boot_flag, kind=kind, sectors=wanted), size)


def volume(name: bytes, *, cluster_sectors: int = 1, media: int = 0xF0, size: int = 1440 * KIB) -> bytes:
    """A file system's own boot sector: it ends like an MBR and has no partitions (FAT specification 1.03, 3.1)."""
    sector = struct.pack("<3s8sHBHBHHB", b"\xeb\x3c\x90", name, 512, cluster_sectors, 1, 2, 224, size // SECTOR, media)
    return padded(padded(sector, 510) + b"\x55\xaa", size)


def iso(*, system_area: bytes = b"", size: int = 256 * KIB, blocks: int | None = None) -> bytes:
    """An ISO 9660 volume descriptor behind a system area of the caller's (ECMA-119, 8.4)."""
    blocks = size // 2048 if blocks is None else blocks
    descriptor = bytearray(2048)
    descriptor[:7] = b"\x01CD001\x01"
    descriptor[80:88] = struct.pack("<I", blocks) + struct.pack(">I", blocks)
    descriptor[128:132] = struct.pack("<H", 2048) + struct.pack(">H", 2048)
    return padded(padded(system_area[: 32 * KIB], 32 * KIB) + bytes(descriptor), size)
