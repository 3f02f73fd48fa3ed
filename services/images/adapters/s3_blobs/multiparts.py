"""Multipart uploads that were begun and never ended: S3 keeps, and charges for, their parts until they are aborted."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from xml.etree import ElementTree as ET

import httpx

from libs.common.s3 import S3Account
from libs.common.trust import system_trust
from services.images.adapters.s3_blobs.signing import presigned
from services.images.errors import BlobStoreUnavailable

_EXPIRES_S = 60
_TIMEOUT_S = 30
_GONE = 404


class Multipart(NamedTuple):
    """A multipart upload under way: the object that it will be, in the bucket's own words, and its id at S3."""

    full_key: str
    s3_upload_id: str


class Multiparts:
    """What obstore's interface leaves out: ListMultipartUploads and AbortMultipartUpload of the S3 API.

    Without keys of its own (an instance role) it finds nothing; there a lifecycle rule of the bucket must end them.
    """

    def __init__(self, account: S3Account) -> None:
        self._account = account

    async def list(self, prefix: str) -> list[Multipart]:
        """All that are under way for objects whose keys begin with `prefix`, those of living uploads among them."""
        found: list[Multipart] = []
        query = {"uploads": "", "prefix": self._account.full_key(prefix)}
        while self._account.secret_access_key is not None:
            page = _elements(await self._call("GET", None, query))
            found += _listed(page)
            if page.findtext("IsTruncated") != "true":
                break
            query["key-marker"] = page.findtext("NextKeyMarker") or ""
            query["upload-id-marker"] = page.findtext("NextUploadIdMarker") or ""
        return found

    async def abort(self, key: str, s3_upload_id: str) -> None:
        """Drop the parts; nothing happens if the multipart upload was completed or aborted before."""
        if self._account.secret_access_key is not None:
            await self._call("DELETE", key, {"uploadId": s3_upload_id})

    async def _call(self, method: str, key: str | None, query: Mapping[str, str]) -> bytes:
        account = self._account
        assert account.secret_access_key is not None  # noqa: S101 - the callers have looked
        url = presigned(
            method,
            account.url(key),
            access_key_id=account.access_key_id or "",
            secret_access_key=account.secret_access_key.get_secret_value(),
            region=account.region,
            now=datetime.now(UTC),
            expires_s=_EXPIRES_S,
            query=query,
        )
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, verify=system_trust()) as http:
                answer = await http.request(method, url)
        except httpx.HTTPError as error:
            raise BlobStoreUnavailable("The bucket for images does not answer", retry_after_s=10) from error
        if not answer.is_success and answer.status_code != _GONE:
            raise BlobStoreUnavailable(f"S3 answered {answer.status_code} about multipart uploads", retry_after_s=10)
        return answer.content


def _elements(document: bytes) -> ET.Element:
    try:
        root = ET.fromstring(document)  # noqa: S314 - from the operator's own store; expat bounds expansion
    except ET.ParseError as error:
        raise BlobStoreUnavailable("S3's list of multipart uploads cannot be read", retry_after_s=10) from error
    for element in root.iter():
        element.tag = re.sub(r"^\{.*\}", "", element.tag)  # some stores leave the name space out
    return root


def _listed(page: ET.Element) -> Iterator[Multipart]:
    for upload in page.iter("Upload"):
        yield Multipart(upload.findtext("Key") or "", upload.findtext("UploadId") or "")
