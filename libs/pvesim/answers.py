"""Printing answers: the JSON envelope and its siblings, error texts in the reason phrase, keys in no fixed order."""

import json
import random
from email.utils import formatdate
from typing import Any

from starlette.responses import Response

from libs.pvesim.endpoints import Answer
from libs.pvesim.errors import BAD_REQUEST, NOT_IMPLEMENTED, SERVER_ERROR, UNSUPPORTED_BODY, PveError
from libs.pvesim.settings import LabSettings
from libs.pvesim.tunnel import REASON_HEADER

FORMATS = ("json", "extjs", "spiceconfig")
_OK = 200
_SHOWN = {BAD_REQUEST, SERVER_ERROR, NOT_IMPLEMENTED, UNSUPPORTED_BODY}
_SERVER = "pve-api-daemon/3.0"


class Printer:
    """Makes responses in one of the `FORMATS`."""

    def __init__(self, settings: LabSettings) -> None:
        self._settings = settings
        self._rng = random.Random(settings.seed)  # noqa: S311  (key order, not a secret)

    def success(self, form: str, result: Any) -> Response:
        answer = result if isinstance(result, Answer) else Answer(result)
        if form == "spiceconfig" and isinstance(answer.data, dict):
            lines = ["[virt-viewer]", *(f"{key}={value}" for key, value in sorted(answer.data.items())), ""]
            response = Response("\n".join(lines), media_type="application/x-virt-viewer;charset=UTF-8")
            return self._worded(response, _OK, "OK")
        body = {"data": answer.data, **answer.attributes}
        return self._json(_OK, "OK", body | {"success": 1} if form == "extjs" else body)

    def failure(self, form: str, failure: PveError) -> Response:
        first_line = failure.text.split("\n", 1)[0]
        if "\r" in first_line:
            return self._plain(BAD_REQUEST, "Bad Request", b"")
        if failure.bare:
            shown = failure.status in _SHOWN and self._settings.words_errors_in_json
            return self._plain(failure.status, first_line, failure.text.encode() if shown else b"")
        body: dict[str, Any] = {"data": None}
        if failure.errors is not None:
            body["errors"] = failure.errors
        text = failure.text if failure.text.endswith("\n") else failure.text + "\n"
        if form == "extjs":
            return self._json(_OK, "OK", body | {"success": 0, "status": failure.status, "message": text})
        if self._settings.words_errors_in_json:
            body["message"] = text
        return self._json(failure.status, first_line, body)

    def _plain(self, status: int, reason: str, body: bytes) -> Response:
        return self._worded(Response(body, status_code=status), status, reason)

    def _json(self, status: int, reason: str, body: dict[str, Any]) -> Response:
        content = json.dumps(self._shaken(body), ensure_ascii=False).encode()
        response = Response(content, status_code=status, media_type="application/json;charset=UTF-8")
        response.headers["cache-control"] = "max-age=0"
        return self._worded(response, status, reason)

    def _worded(self, response: Response, status: int, reason: str) -> Response:
        phrase = reason.encode("utf-8").decode("latin-1")
        response.raw_headers.append((REASON_HEADER, phrase.encode("latin-1")))
        response.headers["server"] = _SERVER
        response.headers["date"] = formatdate(usegmt=True)
        if status >= BAD_REQUEST:
            response.headers["connection"] = "close"
        return response

    def _shaken(self, value: Any) -> Any:
        """Keys in no particular order; in the loose mode, whole numbers as numbers or as text."""
        if isinstance(value, dict):
            items = list(value.items())
            turn = self._rng.randrange(len(items)) if items else 0
            return {key: self._shaken(item) for key, item in items[turn:] + items[:turn]}
        if isinstance(value, list):
            return [self._shaken(item) for item in value]
        if self._settings.loose_types and type(value) is int and self._rng.random() < 0.5:  # noqa: PLR2004  (a coin)
            return str(value)
        return value
