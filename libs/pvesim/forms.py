"""Reading parameters as pveproxy does: queries, forms and JSON bodies, with their limits and oddities."""

import json
import re
from typing import Any
from urllib.parse import unquote_plus

from starlette.requests import Request

from libs.pvesim.errors import BAD_REQUEST, NOT_IMPLEMENTED, UNSUPPORTED_BODY, PveError, parameter_error
from libs.pvesim.releases import Release

_CONFLICT = "duplicate parameter (already defined in URI) with conflicting values"


def query_of(request: Request, release: Release) -> dict[str, Any]:
    return _decode_form(request.scope["query_string"], release)


def merged(in_path: dict[str, str], query: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The query overrides the body; nothing may contradict the path."""
    params: dict[str, Any] = {**body, **query}
    params.pop("_dc", None)
    for name, value in in_path.items():
        if name in params and str(params[name]) != value:
            raise parameter_error(name, _CONFLICT)
        params[name] = value
    return params


async def read_body(request: Request, release: Release) -> dict[str, Any]:
    """Form or JSON parameters of a POST or PUT; raises the HTTP layer's own errors."""
    headers = request.headers
    if "transfer-encoding" in headers:
        raise PveError("chunked transfer encoding not supported", status=NOT_IMPLEMENTED, bare=True)
    length = int(headers.get("content-length") or 0)
    if length == 0:
        return {}
    if request.method in {"GET", "DELETE"}:
        raise PveError(f"Unexpected content for method '{request.method}'", status=NOT_IMPLEMENTED, bare=True)
    if length > release.body_limit_bytes:
        raise PveError("for data too large", status=NOT_IMPLEMENTED, bare=True)
    kind = headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind not in {"", "application/x-www-form-urlencoded", "application/json"}:
        raise PveError(f"upload 'Content-Type '{kind}' not implemented", status=UNSUPPORTED_BODY, bare=True)
    body = await request.body()
    if kind != "application/json":
        return _decode_form(body, release)
    try:
        decoded = json.loads(body)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise PveError("malformed JSON string", status=BAD_REQUEST, bare=True)
    return decoded


def _decode_form(body: bytes, release: Release) -> dict[str, Any]:
    """Split at `&` and `;`, and keep what stands between the first and the second literal `=`, as the original does."""
    found: dict[str, list[str]] = {}
    for pair in re.split(r"[&;]", body.decode("latin-1")):
        name, *values = pair.split("=")
        if name:
            found.setdefault(unquote_plus(name), []).append(unquote_plus(values[0] if values else ""))
    joined: dict[str, Any] = {}
    for name, values in found.items():
        together = values if release.lists_repeated_keys else "\0".join(values)
        joined[name] = values[0] if len(values) == 1 else together
    return joined
