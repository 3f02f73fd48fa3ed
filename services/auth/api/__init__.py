"""Routes of the auth service."""

from services.auth.api.internal import internal_router
from services.auth.api.public import public_router

__all__ = ["internal_router", "public_router"]
