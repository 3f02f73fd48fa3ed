"""Optimistic concurrency: a resource's version is its ETag, and If-Match guards it (RFC 9110, section 13)."""

from typing import Annotated

from fastapi import Header, Response

from libs.common.errors import PreconditionFailed

IfMatch = Annotated[
    str | None, Header(alias="If-Match", max_length=500, description="The ETag the change is meant for")
]


def etag(version: int) -> str:
    return f'"{version}"'


def set_etag(response: Response, version: int) -> None:
    response.headers["etag"] = etag(version)


def check_if_match(if_match: str | None, version: int) -> None:
    """Raise PreconditionFailed if the caller meant another version; no header means any version."""
    if if_match is None or if_match.strip() == "*":
        return
    if etag(version) not in {tag.strip() for tag in if_match.split(",")}:
        raise PreconditionFailed("It was changed in the meantime: read it again, then repeat the change")
