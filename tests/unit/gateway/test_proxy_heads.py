"""What of a request's head crosses, told without a network."""

from typing import Any

import pytest

from gateway.proxy.forwarded import TrustedProxies
from gateway.proxy.headers import answer_fields, handshake_fields, request_head
from gateway.proxy.target import AmbiguousPath, checked_target


def scope(*headers: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "client": ("192.0.2.9", 4711),
        "raw_path": b"/api/v1/vms",
        "query_string": b"",
        "headers": list(headers),
    } | changes


def head_of(a_scope: dict[str, Any], **changes: Any) -> Any:
    values = {"authorization": b"Bearer x", "request_id": b"r", "traceparent": b"t", "forwarded": b""} | changes
    return request_head(a_scope, b"/p", **values)


def test_a_request_head_ends_where_the_host_line_of_the_endpoint_begins() -> None:
    head = head_of(scope((b"accept", b"*/*")))
    lines = b"x-request-id: r\r\nauthorization: Bearer x\r\ntraceparent: t\r\naccept: */*\r\n"
    assert head.data == b"GET /p HTTP/1.1\r\n" + lines
    assert (head.length_bytes, head.expects_continue) == (0, False)


def test_an_anonymous_call_carries_no_authorization_whatever_the_client_sent() -> None:
    head = head_of(scope((b"authorization", b"Basic x"), (b"x-api-key", b"k")), authorization=b"", traceparent=b"")
    assert head.data == b"GET /p HTTP/1.1\r\nx-request-id: r\r\n"


@pytest.mark.parametrize(
    ("method", "headers", "line", "length"),
    [
        ("POST", [(b"content-length", b"007")], b"content-length: 7\r\n", 7),
        ("POST", [], b"content-length: 0\r\n", 0),
        ("PUT", [(b"transfer-encoding", b"Chunked")], b"transfer-encoding: chunked\r\n", None),
        ("GET", [(b"content-length", b"0")], b"", 0),
        ("GET", [(b"content-length", b"2"), (b"connection", b"content-length")], b"content-length: 2\r\n", 2),
    ],
)
def test_the_body_is_framed_anew(
    method: str, headers: list[tuple[bytes, bytes]], line: bytes, length: int | None
) -> None:
    head = head_of(scope(*headers, method=method))
    assert head.length_bytes == length
    assert head.data.partition(b"traceparent: t\r\n")[2] == line


def test_expect_crosses_only_with_a_body() -> None:
    expect = (b"expect", b"100-Continue")
    assert head_of(scope(expect, (b"content-length", b"9"))).expects_continue
    assert not head_of(scope(expect)).expects_continue
    assert b"expect" not in head_of(scope(expect)).data


def test_a_field_named_by_any_connection_header_is_dropped() -> None:
    fields = [(b"connection", b"close"), (b"a", b"1"), (b"connection", b"Upgrade , A"), (b"b", b"2")]
    assert head_of(scope(*fields)).data.endswith(b"traceparent: t\r\nb: 2\r\n")
    assert handshake_fields(scope(*fields)) == [("b", "2")]


def test_an_answer_without_content_loses_a_length_that_the_server_would_take_for_a_promise() -> None:
    fields = [(b"content-length", b"5"), (b"etag", b"x")]
    assert answer_fields(fields, status=304) == ([(b"etag", b"x")], True)
    assert answer_fields(fields, status=200) == (fields, True)
    assert answer_fields([(b"etag", b"x")], status=200) == ([(b"etag", b"x")], False)
    assert answer_fields([(b"transfer-encoding", b"gzip, chunked")], status=200) == ([], False)


PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("192.0.2.9", b"1.2.3.4", "192.0.2.9"),
        ("10.0.0.1", b"1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", b"6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", b"6.6.6.6, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("::ffff:10.0.0.1", b"2001:db8::1", "2001:db8::1"),
        ("fd00::1", b"1.2.3.4", "1.2.3.4"),
    ],
)
def test_only_a_configured_proxy_is_believed_about_the_client(peer: str, forwarded_for: bytes, client: str) -> None:
    asked = scope((b"x-forwarded-for", forwarded_for), client=(peer, 1))
    assert PROXIES.client(asked) == client
    assert PROXIES.fields(asked).startswith(b"x-forwarded-for: " + client.encode() + b"\r\n")


def test_scheme_and_host_come_from_a_trusted_proxy_or_from_the_connection() -> None:
    told = [(b"host", b"inner"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"telar.example")]
    assert PROXIES.fields(scope(*told, client=("10.0.0.1", 1))) == (
        b"x-forwarded-for: 10.0.0.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: telar.example\r\n"
    )
    assert PROXIES.fields(scope(*told, scheme="ws")) == (
        b"x-forwarded-for: 192.0.2.9\r\nx-forwarded-proto: http\r\nx-forwarded-host: inner\r\n"
    )


@pytest.mark.parametrize(
    "path", [b"", b"*", b"api", b"http://evil/x", b"/a\\b", b"/a b", b"/a\xffb", b"/a/%2E/b", b"/%"]
)
def test_a_target_that_is_not_in_origin_form_is_refused(path: bytes) -> None:
    with pytest.raises(AmbiguousPath):
        checked_target(scope(raw_path=path))


def test_a_query_must_be_printable_ascii() -> None:
    assert checked_target(scope(query_string=b"a=%00&b=../")) == b"/api/v1/vms?a=%00&b=../"
    for query in (b"a b", b"\xff", b"a\r\nX: y"):
        with pytest.raises(AmbiguousPath):
            checked_target(scope(query_string=query))
