"""QEMU virtual machines."""
