"""The fetcher's canonical routes."""

from services.fetcher.api.downloads import router as downloads_router
from services.fetcher.api.jobs import router as jobs_router

__all__ = ["downloads_router", "jobs_router"]
