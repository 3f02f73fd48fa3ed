"""What crosses the relay and what does not, on the wire."""

import asyncio
import gzip
from typing import Any

import pytest

GET = b"GET /api/v1/vms/%b HTTP/1.1\r\nHost: telar.example\r\n%b\r\n"


def answering(data: bytes) -> Any:
    async def behaviour(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(data)
        await writer.drain()

    return behaviour


async def test_identity_headers_hop_by_hop_headers_and_underscore_twins_never_reach_the_service(
    stack: Any, dial: Any
) -> None:
    client = await dial()
    hostile = (
        b"Authorization: Bearer stolen\r\nX-API-Key: k\r\nX-User-Id: 1\r\nX-User: admin\r\nX-Forwarded-User: admin\r\n"
        b"Remote-User: root\r\nX-Telar-Role: ADMIN\r\nX_User_Id: 1\r\nRemote_User: root\r\nForwarded: for=1.2.3.4\r\n"
        b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 1.2.3.4\r\nX-Original-URL: /admin\r\n"
        b"X-HTTP-Method-Override: DELETE\r\nTE: trailers\r\nKeep-Alive: 1\r\nProxy-Authorization: x\r\n"
        b"Connection: keep-alive, X-Secret-Hop\r\nX-Secret-Hop: 1\r\nX-Request-ID: forged\r\nTraceparent: forged\r\n"
        b"X-Kept: yes\r\nCookie: a=b\r\n"
    )
    await client.send(GET % (b"7?q=%2F", hostile))
    assert (await client.answer())[0] == 200
    (request,) = stack.upstream.requests
    assert request.line == b"GET /api/v1/vms/7?q=%2F HTTP/1.1"
    assert sorted(request.fields) == sorted(
        [
            (b"x-forwarded-for", b"127.0.0.1"),
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-host", b"telar.example"),
            (b"x-request-id", b"req-1"),
            (b"authorization", b"Bearer signed-by-the-gateway"),
            (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
            (b"x-kept", b"yes"),
            (b"cookie", b"a=b"),
            (b"host", b"127.0.0.1:%d" % stack.upstream.port),
        ]
    )


async def test_the_connection_header_cannot_take_away_what_the_gateway_sets(stack: Any, dial: Any) -> None:
    client = await dial()
    names = b"authorization, host, content-length, x-request-id, x-forwarded-for"
    await client.send(
        b"POST /api/v1/vms HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nConnection: " + names + b"\r\n\r\nabc"
    )
    assert (await client.answer())[0] == 200
    (request,) = stack.upstream.requests
    assert request.body == b"abc"
    for name in names.split(b", "):
        assert len(request.values(name)) == 1


async def test_an_answer_keeps_repeated_headers_and_raw_bytes_and_is_neither_decoded_nor_followed(
    stack: Any, dial: Any
) -> None:
    body = gzip.compress(b"x" * 100)
    stack.upstream.behaviours["moved"] = answering(
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Raw: caf\xe9\r\n"
        b"Content-Encoding: gzip\r\nServer: secret/1.0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    client = await dial()
    await client.send(GET % (b"moved", b""))
    status, fields = await client.head()
    assert status == 302
    names = [name for name, _ in fields]
    assert [value for name, value in fields if name == b"set-cookie"] == [b"a=1", b"b=2"]
    assert (b"x-raw", b"caf\xe9") in fields
    assert names.count(b"date") == 1
    assert b"server" not in names
    assert b"x-hop" not in names
    assert await client.reader.readexactly(len(body)) == body


async def test_head_204_304_and_206_keep_their_meaning_and_the_connection(stack: Any, dial: Any) -> None:
    behaviours = stack.upstream.behaviours
    behaviours["file"] = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nETag: x\r\n\r\n")
    behaviours["gone"] = answering(b"HTTP/1.1 204 No Content\r\n\r\n")
    behaviours["same"] = answering(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 5000\r\n\r\n")
    behaviours["part"] = answering(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n\r\nab"
    )
    behaviours["stream"] = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    client = await dial()
    for _ in range(2):
        await client.send(b"HEAD /api/v1/file HTTP/1.1\r\nHost: t\r\n\r\n")
        status, fields, _ = await client.answer(to_head=True)
        assert (status, fields[b"content-length"]) == (200, b"5000")
        await client.send(b"HEAD /api/v1/stream HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await client.answer(to_head=True))[0] == 200
        await client.send(GET % (b"gone", b""))
        assert (await client.answer())[0] == 204
        await client.send(GET % (b"same", b"If-None-Match: x\r\n"))
        status, fields, _ = await client.answer()
        assert (status, fields[b"etag"]) == (304, b"x")
        await client.send(GET % (b"part", b"Range: bytes=0-1\r\n"))
        status, fields, body = await client.answer()
        assert (status, fields[b"content-range"], body) == (206, b"bytes 0-1/5", b"ab")
    assert stack.upstream.requests[-1].values(b"range") == [b"bytes=0-1"]
    assert len({request.connection for request in stack.upstream.requests}) == 1


async def test_trailers_are_dropped_both_ways(stack: Any, dial: Any) -> None:
    async def with_trailers(request: Any, reader: Any, writer: Any) -> None:
        while await reader.readuntil(b"\r\n") != b"0\r\n":
            pass
        request.body = await reader.readuntil(b"\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Digest: 1\r\n\r\n")

    stack.upstream.behaviours["trail"] = with_trailers
    client = await dial()
    await client.send(
        b"POST /api/v1/trail HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-Kept: no\r\nAuthorization: evil\r\n\r\n"
    )
    status, _, body = await client.answer()
    assert (status, body) == (200, b"hi")
    (request,) = stack.upstream.requests
    assert request.body == b"\r\n"
    assert request.values(b"x-kept") == []
    assert request.values(b"authorization") == [b"Bearer signed-by-the-gateway"]


async def test_the_client_hears_100_continue_only_once_the_service_said_it(stack: Any, dial: Any) -> None:
    async def willing(request: Any, reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    stack.upstream.behaviours["willing"] = willing
    client = await dial()
    await client.send(b"PUT /api/v1/willing HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert (await client.head())[0] == 100
    await client.send(b"hello")
    assert (await client.answer())[0] == 201
    assert stack.upstream.requests[0].body == b"hello"


async def test_a_refusal_reaches_a_client_that_waits_for_100_without_any_100(stack: Any, dial: Any) -> None:
    stack.upstream.behaviours["full"] = answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
    client = await dial()
    await client.send(b"PUT /api/v1/full HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    status, fields, body = await client.answer()
    assert (status, body, fields[b"connection"]) == (413, b"big", b"close")


async def test_an_early_refusal_is_passed_on_while_the_upload_still_runs(stack: Any, dial: Any) -> None:
    async def refuse(_request: Any, reader: Any, writer: Any) -> None:
        await reader.readexactly(100_000)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await reader.read()

    stack.upstream.behaviours["upload"] = refuse
    client = await dial()
    await client.send(b"PUT /api/v1/upload HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n")

    async def upload() -> None:
        try:
            while True:
                await client.send(b"x" * 65536)
        except ConnectionError:
            pass

    sending = asyncio.create_task(upload())
    status, fields, body = await client.answer()
    assert (status, body, fields[b"connection"]) == (413, b"big", b"close")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize("end", [b"Connection: close\r\n\r\n", b"\r\nno request at all\r\n"])
async def test_the_last_answer_reaches_a_client_that_goes_on_sending(dial: Any, end: bytes) -> None:
    client = await dial()
    await client.send(b"GET /api/v1/a HTTP/1.1\r\nHost: t\r\n" + end)
    for _ in range(10):  # a server that closes without reading on resets the connection, and with it the answer
        await asyncio.sleep(0.02)
        await client.send(b"more of what nobody asked for\r\n\r\n")
    status, fields, body = await client.answer()
    assert (status, fields[b"connection"], body) == (200, b"close", b"ok")
    assert await client.rest() == b""


async def test_an_event_stream_is_not_buffered(stack: Any, dial: Any) -> None:
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def events(_request: Any, reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await reader.read()

    stack.upstream.behaviours["events"] = events
    client = await dial()
    await client.send(GET % (b"events", b""))
    status, fields = await client.head()
    assert (status, dict(fields)[b"transfer-encoding"]) == (200, b"chunked")
    go_on.set()
    async with asyncio.timeout(20):
        assert await client.reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"


async def test_an_http_1_0_client_gets_no_chunks(stack: Any, dial: Any) -> None:
    stack.upstream.behaviours["old"] = answering(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    client = await dial()
    await client.send(b"GET /api/v1/old HTTP/1.0\r\n\r\n")
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b"hi"


@pytest.mark.parametrize(
    "target",
    [
        b"/api/v1/../admin",
        b"/api//v1",
        b"//evil/x",
        b"/api/%2e%2e/x",
        b"/api/.%2e/x",
        b"/api/x%2fy",
        b"/api/x%5cy",
        b"/api/x%00",
        b"/api/%252e%252e/x",
        b"/api/..;/x",
        b"/api/%ff",
        b"/api/%zz",
        b"/api/./x",
        b"/api/x/..",
    ],
)
async def test_a_path_that_can_be_read_in_two_ways_is_refused(stack: Any, dial: Any, target: bytes) -> None:
    client = await dial()
    await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (await client.answer())[0] == 400
    assert stack.upstream.requests == []


@pytest.mark.parametrize("target", [b"/", b"/.well-known/jwks.json", b"/a/b/", b"/a%20b/%C3%A9?x=../%2f&y=//"])
async def test_an_ordinary_path_crosses_byte_for_byte(stack: Any, dial: Any, target: bytes) -> None:
    client = await dial()
    await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert stack.upstream.requests[0].line == b"GET " + target + b" HTTP/1.1"
