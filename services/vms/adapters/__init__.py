"""The systems behind the vms service."""
