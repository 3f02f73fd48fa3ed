"""Where a document points to pictures: URLs under a dotted field, in texts, lists and `{"url": …}` objects."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

MAX_PER_DOCUMENT = 999
MAX_URL = 8_192
_MAX_DEPTH = 6
_URL_KEYS = ("url", "src", "href", "uri", "link")

COMMON_FIELDS = (
    *("images", "image", "image_urls", "image_url", "imageUrls", "imageUrl", "pictures", "picture", "picture_url"),
    *("photos", "photo", "photo_url", "photoUrl", "img", "imgs", "img_url", "gallery", "thumbnails", "thumbnail"),
    *("thumbnail_url", "cover", "cover_url", "poster", "avatar", "avatar_url", "logo", "media", "urls", "url", "src"),
)
"""Tried in this order when a caller names no field."""


def pictures_in(document: Mapping[str, Any], search_field: str) -> list[str]:
    """URLs under the field, in the document's order, each once, at most `MAX_PER_DOCUMENT`."""
    found = dict.fromkeys(url for value in _under(document, search_field.split(".")) for url in _urls(value, 0))
    return list(found)[:MAX_PER_DOCUMENT]


def guess_field(documents: Iterable[Mapping[str, Any]]) -> str | None:
    """The first common field name under which any of the documents holds a URL."""
    sample: Sequence[Mapping[str, Any]] = list(documents)
    return next((name for name in COMMON_FIELDS if any(pictures_in(document, name) for document in sample)), None)


def domain_of(url: str) -> str:
    """The host as written, in lower case, for lanes and tables; `(invalid)` where there is none."""
    try:
        return (urlsplit(url).hostname or "(invalid)")[:255]
    except ValueError:
        return "(invalid)"


def _under(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Values at a dotted path; lists on the way are entered, as MongoDB does."""
    if not path:
        yield value
    elif isinstance(value, Mapping):
        if path[0] in value:
            yield from _under(value[path[0]], path[1:])
    elif isinstance(value, list):
        for item in value:
            yield from _under(item, path)


def _urls(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        text = value.strip()
        if text.lower().startswith(("http://", "https://")) and len(text) <= MAX_URL:
            yield text
    elif isinstance(value, list):
        for item in value:
            yield from _urls(item, depth + 1)
    elif isinstance(value, Mapping):
        for key in _URL_KEYS:
            if key in value:
                yield from _urls(value[key], depth + 1)
