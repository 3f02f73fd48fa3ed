"""Jobs and items as callers see them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from services.fetcher.domain import retries
from services.fetcher.models import DomainFailures, DomainTally, Item, Job, Progress
from services.fetcher.schemas import (
    DomainEstimate,
    DomainOut,
    DomainReport,
    DryRun,
    ItemOut,
    JobDetail,
    JobError,
    JobOut,
    Report,
    TimeAndRoom,
)
from services.fetcher.service import Estimate

_SAME_IN_ITEM = (
    *("id", "document_id", "search_field", "position", "url", "domain", "attempts", "reason", "detail"),
    *("error_class", "unchanged"),
    *("final_url", "http_status", "sha256", "perceptual_hash", "format", "width", "height", "path"),
)


def job_out(job: Job) -> JobOut:
    return JobOut(**_job_fields(job))


def job_detail(job: Job, progress: Progress, domains: Sequence[DomainTally]) -> JobDetail:
    return JobDetail(
        **_job_fields(job),
        items=dict(progress.items),
        total_items=sum(progress.items.values()),
        bytes=progress.size_bytes,
        rate_per_s=progress.rate_per_s,
        eta_s=progress.eta_s,
        domains=[DomainOut(domain=row.domain, items=row.items, bytes=row.size_bytes) for row in domains],
    )


def item_out(item: Item) -> ItemOut:
    return ItemOut(
        **{name: getattr(item, name) for name in _SAME_IN_ITEM},
        status=item.state,
        bytes=item.size_bytes,
        fetched_at=_moment(item.fetched_at_ms),
    )


def _job_fields(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.state,
        "kind": job.kind,
        "owner_id": job.owner_id,
        "database": job.database,
        "collection": job.collection,
        "document_id": job.document_id,
        "search_field": job.search_field,
        "search_field_guessed": job.field_guessed,
        "limit": job.limit,
        "documents": job.documents,
        "planned": job.planned,
        "error": JobError(slug=job.error, detail=job.error_detail) if job.error else None,
        "options": _options(job),
        "documents_written": job.documents_written,
        "documents_refused": job.documents_refused,
        "version": job.version,
        "created_at": _moment(job.created_at_ms),
        "updated_at": _moment(job.updated_at_ms),
        "started_at": _moment(job.started_at_ms),
        "finished_at": _moment(job.finished_at_ms),
    }


def dry_run_out(estimate: Estimate) -> DryRun:
    return DryRun(
        dry_run=True,
        search_field=estimate.search_field,
        search_field_guessed=estimate.guessed,
        documents=estimate.documents,
        documents_without_pictures=estimate.documents_without,
        pictures=estimate.pictures,
        complete=estimate.complete,
        domain_count=estimate.domain_count,
        domains=[DomainEstimate(domain=domain, pictures=count) for domain, count in estimate.domains],
        estimate=TimeAndRoom(seconds_at_least=estimate.seconds, bytes=estimate.size_bytes),
    )


def report_out(
    job: Job, items: Mapping[str, int], failures: Sequence[DomainFailures], examples: Mapping[str, Sequence[Item]]
) -> Report:
    reasons: Counter[str] = Counter()
    for row in failures:
        reasons.update(row.reasons)
    classes: Counter[str] = Counter()
    for reason, count in reasons.items():
        classes[retries.class_of(reason).value] += count
    return Report(
        job_id=job.id,
        status=job.state,
        items=dict(items),
        failed=reasons.total(),
        dead=_dead(reasons),
        by_class=dict(classes),
        domains=[
            DomainReport(
                domain=row.domain,
                failed=sum(row.reasons.values()),
                dead=_dead(row.reasons),
                reasons=row.reasons,
                examples=[item.url for item in examples.get(row.domain, ())],
            )
            for row in failures
        ],
    )


def _dead(reasons: Mapping[str, int]) -> int:
    return sum(count for reason, count in reasons.items() if reason in retries.DEAD)


def _options(job: Job) -> dict[str, Any]:
    """What was asked for, as it was asked for."""
    steps = [
        {name: value for name, value in step.items() if name != "name"} for step in json.loads(job.process or "[]")
    ]
    return {
        "max_per_domain": job.max_per_domain,
        "max_attempts": job.max_attempts,
        "rate_per_domain": job.rate_per_domain,
        "check": job.check.value,
        "robots": job.robots,
        "refetch": job.refetch,
        "process": steps,
        "write_back": job.write_back,
    }


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
