"""Stacks planned from the built-in templates, without a service: for tests of what is rendered."""

from pathlib import Path
from typing import Any

from services.containers.adapters.templates import FolderCatalog
from services.containers.domain.compose import Plan, PlannedService, labels_of
from services.containers.domain.stacks import Limits, StackService
from services.containers.domain.templates import Choice, Kind, choose

CATALOG = FolderCatalog()
SIDECAR = next(template for template in CATALOG.templates if template.kind is Kind.SIDECAR)
LIMITS = Limits(cpus=0.5, memory_mib=256, pids=128)
MOST = Limits(cpus=2, memory_mib=2048, pids=512)


def chosen(*types: str) -> Choice:
    """The templates of these names, and what they need."""
    return choose(CATALOG.templates, types, None, as_admin=True)


def plan_of(
    choice: Choice,
    *,
    with_sidecar: bool = False,
    code_folder: Path = Path("/srv/stacks/1/code"),
    code_owner: str = "1234:1234",
    **given: Any,
) -> Plan:
    """Plan a stack; `given` are its variables."""
    templates = [*choice.templates, *([SIDECAR] if with_sidecar else [])]
    values: dict[str, Any] = {}
    for template in templates:
        own = {name: value for name, value in given.items() if name in template.variables["properties"]}
        values |= CATALOG.complete(template, own)
    return Plan(
        project="telar-0123456789ab",
        labels=labels_of("stack", "owner", 1),
        services=[
            PlannedService(
                StackService(one.name, one.name, one.port, 20_000 + place), one, "web:1", values, "builder:1"
            )
            for place, one in enumerate(templates)
        ],
        primary=choice.primary.name,
        code_folder=str(code_folder),
        publish_address="127.0.0.1",
        limits=LIMITS,
        build_limits=MOST,
        build_environment={"npm_config_registry": "https://npm.example/$x"},
        code_owner=code_owner,
    )
