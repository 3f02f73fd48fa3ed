"""The operator's limits for what stacks' services may use."""

from typing import Any

from services.containers.domain.stacks import Limits
from services.containers.schemas import LimitsIn
from services.containers.settings import ContainersSettings

_NAMES = ("cpus", "memory_mib", "pids")


def most_allowed(settings: ContainersSettings) -> Limits:
    return Limits(**{name: getattr(settings, f"max_{name}") for name in _NAMES})


def sidecar_limits(settings: ContainersSettings) -> Limits:
    return Limits(settings.file_manager_cpus, settings.file_manager_memory_mib, settings.default_pids)


def limits_wanted(wanted: LimitsIn, settings: ContainersSettings, before: Limits | None = None) -> Limits:
    """The limits asked for; what is absent stays as it was `before`, or is the default. Raises InvalidStack."""
    given = wanted.model_dump(exclude_none=True)

    def fallback(name: str) -> Any:
        return getattr(before, name) if before is not None else getattr(settings, f"default_{name}")

    limits = Limits(**{name: given.get(name, fallback(name)) for name in _NAMES})
    limits.require_within(most_allowed(settings))
    return limits
