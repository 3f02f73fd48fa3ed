"""Proxmox VE through proxmoxer."""

from services.vms.adapters.proxmox.breaker import Breakers
from services.vms.adapters.proxmox.driver import ProxmoxCluster

__all__ = ["Breakers", "ProxmoxCluster"]
