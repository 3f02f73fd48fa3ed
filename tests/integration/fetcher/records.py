"""Jobs, items and events as the job store keeps them."""

from datetime import UTC, datetime

from libs.common.events import Event
from services.fetcher.domain.jobs import JobKind
from services.fetcher.models import Item, Job
from tests.integration.fetcher.conftest import OWNER


def job(number: int = 1, **changes: object) -> Job:
    fields: dict[str, object] = {
        "id": f"job-{number:03d}",
        "owner_id": OWNER,
        "kind": JobKind.COLLECTION,
        "database": "shop",
        "collection": "products",
        "created_at_ms": 1,
        "updated_at_ms": 1,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]  # fields by name


def item(number: int, *, job_id: str = "job-001", domain: str = "a.example") -> Item:
    return Item(
        id=f"{job_id}:{number:05d}",
        job_id=job_id,
        document_id=str(number),
        search_field="image",
        position=1,
        folder=f"shop/products/{number}-image",
        url=f"http://{domain}/{number}.jpg",
        domain=domain,
    )


def event(subject: str, type_: str = "fetcher.job.created.v1", sequence: int = 1) -> Event:
    return Event(
        type=type_, subject=subject, source="/telar/fetcher", time=datetime.now(UTC), data={}, sequence=sequence
    )
