"""Canonical routes of the images service."""

from services.images.api.routes import router, streams_its_body
from services.images.api.tus import TusResponses

__all__ = ["TusResponses", "router", "streams_its_body"]
