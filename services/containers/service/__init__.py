"""The use cases of stacks, by what they are about."""

from services.containers.service.changes import Changes
from services.containers.service.deployment import Deployment
from services.containers.service.endings import Endings
from services.containers.service.files import Files
from services.containers.service.planning import Planner
from services.containers.service.reconcile import Reconciler
from services.containers.service.records import NewStack
from services.containers.service.rendering import Renderer
from services.containers.service.sources import Sources
from services.containers.service.stacks import Stacks
from services.containers.service.sweep import Sweeper
from services.containers.service.views import Views

__all__ = [
    "Changes",
    "Deployment",
    "Endings",
    "Files",
    "NewStack",
    "Planner",
    "Reconciler",
    "Renderer",
    "Sources",
    "Stacks",
    "Sweeper",
    "Views",
]
