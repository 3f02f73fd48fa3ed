"""Every route of the service's own, by what it is about."""

from fastapi import APIRouter

from libs.common.auth import requires_scope
from services.containers.api import changes, files, logs, stacks
from services.containers.api.answers import PREFIX, streams_its_body
from services.containers.service import Changes, Files, Stacks, Views
from services.containers.settings import ContainersSettings

__all__ = ["router", "streams_its_body"]


def router(found: Stacks, changing: Changes, code: Files, views: Views, settings: ContainersSettings) -> APIRouter:
    routes = APIRouter(prefix=PREFIX, dependencies=[requires_scope("stacks")])
    stacks.add_routes(routes, found, views, settings)
    changes.add_routes(routes, found, changing, views, settings)
    files.add_routes(routes, code, settings)
    logs.add_routes(routes, found, views)
    return routes
