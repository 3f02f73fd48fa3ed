"""tus 1.0.0, row by row: what is asked for, what is refused, and with which words."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.contract.images.harness import Service
from tests.contract.images.tus_client import BYTES, DESCRIBED, MIB, Tus, checksum, encoded
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
DISK = disks.raw_disk(3 * MIB)
ABSENT = "/api/v1/uploads/00000000-0000-7000-8000-000000000000"


@pytest.fixture
async def tus(service: Service) -> Tus:
    return Tus(service, await service.new_user())


def slug(answer: httpx.Response) -> str:
    document: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    return str(document["type"]).removeprefix("/problems/")


def wrong_fields(answer: httpx.Response) -> set[str]:
    assert (answer.status_code, slug(answer)) == (422, "invalid"), answer.text
    return {str(error["pointer"]) for error in answer.json()["errors"]}


async def test_anybody_may_ask_what_the_server_knows_of_tus(service: Service) -> None:
    answer = await service.http.options("/api/v1/uploads")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["tus-resumable"] == answer.headers["tus-version"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {
        *("creation", "creation-with-upload", "expiration", "checksum", "termination"),
    }
    assert answer.headers["tus-max-size"] == str(8 * MIB)
    assert set(answer.headers["tus-checksum-algorithm"].split(",")) == {"sha1", "sha256", "md5"}


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0.1", ""])
async def test_another_version_of_tus_is_refused_and_ours_is_told(tus: Tus, version: str | None) -> None:
    path = await tus.begin(len(DISK))
    for answer in (
        await tus.create(len(DISK), tus_resumable=version),
        await tus.patch(path, 0, DISK, tus_resumable=version),
        await tus.head(path, tus_resumable=version),
        await tus.delete(path, tus_resumable=version),
    ):
        assert answer.status_code == 412
        assert answer.headers["tus-version"] == "1.0.0"
    assert await tus.offset(path) == 0


async def test_every_answer_says_which_version_of_tus_it_is_of(service: Service, tus: Tus) -> None:
    answers = [
        await service.http.post("/api/v1/uploads"),
        await service.http.get("/api/v1/uploads"),
        await tus.head(ABSENT),
        await tus.patch(ABSENT, 0, b"x"),
        await tus.create(None),
        await tus.create(len(DISK)),
    ]
    assert [answer.status_code for answer in answers] == [401, 405, 404, 404, 400, 201]
    assert all(answer.headers["tus-resumable"] == "1.0.0" for answer in answers)
    assert "tus-resumable" not in (await service.http.get("/api/v1/images", headers=tus.headers)).headers


async def test_a_new_upload_reserves_its_whole_length_and_records_a_queued_image(
    service: Service, tus: Tus, eventually: Eventually
) -> None:
    answer = await tus.create(len(DISK))
    assert (answer.status_code, answer.content) == (201, b"")
    path = answer.headers["location"]
    assert "upload-offset" not in answer.headers
    looked = await tus.head(path)
    assert looked.status_code == 200
    assert looked.headers["upload-offset"] == "0"
    assert looked.headers["upload-length"] == str(len(DISK))
    assert looked.headers["upload-metadata"] == DESCRIBED
    assert looked.headers["upload-expires"] == answer.headers["upload-expires"]
    assert looked.headers["upload-expires"].endswith(" GMT")
    assert looked.headers["cache-control"] == "no-store"
    image = await tus.image(path)
    assert path == f"/api/v1/uploads/{image['id']}"
    assert (image["status"], image["name"], image["size_bytes"]) == ("queued", "disk.img", len(DISK))
    assert service.used_bytes(tus.user_id) == len(DISK)
    await eventually(lambda: [event.type for event in service.heard if event.subject == image["id"]])
    (event,) = [event for event in service.heard if event.subject == image["id"]]
    assert (event.type, event.owner) == ("images.image.created.v1", tus.user_id)
    assert event.data["usage"]["used"] == {"image_bytes": len(DISK)}


async def test_metadata_describe_the_image_and_what_says_nothing_of_it_is_left_aside(tus: Tus) -> None:
    metadata = encoded(
        filename="disk.IMG",
        name="Débian 13",
        os_type="Debian",
        version="13",
        architecture="aarch64",
        description="Two\nlines",
        visibility="public",
        tags="server, small",
        min_disk_gib="4",
        min_memory_mib="512",
        filetype="application/octet-stream",
        owner_id="somebody",
        status="active",
    )
    image = await tus.image(await tus.begin(len(DISK), f"{metadata},relativePath,is_confidential"))
    assert image["name"] == "Débian 13"
    assert (image["os_type"], image["version"], image["architecture"]) == ("Debian", "13", "aarch64")
    assert (image["description"], image["visibility"], image["format"]) == ("Two\nlines", "public", "raw")
    assert (image["tags"], image["min_disk_gib"], image["min_memory_mib"]) == (["server", "small"], 4, 512)
    assert (image["owner_id"], image["status"]) == (tus.user_id, "queued")


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        (None, {"filename", "name", "os_type"}),
        ("", {"filename", "name", "os_type"}),
        (encoded(filename="disk.img"), {"os_type"}),
        (encoded(filename="disk.exe", os_type="Debian"), {"filename"}),
        (encoded(name="disk.img", os_type="Debian"), {"filename"}),
        (DESCRIBED + "," + encoded(visibility="all", min_disk_gib="-1", sha256="abc", architecture="a b"), {
            *("visibility", "min_disk_gib", "sha256", "architecture"),
        }),
        (DESCRIBED + ",name not*base64", {"name"}),
        (DESCRIBED + ",name YWJj=", {"name"}),
        (DESCRIBED + ",name YWJj YWJj", {"name"}),
        (DESCRIBED + ",name /w==", {"name"}),
        (DESCRIBED + "," + encoded(name="a\0b"), {"name"}),
        (DESCRIBED + "," + encoded(filename="other.img"), {"filename"}),
        (DESCRIBED + ",filetype *", {"filetype"}),
        (DESCRIBED + ",", {""}),
        (DESCRIBED + ",a\x7fb YWJj", {""}),
    ],
)  # fmt: skip
async def test_each_wrong_field_of_the_metadata_is_named(
    service: Service, tus: Tus, metadata: str | None, wrong: set[str]
) -> None:
    answer = await tus.create(len(DISK), metadata)
    assert wrong_fields(answer) == {f"/header/upload-metadata/{name}".rstrip("/") for name in wrong}
    assert service.used_bytes(tus.user_id) == 0


@pytest.mark.parametrize(
    ("length", "headers", "status", "told"),
    [
        (None, {}, 400, "malformed-tus-request"),
        (None, {"upload_defer_length": "1"}, 400, "malformed-tus-request"),
        (None, {"upload_length": "-1"}, 400, "malformed-tus-request"),
        (None, {"upload_length": "1e6"}, 400, "malformed-tus-request"),
        (None, {"upload_length": "9" * 40}, 400, "malformed-tus-request"),
        (8 * MIB + 1, {}, 413, "image-too-large"),
        (0, {}, 422, "invalid"),
        (511, {}, 422, "invalid"),
    ],
)
async def test_a_length_that_cannot_be_taken_is_refused_and_nothing_is_reserved(
    service: Service, tus: Tus, length: int | None, headers: dict[str, str], status: int, told: str
) -> None:
    answer = await tus.create(length, **headers)
    assert (answer.status_code, slug(answer)) == (status, told)
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", tus.user_id) == [(0,)]


async def test_what_the_quota_has_left_is_told(service: Service) -> None:
    tus = Tus(service, await service.new_user(image_bytes=5 * MIB))
    await tus.begin(3 * MIB)
    answer = await tus.create(3 * MIB)
    assert (answer.status_code, slug(answer)) == (409, "quota-exceeded")
    assert str(2 * MIB) in answer.json()["detail"]
    assert service.used_bytes(tus.user_id) == 3 * MIB


async def test_a_body_that_is_not_the_files_bytes_is_refused(tus: Tus) -> None:
    answer = await tus.create(len(DISK), content=b"{}", content_type="application/json")
    assert (answer.status_code, slug(answer)) == (415, "not-tus-bytes")
    too_long = await tus.create(len(DISK), content=bytes(2 * MIB), content_type="application/json")
    assert (too_long.status_code, slug(too_long)) == (413, "too-large")


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "multipart/form-data; boundary=x"])
async def test_bytes_of_another_media_type_are_refused(tus: Tus, content_type: str | None) -> None:
    path = await tus.begin(len(DISK))
    answer = await tus.patch(path, 0, DISK, content_type=content_type)
    assert (answer.status_code, slug(answer)) == (415, "not-tus-bytes")
    assert await tus.offset(path) == 0


async def test_bytes_from_another_offset_are_refused_and_the_right_one_is_told(tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    assert (await tus.patch(path, 0, DISK[:MIB])).headers["upload-offset"] == str(MIB)
    for offset in (0, MIB - 1, MIB + 1, 10**17):
        answer = await tus.patch(path, offset, DISK[:100])
        assert (answer.status_code, slug(answer)) == (409, "upload-offset-mismatch")
        assert answer.headers["upload-offset"] == str(MIB)
        assert str(MIB) in answer.json()["detail"]
    for nonsense in (None, "", "-1", "+1", "1.0", "0x10"):
        answer = await tus.patch(path, MIB, b"x", upload_offset=nonsense)
        assert (answer.status_code, slug(answer)) == (400, "malformed-tus-request"), nonsense
    assert await tus.offset(path) == MIB


@pytest.mark.parametrize("length_known", [True, False])
async def test_more_bytes_than_the_length_are_refused(tus: Tus, *, length_known: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(DISK), 65_536):
            yield DISK[start : start + 65_536]
        yield b"x"

    path = await tus.begin(len(DISK))
    answer = await tus.patch(path, 0, DISK + b"x" if length_known else pieces())
    assert (answer.status_code, slug(answer)) == (413, "upload-part-too-long")
    assert await tus.offset(path) < len(DISK)
    answer = await tus.patch(path, await tus.offset(path), DISK[await tus.offset(path) :])
    assert answer.status_code == 204


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
async def test_bytes_with_another_checksum_do_not_count(tus: Tus, algorithm: str) -> None:
    path = await tus.begin(len(DISK))
    first, rest = DISK[:MIB], DISK[MIB:]
    assert (await tus.patch(path, 0, first, upload_checksum=checksum(algorithm, first))).status_code == 204
    changed = b"!" + rest[1:]
    answer = await tus.patch(path, MIB, changed, upload_checksum=checksum(algorithm, rest))
    assert (answer.status_code, slug(answer)) == (460, "checksum-mismatch")
    assert await tus.offset(path) == MIB
    answer = await tus.patch(path, MIB, rest, upload_checksum=checksum(algorithm, rest))
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(DISK)))


@pytest.mark.parametrize(
    "told",
    ["", "sha1", "sha512 " + "A" * 86 + "==", "crc32 AAAA", "sha1 AAAA", "sha1 *", "SHA1 " + "A" * 27 + "="],
)
async def test_a_checksum_that_cannot_be_one_is_malformed(tus: Tus, told: str) -> None:
    path = await tus.begin(len(DISK))
    answer = await tus.patch(path, 0, DISK, upload_checksum=told)
    assert (answer.status_code, slug(answer)) == (400, "malformed-tus-request")
    assert await tus.offset(path) == 0


async def test_the_first_bytes_may_come_with_the_creation(tus: Tus, eventually: Eventually) -> None:
    answer = await tus.create(len(DISK), content=DISK[:MIB], upload_checksum=checksum("sha1", DISK[:MIB]))
    path = answer.headers["location"]
    assert (answer.status_code, answer.content, answer.headers["upload-offset"]) == (201, b"", str(MIB))
    assert (await tus.image(path))["status"] == "uploading"
    assert (await tus.patch(path, MIB, DISK[MIB:])).status_code == 204
    whole = await tus.create(len(DISK), content=DISK)
    assert (whole.status_code, whole.headers["upload-offset"]) == (201, str(len(DISK)))
    for each in (path, whole.headers["location"]):
        await eventually(lambda each=each: tus.is_now(each, "active"))


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (DISK, {"upload_checksum": checksum("sha1", b"other")}, 460),
        (DISK, {"upload_checksum": "crc32 AAAA"}, 400),
        (DISK + b"x", {}, 413),
    ],
)
async def test_a_creation_whose_bytes_are_refused_leaves_nothing(
    service: Service, tus: Tus, content: bytes, headers: dict[str, str], status: int
) -> None:
    files = len(service.files())
    assert (await tus.create(len(DISK), content=content, **headers)).status_code == status
    assert service.used_bytes(tus.user_id) == 0
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", tus.user_id) == [(0,)]
    assert len(service.files()) == files


async def test_another_users_upload_does_not_exist(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK), encoded(filename="a.img", os_type="x", visibility="public"))
    other = Tus(service, await service.new_user())
    for answer, missing in (
        (await other.patch(path, 0, DISK), await other.patch(ABSENT, 0, DISK)),
        (await other.delete(path), await other.delete(ABSENT)),
    ):
        assert (answer.status_code, slug(answer)) == (404, "upload-not-found")
        assert answer.json()["detail"] == missing.json()["detail"]
    assert (await other.head(path)).status_code == 404
    assert await Tus(service, "boss", role="ADMIN").offset(path) == 0
    assert (await service.http.head(path, headers={"tus-resumable": "1.0.0"})).status_code == 401


async def test_an_image_that_was_not_uploaded_with_tus_is_no_upload(service: Service, tus: Tus) -> None:
    image = await service.image(tus.user_id)
    path = f"/api/v1/uploads/{image['id']}"
    assert (await tus.head(path)).status_code == 404
    assert (await tus.delete(path)).status_code == 404
    assert (await tus.patch(path, 0, b"x")).status_code == 404


async def test_a_key_that_may_only_read_may_only_look(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    reader = Tus(service, tus.user_id, scopes=("images:read",))
    assert await reader.offset(path) == 0
    statuses = [
        (await reader.create(len(DISK))).status_code,
        (await reader.patch(path, 0, DISK)).status_code,
        (await reader.delete(path)).status_code,
    ]
    assert statuses == [403, 403, 403]


async def test_a_method_override_is_not_honoured(service: Service, tus: Tus) -> None:
    path = await tus.begin(len(DISK))
    headers = {**tus.headers, "x-http-method-override": "PATCH", "upload-offset": "0", "content-type": BYTES}
    assert (await service.http.post(path, headers=headers, content=DISK)).status_code == 405
    assert await tus.offset(path) == 0


async def test_equal_idempotency_keys_begin_one_upload(service: Service, tus: Tus) -> None:
    first = await tus.create(len(DISK), idempotency_key="one-upload")
    again = await tus.create(len(DISK), idempotency_key="one-upload")
    assert (first.status_code, again.status_code) == (201, 201)
    for name in ("location", "upload-expires", "tus-resumable"):
        assert first.headers[name] == again.headers[name]
    assert again.headers["idempotency-replayed"] == "true"
    assert service.used_bytes(tus.user_id) == len(DISK)
    for other in (
        await tus.create(len(DISK) + 1, idempotency_key="one-upload"),
        await tus.create(len(DISK), encoded(filename="other.img", os_type="x"), idempotency_key="one-upload"),
    ):
        assert (other.status_code, slug(other)) == (422, "idempotency-key-reused")


async def test_a_refused_creation_leaves_its_idempotency_key_free(tus: Tus) -> None:
    told = {"idempotency_key": "second-try", "upload_checksum": checksum("sha1", DISK)}
    assert (await tus.create(len(DISK), content=b"!" + DISK[1:], **told)).status_code == 460
    answer = await tus.create(len(DISK), content=DISK, **told)
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, str(len(DISK)))
    again = await tus.create(len(DISK), content=DISK, **told)
    assert again.headers["location"] == answer.headers["location"]
    assert again.headers["upload-offset"] == str(len(DISK))


async def test_the_document_describes_the_routes(service: Service) -> None:
    paths = json.loads((await service.http.get("/openapi.json")).content)["paths"]
    assert set(paths["/api/v1/uploads"]) == {"options", "post"}
    assert set(paths["/api/v1/uploads/{upload_id}"]) == {"head", "patch", "delete"}
    refusals = set(paths["/api/v1/uploads/{upload_id}"]["patch"]["responses"])
    assert {"404", "409", "410", "412", "413", "415", "423", "460", "507"} <= refusals
