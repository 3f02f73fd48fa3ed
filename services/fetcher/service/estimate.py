"""A dry run: what a job would fetch from where, and about how long that would take."""

import time
from collections import Counter
from dataclasses import dataclass

from services.fetcher.domain import references
from services.fetcher.ports import SourceCollections
from services.fetcher.service.selection import Selection

_MOST_DOCUMENTS = 100_000
_MOST_S = 10.0
_TYPICAL_DOWNLOAD_S = 0.25
_DOMAINS_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast downloads may be: at once in all, at once and per second from one domain."""

    at_once: int
    per_domain: int
    rate_per_domain: float | None

    def seconds(self, domains: Counter[str]) -> float:
        """At least so long it takes: the slowest domain, or all together."""
        total_s = domains.total() * _TYPICAL_DOWNLOAD_S / self.at_once
        largest = max(domains.values(), default=0)
        one_s = largest * _TYPICAL_DOWNLOAD_S / min(self.per_domain, self.at_once)
        paced_s = largest / self.rate_per_domain if self.rate_per_domain else 0.0
        return round(max(total_s, one_s, paced_s), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`complete` is False where the collection was too large to be counted; then all figures are of its beginning."""

    search_field: str | None
    guessed: bool
    documents: int
    documents_without: int
    pictures: int
    complete: bool
    domains: list[tuple[str, int]]
    domain_count: int
    seconds: float
    size_bytes: int | None


class Estimator:
    """Reads the source as planning would, and writes nothing."""

    def __init__(self, source: SourceCollections) -> None:
        self._source = source
        self._selection = Selection(source)

    async def estimate(
        self,
        database: str,
        collection: str,
        *,
        document_id: str | None,
        search_field: str | None,
        filter_text: str | None,
        limit: int | None,
        pace: Pace,
        mean_bytes: float | None,
    ) -> Estimate:
        """Count documents, pictures and domains; raises what planning would fail with."""
        query = await self._selection.query(database, collection, document_id=document_id, filter_text=filter_text)
        field = search_field or await self._selection.guess(database, collection, query)
        documents = without = 0
        domains: Counter[str] = Counter()
        complete = True
        until = time.monotonic() + _MOST_S
        if field is not None:
            stream = self._source.stream(database, collection, query, field=field, limit=limit)
            async for document in stream:
                documents += 1
                found = references.pictures_in(document, field)
                without += not found
                domains.update(map(references.domain_of, found))
                if documents >= _MOST_DOCUMENTS or time.monotonic() > until:
                    complete = False
                    break
        pictures = domains.total()
        return Estimate(
            search_field=field,
            guessed=search_field is None and field is not None,
            documents=documents,
            documents_without=without,
            pictures=pictures,
            complete=complete,
            domains=domains.most_common(_DOMAINS_SHOWN),
            domain_count=len(domains),
            seconds=pace.seconds(domains),
            size_bytes=None if mean_bytes is None else round(mean_bytes * pictures),
        )
