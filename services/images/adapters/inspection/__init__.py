"""Recognises disk images as they stream past and says what makes them unsafe; no external tool sees the file.

oslo.utils knows the formats (the extra `image-inspection`); these rooms add what it does not look at: footers, parents
of VMDK and VHD images, encryption, tables that lie outside the file, and the marks of formats that QEMU would recognise
but nobody may upload.
"""

from services.images.adapters.inspection.stream import StreamInspector

__all__ = ["StreamInspector"]
