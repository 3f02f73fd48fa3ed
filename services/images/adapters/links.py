"""Links to image files that need no login: names for what they give, and signatures that bound their time."""

import base64
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import quote
from uuid import UUID

from services.images.domain import Format
from services.images.errors import LinkInvalid

_ID_BYTES, _EXPIRY_BYTES = 16, 6
_TOKEN_CHARACTERS = 72  # of them and 32 bytes of signature, without padding
_LABEL = b"telar images: links to files, version 1"

_MAX_FILENAME = 150
_EXTENSIONS: Mapping[Format, str] = {Format.RAW: "img"}


def file_name(name: str, format_name: str) -> str:
    """A file name made of an image's name: no separators, no control characters, no leading dot, of bounded length."""
    extension = _EXTENSIONS.get(Format(format_name), format_name)
    stem = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|%;]+', "_", name).strip(" .") or "image"
    stem = stem.removesuffix(f".{extension}")[:_MAX_FILENAME]
    return f"{stem}.{extension}"


def content_disposition(filename: str) -> str:
    """An attachment under that name: plain for old clients, `filename*` for all others (RFC 6266, 4.3; RFC 8187)."""
    plain = unicodedata.normalize("NFKD", filename).encode("ascii", "ignore").decode().replace('"', "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


class LinkTokens:
    """Signs which image may be downloaded until when, with a key made of the secret that all processes share."""

    def __init__(self, service_secret: str) -> None:
        self._key = hmac.digest(service_secret.encode(), _LABEL, "sha256")

    def sign(self, image_id: UUID, expires_at: int) -> str:
        """A token that stands in a path as it is; `expires_at` in seconds since 1970."""
        return self._signed(image_id.bytes + expires_at.to_bytes(_EXPIRY_BYTES, "big"))

    def read(self, token: str, now: float) -> UUID:
        """The image that a token is good for; raises LinkInvalid, with the same words whatever is wrong with it."""
        if len(token) != _TOKEN_CHARACTERS or not token.isascii():
            raise LinkInvalid
        try:
            told = base64.urlsafe_b64decode(token)[: _ID_BYTES + _EXPIRY_BYTES]
        except ValueError as error:
            raise LinkInvalid from error
        if not hmac.compare_digest(self._signed(told), token):  # the text, which has one form alone
            raise LinkInvalid
        if int.from_bytes(told[_ID_BYTES:], "big") <= now:
            raise LinkInvalid
        return UUID(bytes=told[:_ID_BYTES])

    def _signed(self, told: bytes) -> str:
        return base64.urlsafe_b64encode(told + hmac.digest(self._key, told, "sha256")).decode()


class NginxLinks:
    """URLs that an nginx with deploy/nginx/image-files.conf checks (module secure_link) and serves from the folder.

    MD5 is the module's choice; what is signed is of our making and ends in the secret, so that neither collisions nor
    extensions of it help anybody.
    """

    def __init__(self, base_url: str, secret: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._secret = secret

    def sign(self, key: str, *, filename: str, expires_at: int) -> str:
        name = quote(filename, safe="")
        told = f"{expires_at} {key} {name} {self._secret}"
        digest = hashlib.md5(told.encode(), usedforsecurity=False).digest()
        signature = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        return f"{self._base_url}/{key}?expires={expires_at}&name={name}&signature={signature}"
