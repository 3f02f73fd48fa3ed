"""The one table of services: registering one is a line here; it starts as soon as its package exists."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI

from libs.common.settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A service's package and which database it keeps its state in (`sql`, `mongo`)."""

    name: str
    database: str

    @property
    def module(self) -> str:
        return f"services.{self.name}.main"

    def installed(self) -> bool:
        return find_spec(self.module) is not None

    @property
    def settings(self) -> type[ServiceSettings]:
        found: type[ServiceSettings] = self.load().Settings
        return found

    @property
    def create_app(self) -> Callable[..., FastAPI]:
        found: Callable[..., FastAPI] = self.load().create_app
        return found

    @property
    def migrate(self) -> Callable[[ServiceSettings], Awaitable[None]]:
        found: Callable[[ServiceSettings], Awaitable[None]] = self.load().migrate
        return found

    def load(self) -> Any:
        """Import the service's composition root; the first time takes a while."""
        return import_module(self.module)


SERVICES = (
    ServiceEntry("auth", "sql"),
    ServiceEntry("images", "sql"),
    ServiceEntry("vms", "sql"),
    ServiceEntry("containers", "sql"),
    ServiceEntry("fetcher", "mongo"),
)


def installed() -> tuple[ServiceEntry, ...]:
    return tuple(entry for entry in SERVICES if entry.installed())


def by_name(name: str) -> ServiceEntry:
    """The entry of a service that there is."""
    return next(entry for entry in SERVICES if entry.name == name)
