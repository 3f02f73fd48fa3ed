"""Which documents a job is about, and under which field their pictures are."""

import json
from collections.abc import Mapping
from typing import Any

from services.fetcher.domain import filters, references
from services.fetcher.errors import SourceRefused
from services.fetcher.ports import SourceCollections

_SAMPLE = 50


class NoPictureField(SourceRefused):
    slug = "search-field-not-found"
    title = "No field with picture URLs was found"


class Selection:
    """Raises SourceUnavailable, SourceRefused and DocumentNotFound."""

    def __init__(self, source: SourceCollections) -> None:
        self._source = source

    async def query(
        self, database: str, collection: str, *, document_id: str | None, filter_text: str | None
    ) -> dict[str, Any]:
        """The query for one document, or for all that a caller's filter (JSON text) selects."""
        if document_id is not None:
            return await self._source.document_query(database, collection, document_id)
        return filters.parse(json.loads(filter_text)) if filter_text else {}

    async def guess(self, database: str, collection: str, query: Mapping[str, Any]) -> str | None:
        """The usual field that holds URLs in a sample; None if there are no documents at all. Raises NoPictureField."""
        sample = await self._source.sample(database, collection, query, _SAMPLE)
        if not sample:
            return None
        field = references.guess_field(sample)
        if field is None:
            raise NoPictureField(
                f"None of the usual fields ({', '.join(references.COMMON_FIELDS[:6])}, …) holds a URL;"
                " name one in search_field"
            )
        return field
