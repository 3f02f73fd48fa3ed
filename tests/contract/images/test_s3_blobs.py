"""What S3 alone brings about: several writers without a lock, interrupted copies, refusals, keys, pages of a list."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from libs.common.ids import uuid7
from services.images.adapters.s3_blobs import S3BlobStore
from services.images.errors import BlobStoreFull, BlobStoreUnavailable, StagedBytesLost, UploadBusy
from tests.contract.images.s3 import PREFIX, Bucket, new_bucket, s3_server

MIB = 1 << 20
SHA256 = "ab" * 32
ONE, OTHER = b"1" * (20 * MIB), b"2" * (20 * MIB)


def store_of(bucket: Bucket) -> S3BlobStore:
    return S3BlobStore(bucket.account, max_file_bytes=1 << 34)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    return new_bucket(endpoint)


async def test_of_two_writers_the_second_is_told_and_what_counts_is_what_was_synced_first(bucket: Bucket) -> None:
    store, upload_id = store_of(bucket), uuid7()
    one, other = await store.resume(upload_id, 0), await store.resume(upload_id, 0)
    await one.write(ONE[:MIB])
    await other.write(OTHER[: 2 * MIB])
    await one.sync()
    with pytest.raises(UploadBusy):
        await other.sync()
    again = await store.resume(upload_id, MIB)
    await again.write(ONE[MIB:])
    await again.sync()
    assert b"".join([piece async for piece in again.read(0, len(ONE))]) == ONE
    with pytest.raises(UploadBusy):
        await other.sync()


async def test_what_an_overtaken_writer_puts_late_is_no_part_of_the_file(bucket: Bucket) -> None:
    store, upload_id = store_of(bucket), uuid7()
    late = await store.resume(upload_id, 0)
    await late.write(OTHER[: 3 * MIB])
    await late.sync()
    blob = await store.resume(upload_id, 0)  # drops it
    await blob.write(ONE[: 2 * MIB])
    await blob.sync()
    await late.write(OTHER[: 5 * MIB])
    await late.sync()  # beyond what is there: at 3 MiB
    await blob.write(ONE[2 * MIB :])
    await blob.sync()
    key = await store.publish(upload_id, SHA256, size_bytes=len(ONE))
    reader = await store.open(key)
    assert b"".join([piece async for piece in reader.read(0, len(ONE))]) == ONE
    assert bucket.keys() == [key]


async def test_a_copy_that_fails_takes_nothing_away_and_leaves_nothing_begun(bucket: Bucket) -> None:
    store, upload_id = store_of(bucket), uuid7()
    blob = await store.resume(upload_id, 0)
    await blob.write(ONE)
    await blob.sync()
    first, last = sorted(bucket.keys())
    name, full_key = bucket.account.bucket, f"{PREFIX}/{last}"
    kept = bucket.client.get_object(Bucket=name, Key=full_key)["Body"].read()
    bucket.client.delete_object(Bucket=name, Key=full_key)
    with pytest.raises(StagedBytesLost):
        await store.publish(upload_id, SHA256, size_bytes=len(ONE))
    bucket.client.put_object(Bucket=name, Key=full_key, Body=kept)
    # As if another replica's publish, overtaken, failed just after this one's: the object stays.
    key = await store.publish(upload_id, SHA256, size_bytes=len(ONE))
    with pytest.raises(StagedBytesLost):
        await store.publish(upload_id, SHA256, size_bytes=len(ONE) + 1)
    assert bucket.keys() == [key]
    assert bucket.multiparts() == []
    assert first.startswith("staging/")


async def test_a_link_is_signed_for_the_address_that_clients_know(bucket: Bucket) -> None:
    account = replace(bucket.account, link_endpoint="https://files.example.org")
    store = S3BlobStore(account, max_file_bytes=1)
    link = await store.link("blobs/x", filename="a b.img", expires_s=60) or ""
    assert link.startswith(f"https://files.example.org/{account.bucket}/{PREFIX}/blobs/x?")
    query = parse_qs(urlsplit(link).query)
    assert query["X-Amz-Expires"] == ["60"]
    assert query["response-content-disposition"] == ["attachment; filename=\"a b.img\"; filename*=UTF-8''a%20b.img"]


async def test_there_are_no_links_where_clients_cannot_go_or_no_keys_are_known(bucket: Bucket) -> None:
    closed = S3BlobStore(bucket.account, max_file_bytes=1, gives_links=False)
    keyless = S3BlobStore(replace(bucket.account, access_key_id=None, secret_access_key=None), max_file_bytes=1)
    for store in (closed, keyless):
        assert await store.link("blobs/x", filename="a.img", expires_s=60) is None


class Refusing(ThreadingHTTPServer):
    """An S3 server that answers everything with `status` and `document`, or what `pages` has for a query."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refusal)
        self.status, self.document = 200, b""
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []


class _Refusal(BaseHTTPRequestHandler):
    server: Refusing
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.append(f"{self.command} {self.path}")
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        document = self.server.document
        if "uploads" in query and self.command == "GET":
            document = self.server.pages[query.get("key-marker", [""])[0]]
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 - the names that http.server asks for


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    server = Refusing()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def refused(refusing: Refusing, bucket: Bucket) -> S3BlobStore:
    endpoint = f"http://127.0.0.1:{refusing.server_port}"
    return S3BlobStore(replace(bucket.account, endpoint=endpoint), max_file_bytes=1 << 34)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (507, "XMinioStorageFull", BlobStoreFull),
        (403, "QuotaExceeded", BlobStoreFull),
        (403, "AccessDenied", BlobStoreUnavailable),
        (404, "NoSuchBucket", BlobStoreUnavailable),
        (500, "InternalError", BlobStoreUnavailable),
    ],
)
async def test_what_s3_refuses_is_told_in_our_words(
    refusing: Refusing, refused: S3BlobStore, status: int, code: str, expected: type[Exception]
) -> None:
    refusing.status, refusing.document = status, f"<Error><Code>{code}</Code></Error>".encode()

    async def staging() -> None:
        staged = await refused.stage(uuid7())
        await staged.write(bytes(MIB))
        await staged.publish(SHA256)

    async def resuming() -> None:
        blob = await refused.resume(uuid7(), 0)
        await blob.write(bytes(MIB))
        await blob.sync()

    outcomes = await asyncio.gather(refused.prepare(), staging(), resuming(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [expected] * 3
    with pytest.raises(expected):
        await refused.check()


async def test_a_server_that_is_not_there_is_told_in_our_words(bucket: Bucket) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusal) as gone:
        endpoint = f"http://127.0.0.1:{gone.server_port}"
    store = S3BlobStore(replace(bucket.account, endpoint=endpoint), max_file_bytes=1)
    with pytest.raises(BlobStoreUnavailable):
        await store.check()
    with pytest.raises(BlobStoreUnavailable):
        await store.staged()


async def test_every_page_of_unfinished_uploads_is_read_and_foreign_ones_are_left(
    refusing: Refusing, refused: S3BlobStore
) -> None:
    ids = [uuid7(), uuid7()]

    def page(key: str, more: str) -> bytes:
        upload = f"<Upload><Key>{PREFIX}/{key}</Key><UploadId>id of {key}</UploadId></Upload>"
        markers = f"<IsTruncated>true</IsTruncated><NextKeyMarker>{more}</NextKeyMarker>" if more else ""
        name_space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if more else ""  # some stores leave it out
        return f"<ListMultipartUploadsResult {name_space}>{markers}{upload}</ListMultipartUploadsResult>".encode()

    refusing.pages = {
        "": page(f"blobs/{ids[0]}", "two"),
        "two": page("blobs/somebody else's", "three"),
        "three": page(f"blobs/{ids[1]}", ""),
    }
    refusing.document = (
        b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>x</Name>'
        b"<IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    found = list(await refused.staged())
    assert [upload_id for upload_id, _ in found] == ids
    refusing.asked.clear()
    await refused.delete(found[0][1])
    (asked,) = refusing.asked
    assert asked.startswith("DELETE ")
    assert parse_qs(urlsplit(asked).query)["uploadId"] == [f"id of blobs/{ids[0]}"]
