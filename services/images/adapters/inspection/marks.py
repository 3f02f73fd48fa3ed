"""Marks of what nobody may upload: formats that QEMU recognises beside ours, and files that are no disks at all."""

import re
from collections.abc import Mapping

from services.images.adapters.inspection.excerpt import Excerpt
from services.images.domain import VMDK_DESCRIPTOR

# By what a file begins with. The disks are those of QEMU's block drivers (block/*.c, their probe functions); of the
# rest each one is what a disk image often comes packed in, or what a server sends instead of it.
_BEGINNINGS: Mapping[bytes, str] = {
    b"COWD": "an ESX VMDK extent",
    b"WithoutFreeSpace": "a Parallels disk",
    b"WithouFreSpacExt": "a Parallels disk",
    b"Bochs Virtual HD Image": "a Bochs disk",
    b"#!/bin/sh\n#V2.0 Format": "a cloop disk",
    b"\x1f\x8b\x08": "a gzip archive, to be unpacked first",
    b"\xfd7zXZ\0": "an xz archive, to be unpacked first",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive, to be unpacked first",
    b"BZh": "a bzip2 archive, to be unpacked first",
    b"PK\x03\x04": "a ZIP archive, to be unpacked first",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive, to be unpacked first",
}
_TAR_AT = 257
_TAR = "a TAR archive, to be unpacked first (an OVA is one)"
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)
# QEMU takes a text for a VMDK descriptor if this is its first line that is neither empty nor a comment.
_VMDK_TEXT = re.compile(rb"(?:[ \t\r\n]|#[^\n]*\n)*+version[ \t]*=", re.IGNORECASE)


def marks(file: Excerpt) -> set[str]:
    """The formats whose marks a file bears, beside those that oslo.utils knows."""
    found = {name for mark, name in _BEGINNINGS.items() if file.head.startswith(mark)}
    if file.head[_TAR_AT:].startswith(b"ustar"):
        found.add(_TAR)
    if _WEB_PAGE.match(file.head):
        found.add("a web page or an XML text")
    if _VMDK_TEXT.match(file.head):
        found.add(VMDK_DESCRIPTOR)
    if file.last_sector.startswith(b"koly"):
        found.add("a DMG disk")
    if file.last_sector.startswith(b"conectix"):
        found.add("vhd")
    return found
