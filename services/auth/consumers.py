"""Which events auth listens to: whatever tells what a user owns and uses."""

from libs.common.inbox import EventHandler
from services.auth.service import keep_ownership

HANDLERS: dict[str, EventHandler] = dict.fromkeys(
    (
        "images.image.created.v1",
        "images.image.updated.v1",
        "images.image.rejected.v1",
        "images.image.activated.v1",
        "images.image.deactivated.v1",
        "images.image.deleted.v1",
        "images.usage.changed.v1",
        "vms.vm.created.v1",
        "vms.vm.updated.v1",
        "vms.vm.state_changed.v1",
        "vms.vm.deleted.v1",
        "vms.vm.failed.v1",
        "vms.template.ready.v1",
        "vms.template.failed.v1",
        "vms.template.deleted.v1",
        "containers.stack.created.v1",
        "containers.stack.state_changed.v1",
        "containers.stack.deleted.v1",
        "containers.stack.failed.v1",
        "fetcher.job.created.v1",
        "fetcher.job.started.v1",
        "fetcher.job.completed.v1",
        "fetcher.job.failed.v1",
        "fetcher.job.cancelled.v1",
        "fetcher.job.deleted.v1",
    ),
    keep_ownership,
)
