"""Canonical routes of the vms service."""

from services.vms.api.routes import router

__all__ = ["router"]
