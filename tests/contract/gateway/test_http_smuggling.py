"""The smuggling corpus on raw sockets: real server, real relay, an upstream that records every byte."""

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parents[2] / "corpora" / "http_smuggling" / "requests.json"
CASES: list[dict[str, Any]] = json.loads(CORPUS.read_text())


def test_the_corpus_is_large_enough_and_its_names_are_unique() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert sum(case["refused"] for case in CASES) >= 60


@pytest.mark.parametrize("pieces", ["whole", "byte by byte"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_an_ambiguous_request_is_refused_and_nothing_is_smuggled(
    stack: Any, dial: Any, case: dict[str, Any], pieces: str
) -> None:
    data = b"".join(text.encode("latin-1") * times for text, times in case["parts"])
    client = await dial()
    try:
        if pieces == "whole" or len(data) > 4096:
            await client.send(data)
        else:
            for byte in data:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
    except ConnectionError:
        pieces = "cut off"  # closed while we were still sending; the reset may have swallowed the answer
    if case["refused"] and case.get("closes", True):
        answers = await client.rest()
    else:
        # A marker request on the same connection tells that everything before it has been dealt with.
        with contextlib.suppress(ConnectionError):
            await client.send(b"GET /api/v1/marker HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        answers = await client.rest()
    if answers or pieces != "cut off":
        assert int(answers.split(b" ", 2)[1]) in case["status"]
    if case["refused"] and answers:
        assert b"\r\nconnection: close\r\n" in answers or not case.get("closes", True)
        assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answers)) == (1 if case.get("closes", True) else 2)
    requests = [request for request in stack.upstream.requests if b"/marker" not in request.line]
    # A request whose body turned out to be broken may have begun; it never looks whole and leaves no bytes behind.
    assert sum(request.complete for request in requests) == case["reaches"]
    assert not any(b"/smuggled" in request.line for request in requests)
    assert stack.upstream.garbage == []
