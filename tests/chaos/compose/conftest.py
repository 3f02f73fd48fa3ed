"""Waiting, and the suite's containers, as in the end-to-end tests."""

from tests.e2e.conftest import containers, within

__all__ = ["containers", "within"]
