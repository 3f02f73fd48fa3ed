"""Paths in a stack's code, and what is at them: rules, apart from any file; pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from libs.common.errors import PreconditionFailed
from services.containers.domain.archives import require_safe_name
from services.containers.errors import ArchiveRefused, FilePathRefused


class EntryKind(StrEnum):
    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder; folders have no size and no tag."""

    name: str
    kind: EntryKind
    size_bytes: int
    modified_at: datetime | None
    etag: str


def checked_path(path: str) -> list[str]:
    """A path's parts, none for the root; raises FilePathRefused unless it is plain and relative on every system."""
    trimmed = path.removesuffix("/")
    if not trimmed:
        return []
    try:
        require_safe_name(trimmed)
    except ArchiveRefused as error:
        raise FilePathRefused(error.detail.replace("The entry", "The path", 1)) from error
    return trimmed.split("/")


def tag_of(found: Entry | None, if_match: str | None, *, is_new: bool) -> None:
    """Raise PreconditionFailed unless what is there is what the caller meant (RFC 9110, 13.1)."""
    if is_new and found is not None:
        raise PreconditionFailed("There is a file of this name already")
    if if_match is None:
        return
    tags = {tag.strip() for tag in if_match.split(",")}
    if found is None or ("*" not in tags and found.etag not in tags):
        raise PreconditionFailed("It was changed in the meantime: read it again, then repeat the change")
