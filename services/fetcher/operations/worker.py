"""One attempt at one item: download, check; and what its outcome makes of the item."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import structlog

from libs.common.clock import rfc3339
from services.fetcher.domain import retries
from services.fetcher.domain.jobs import Check, ItemState
from services.fetcher.models import Failure, Fetched, Item, Job
from services.fetcher.ports import (
    Decoder,
    Download,
    Downloader,
    DownloadFailed,
    NotModified,
    PictureRefused,
    PictureStore,
    Wish,
    Writing,
)

_FETCHED = tuple(field.name for field in fields(Fetched))
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to: the fields to settle the item with, and what must be in the store before that."""

    state: ItemState
    fields: Mapping[str, Any]
    writing: Writing | None = None


Downloaded = Callable[[Failure | None], None]
"""Told when an attempt needs its server no longer, with what went wrong there."""


class ItemWorker:
    """Runs attempts; keeps no state between them."""

    def __init__(
        self,
        downloader: Downloader,
        decoder: Decoder,
        store: PictureStore,
        *,
        retry_base_s: float,
        retry_cap_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._downloader = downloader
        self._decoder = decoder
        self._store = store
        self._retry_base_s = retry_base_s
        self._retry_cap_s = retry_cap_s
        self._now_ms = now_ms

    async def run(self, item: Item, job: Job | None, *, max_attempts: int, downloaded: Downloaded) -> Outcome:
        """Attempt an item once. Pending means: again, not before a later time."""
        if item.attempts > max_attempts:
            failure = Failure(reason="worker-lost", detail="Its workers were killed each time before it was done.")
            return self.failed(item, failure)
        known = await self._known(item, job)
        try:
            download = await self._downloader.fetch(item.url, _wish(job, known))
        except DownloadFailed as error:
            failure = Failure(
                reason=error.reason,
                detail=error.detail,
                final_url=error.final_url,
                http_status=error.http_status,
                retry_after_s=error.retry_after_s,
            )
            downloaded(failure)
            return self.ended(item, failure, max_attempts=max_attempts)
        downloaded(None)
        if isinstance(download, NotModified):
            return self._unchanged(item, download, known or {})
        try:
            return await self._judge(item, download, job)
        except PictureRefused as refused:
            download.body.discard()
            failure = Failure(
                reason=refused.reason,
                detail=refused.detail,
                final_url=download.final_url,
                http_status=download.http_status,
            )
            return self.ended(item, failure, max_attempts=max_attempts)
        except BaseException:
            download.body.discard()
            raise

    async def _known(self, item: Item, job: Job | None) -> Mapping[str, Any] | None:
        """What is stored of the picture already, if that is all that this job wants of it."""
        if job is None or job.refetch or job.conditional is False:  # None: its plan has begun since the job was read
            return None
        try:
            known = await self._store.known(item)
        except OSError:
            return None  # then it is fetched, and whether it can be stored is seen there
        if known is None or (job.check is Check.FULL and not known.get("perceptual_hash")):
            return None
        made = {result.get("processor") for result in known.get("processed") or ()}
        return known if {step["name"] for step in steps_of(job)} <= made else None

    def _unchanged(self, item: Item, answer: NotModified, known: Mapping[str, Any]) -> Outcome:
        """A picture that the server still has as it is stored."""
        now_ms = self._now_ms()
        entry = {"job_id": item.job_id, "attempts": item.attempts, "error": None, "checked_at": _moment(now_ms)}
        changes = {
            **{name: known.get(name) for name in _FETCHED if name != "size_bytes"},
            "final_url": answer.final_url,
            "size_bytes": known["bytes"],
            "state": ItemState.COMPLETED.value,
            "reason": None,
            "detail": None,
            "error_class": None,
            "unchanged": True,
            "path": f"{item.folder}/{known['file']}",
            "fetched_at_ms": now_ms,
        }
        return Outcome(ItemState.COMPLETED, changes, Writing(item, entry, keep=True))

    async def _judge(self, item: Item, download: Download, job: Job | None) -> Outcome:
        check = job.check if job else Check.FULL
        picture = await self._decoder.inspect(download.body, check, steps_of(job))
        fetched = Fetched(
            final_url=download.final_url,
            http_status=download.http_status,
            sha256=download.body.sha256,
            perceptual_hash=picture.perceptual_hash,
            format=picture.format,
            width=picture.width,
            height=picture.height,
            size_bytes=download.body.size_bytes,
            etag=download.etag,
            last_modified=download.last_modified,
        )
        known = {name: getattr(fetched, name) for name in _FETCHED}
        entry = self._entry(item, ItemState.COMPLETED, known)
        writing = Writing(item, entry, download.body, picture.extension, picture.results)
        changes = {
            **known,
            "state": ItemState.COMPLETED.value,
            "reason": None,
            "detail": None,
            "error_class": None,
            "unchanged": False,
            "path": writing.path,
            "fetched_at_ms": self._now_ms(),
        }
        return Outcome(ItemState.COMPLETED, changes, writing)

    def ended(self, item: Item, failure: Failure, *, max_attempts: int) -> Outcome:
        """A failed attempt: to be made again later, or the item's end."""
        if retries.is_transient(failure.reason) and item.attempts < max_attempts:
            wait_s = retries.delay_s(
                failure.reason,
                item.attempts,
                base_s=self._retry_base_s,
                cap_s=self._retry_cap_s,
                retry_after_s=failure.retry_after_s,
            )
            not_before_ms = self._now_ms() + int(wait_s * 1000)
            changes = {**_of_failure(failure), "state": ItemState.PENDING.value, "not_before_ms": not_before_ms}
            return Outcome(ItemState.PENDING, changes)
        return self.failed(item, failure)

    def failed(self, item: Item, failure: Failure) -> Outcome:
        """The item's end."""
        known = {"final_url": failure.final_url, "http_status": failure.http_status}
        error = {"reason": failure.reason, "detail": failure.detail}
        entry = self._entry(item, ItemState.FAILED, {**known, "error": error})
        changes = {**_of_failure(failure), "state": ItemState.FAILED.value}
        return Outcome(ItemState.FAILED, changes, Writing(item, entry))

    def _entry(self, item: Item, state: ItemState, known: Mapping[str, Any]) -> dict[str, Any]:
        """The item as metadata.json tells of it."""
        return {
            "source_url": item.url,
            "final_url": known["final_url"],
            "status": state.value,
            "http_status": known["http_status"],
            "sha256": known.get("sha256"),
            "perceptual_hash": known.get("perceptual_hash"),
            "format": known.get("format"),
            "width": known.get("width"),
            "height": known.get("height"),
            "bytes": known.get("size_bytes"),
            "error": known.get("error"),
            "etag": known.get("etag"),
            "last_modified": known.get("last_modified"),
            "fetched_at": _moment(self._now_ms()) if state is ItemState.COMPLETED else None,
            "attempts": item.attempts,
            "job_id": item.job_id,
        }


def steps_of(job: Job | None) -> list[dict[str, Any]]:
    """What the job wants made of each picture."""
    steps: list[dict[str, Any]] = json.loads(job.process) if job is not None and job.process else []
    return steps


def _wish(job: Job | None, known: Mapping[str, Any] | None) -> Wish:
    return Wish(
        etag=known.get("etag") if known else None,
        last_modified=known.get("last_modified") if known else None,
        robots=job is not None and job.robots,
    )


def _moment(ms: int) -> str:
    return rfc3339(datetime.fromtimestamp(ms / 1000, UTC))


def _of_failure(failure: Failure) -> dict[str, Any]:
    return {
        "reason": failure.reason,
        "detail": failure.detail,
        "error_class": retries.class_of(failure.reason).value,
        "final_url": failure.final_url,
        "http_status": failure.http_status,
    }
