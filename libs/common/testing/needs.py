"""What tests need of their machine: a desk may lack it and skips what needs it, CI may not and fails."""

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """End the running test for want of something; `what` says what is not there and how to get it."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)  # the suite's only skip: whoever has no Docker engine or no qemu-img can run the rest


def require_program(name: str, *, package: str) -> str:
    """Where a program is that Debian has in `package`; servers lie in folders that a user's PATH may lack."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return found or missing(f"{name} is not installed (Debian: {package})")


def require_root(why: str) -> None:
    """`why` says what only root can do."""
    if os.geteuid() != 0:
        missing(f"{why} needs root")
