"""Waiting, as the end-to-end tests do it."""

from tests.e2e.conftest import within

__all__ = ["within"]
