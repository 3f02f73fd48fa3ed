"""What users own and use in other services, learnt from their events."""

from typing import Any

from libs.common.events import Event
from libs.common.uow import UnitOfWork
from services.auth.models import OwnedResource, ServiceUsage
from services.auth.repository import AuthRepository


async def keep_ownership(uow: UnitOfWork, event: Event) -> None:
    """Remember a resource and its owner's use; a `deleted` event ends the ownership, an older event changes nothing."""
    service, _, verb = event.type.split(".")[:3]
    repository = AuthRepository(uow.session)
    resource: dict[str, Any] | None = event.data.get("resource")
    if event.owner is None:
        return
    if resource is not None:
        await repository.keep_resource(
            OwnedResource(
                service=service,
                type=resource["type"],
                id=resource["id"],
                owner_id=event.owner,
                name=resource["name"],
                sequence=event.sequence,
                deleted=verb == "deleted",
            )
        )
    usage: dict[str, Any] | None = event.data.get("usage")
    if usage is not None:
        await repository.keep_usage(
            ServiceUsage(owner_id=event.owner, service=service, used=usage["used"], sequence=usage["sequence"])
        )
