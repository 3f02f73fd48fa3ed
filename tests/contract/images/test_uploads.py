import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from libs.common.testing.serving import user_event
from services.images.api.multipart import MAX_FIELD_BYTES, MAX_PARTS
from tests.contract.images.harness import Service
from tests.corpora.images import disks

Eventually = Callable[..., Awaitable[None]]
LEFTOVERS = "SELECT (SELECT count(*) FROM uploads), (SELECT count(*) FROM images WHERE owner_id = %s)"


def nothing_is_left(service: Service, user: str, files_before: int) -> bool:
    return (
        service.rows(LEFTOVERS, user) == [(0, 0)]
        and service.used_bytes(user) == 0
        and len(service.files()) == files_before
    )


async def test_an_upload_answers_as_older_clients_read_it(service: Service) -> None:
    user = await service.new_user()
    answer = await service.upload(
        user, disks.qcow2(file_size=2_400_000), version="13", architecture="amd64", description="A\nsystem"
    )
    assert answer.status_code == 201
    document = answer.json()
    image = document["image"]
    assert document["success"] is True
    assert (image["os"], image["version"], image["architecture"]) == ("Debian", "13", "amd64")
    assert (image["size"], image["downloads"], image["status"]) == ("2.4 MB", 0, "active")
    assert len(image["created"]) == len("2025-01-05T12:34:56")
    assert image["created_at"].startswith(image["created"])
    assert image["owner_id"] == user
    assert answer.headers["location"] == f"/api/v1/images/{image['id']}"
    assert answer.headers["etag"] == image["etag"] == '"1"'


async def test_an_upload_is_told_once_with_what_the_owner_now_uses(service: Service, eventually: Eventually) -> None:
    user = await service.new_user()
    image = await service.image(user)
    await eventually(lambda: any(event.subject == image["id"] for event in service.heard))
    (event,) = [event for event in service.heard if event.subject == image["id"]]
    assert (event.type, event.owner, event.sequence) == ("images.image.activated.v1", user, 1)
    assert event.data["resource"] == {"type": "image", "id": image["id"], "name": "Debian 13"}
    assert event.data["usage"]["used"] == {"image_bytes": image["size_bytes"]}
    assert event.data["sha256"] == image["sha256"]


async def test_what_an_upload_gives_back_is_told_to_whoever_heard_of_it(
    service: Service, eventually: Eventually
) -> None:
    user = await service.new_user()
    may_end = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"--edge\r\n"
        await may_end.wait()  # and there the form ends too early

    headers = {**service.as_user(user), "content-type": "multipart/form-data; boundary=edge"}
    cut_off = asyncio.create_task(
        service.http.post(
            "/api/v1/images/upload", content=pieces(), headers={**headers, "content-length": str(1 << 20)}
        )
    )
    await eventually(lambda: service.used_bytes(user))
    image = await service.image(user)
    may_end.set()
    assert (await cut_off).status_code == 400

    def told() -> int:
        uses = [event.data["usage"] for event in service.heard if event.owner == user]
        return int(max(uses, key=lambda use: int(use["sequence"]))["used"]["image_bytes"])

    await eventually(lambda: told() == image["size_bytes"], 5)
    assert service.used_bytes(user) == image["size_bytes"]


async def test_two_owners_of_the_same_file_share_one_blob(service: Service) -> None:
    content = disks.qcow2(virtual_size=77 << 20)
    first, second = await service.new_user(), await service.new_user()
    files = len(service.files())
    one, two = await asyncio.gather(service.image(first, content), service.image(second, content))
    assert one["id"] != two["id"]
    assert len(service.files()) == files + 1
    assert service.used_bytes(first) == service.used_bytes(second) == len(content)
    for owner, image, left in ((first, one, files + 1), (second, two, files)):
        headers = service.as_user(owner)
        assert (await service.http.delete(f"/api/v1/images/{image['id']}", headers=headers)).status_code == 204
        assert len(service.files()) == left
        assert service.used_bytes(owner) == 0


async def test_the_same_file_uploaded_and_deleted_by_many_at_once_leaves_one_blob(service: Service) -> None:
    content = disks.qcow2(virtual_size=78 << 20)
    users = [await service.new_user() for _ in range(6)]
    keeper = await service.new_user()

    async def come_and_go(user: str) -> None:
        for _ in range(3):
            image = await service.image(user, content)
            await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.as_user(user))

    kept, *_ = await asyncio.gather(service.image(keeper, content), *(come_and_go(user) for user in users))
    assert [path.name.split(".")[0] for path in service.files()].count(kept["sha256"]) == 1
    answer = await service.http.get(f"/api/v1/images/{kept['id']}/download", headers=service.as_user(keeper))
    assert answer.content == content


async def test_the_fields_may_come_before_and_after_the_file(service: Service) -> None:
    user = await service.new_user()
    parts: list[tuple[str, str | bytes]] = [
        ("name", "Before"),
        ("file", disks.qcow2()),
        ("os_type", "Ubuntu"),
        ("visibility", "public"),
    ]
    answer = await service.http.post(
        "/api/v1/images/upload", headers={**service.as_user(user), **FORM}, content=form(parts)
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["image"]["name"] == "Before"
    assert answer.json()["image"]["visibility"] == "public"


FORM = {"content-type": "multipart/form-data; boundary=edge"}


def form(parts: list[tuple[str, str | bytes]], *, end: bytes = b"--edge--\r\n") -> bytes:
    body = bytearray()
    for name, value in parts:
        filename = '; filename="a.qcow2"' if isinstance(value, bytes) else ""
        body += f'--edge\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return bytes(body) + end


IMAGE: list[tuple[str, str | bytes]] = [("name", "n"), ("os_type", "o"), ("file", disks.qcow2())]


@pytest.mark.parametrize(
    ("what", "body", "status", "slug"),
    [
        ("without an end", form(IMAGE, end=b""), 400, "upload-interrupted"),
        ("without a file", form(IMAGE[:2]), 422, "invalid"),
        ("with two files", form([*IMAGE, IMAGE[2]]), 400, "malformed-upload"),
        ("with a field twice", form([*IMAGE, IMAGE[0]]), 400, "malformed-upload"),
        ("with another file", form([*IMAGE, ("icon", b"x")]), 400, "malformed-upload"),
        ("with an unknown field", form([*IMAGE, ("owner_id", "me")]), 422, "invalid"),
        ("with a status", form([*IMAGE, ("status", "active")]), 422, "invalid"),
        ("without a name", form(IMAGE[1:]), 422, "invalid"),
        ("with an empty name", form([("name", "  "), *IMAGE[1:]]), 422, "invalid"),
        ("with a NUL in its name", form([("name", "a\0b"), *IMAGE[1:]]), 422, "invalid"),
        ("with a wrong visibility", form([*IMAGE, ("visibility", "all")]), 422, "invalid"),
        ("with half a digest", form([*IMAGE, ("sha256", "abc")]), 422, "invalid"),
        ("with another digest", form([*IMAGE, ("sha256", "0" * 64)]), 422, "digest-mismatch"),
        ("with a long field", form([*IMAGE, ("description", "x" * (MAX_FIELD_BYTES + 1))]), 400, "malformed-upload"),
        ("with many parts", form([(f"f{n}", "") for n in range(MAX_PARTS + 1)]), 400, "malformed-upload"),
        ("with many part headers", b"--edge\r\n" + b"a: b\r\n" * 100_000, 400, "malformed-upload"),
        ("with a long part header", b"--edge\r\na: " + b"b" * 100_000, 400, "malformed-upload"),
        ("that is no form", b"hello", 400, "malformed-upload"),
        ("of no bytes", b"", 400, "upload-interrupted"),
        ("larger than allowed", form([*IMAGE[:2], ("file", bytes((8 << 20) + 1))]), 413, "image-too-large"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
@pytest.mark.parametrize("length_known", [True, False])
async def test_a_form_is_refused_and_nothing_is_left_over(
    service: Service, what: str, body: bytes, status: int, slug: str, *, length_known: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    user, files = await service.new_user(), len(service.files())
    answer = await service.http.post(
        "/api/v1/images/upload",
        headers={**service.as_user(user), **FORM},
        content=body if length_known else pieces(),
    )
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}"), what
    assert nothing_is_left(service, user, files)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "multipart/mixed; boundary=edge"])
async def test_what_is_not_a_form_is_an_unsupported_media_type(service: Service, content_type: str) -> None:
    user = await service.new_user()
    headers = {**service.as_user(user), "content-type": content_type}
    answer = await service.http.post("/api/v1/images/upload", headers=headers, content=form(IMAGE))
    assert answer.status_code == 415


async def test_a_length_beyond_the_limit_is_refused_before_a_byte_is_read(service: Service) -> None:
    user = await service.new_user()

    read: list[bool] = []

    async def never() -> AsyncIterator[bytes]:
        read.append(True)
        yield b""

    headers = {**service.as_user(user), **FORM, "content-length": str(9 << 20)}
    answer = await service.http.post("/api/v1/images/upload", headers=headers, content=never())
    assert answer.status_code == 413
    assert not read


async def test_the_quota_is_kept_to_the_byte(service: Service) -> None:
    content = disks.qcow2()
    user = await service.new_user(image_bytes=2 * len(content))
    await service.image(user, content)
    await service.image(user, content)
    answer = await service.upload(user, content)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/quota-exceeded")
    assert service.used_bytes(user) == 2 * len(content)


@pytest.mark.parametrize("length_known", [True, False])
async def test_parallel_uploads_never_exceed_the_quota(service: Service, *, length_known: bool) -> None:
    content = disks.raw_disk(512 * 1024)
    body = form([("name", "n"), ("os_type", "o"), ("file", content)]).replace(b"a.qcow2", b"a.img")
    user = await service.new_user(image_bytes=3 * len(content))

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async def one() -> int:
        headers = {**service.as_user(user), **FORM}
        answer = await service.http.post(
            "/api/v1/images/upload", headers=headers, content=body if length_known else pieces()
        )
        return answer.status_code

    statuses = await asyncio.gather(*(one() for _ in range(12)))
    assert set(statuses) <= {201, 409}
    made = statuses.count(201)
    assert made <= 3
    assert service.used_bytes(user) == made * len(content)
    assert service.rows("SELECT count(*) FROM uploads") == [(0,)]


async def test_a_disabled_user_cannot_upload(service: Service) -> None:

    user = await service.new_user()
    await service.bus.publish(user_event(user, sequence=2, disabled=True))
    assert (await service.upload(user)).status_code == 403


async def test_a_user_of_whom_nothing_is_known_yet_is_told_to_come_back(service: Service) -> None:
    answer = await service.upload("user-unheard-of")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_a_full_disk_is_a_507_and_nothing_is_left_over(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.images.adapters import folder_blobs  # noqa: PLC0415 - broken on purpose here alone

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    user, files = await service.new_user(), len(service.files())
    monkeypatch.setattr(folder_blobs, "_write", full)
    answer = await service.upload(user)
    assert answer.status_code == 507
    assert nothing_is_left(service, user, files)


async def test_equal_idempotency_keys_make_one_image(service: Service) -> None:
    user = await service.new_user()
    headers = {"idempotency-key": "one-image"}
    one, two = await asyncio.gather(service.upload(user, headers=headers), service.upload(user, headers=headers))
    assert one.status_code == two.status_code == 201
    assert one.json()["image"]["id"] == two.json()["image"]["id"]


async def test_a_refused_upload_can_be_sent_again_under_its_idempotency_key(service: Service) -> None:
    user = await service.new_user()
    headers = {"idempotency-key": "second-try"}
    hostile = disks.qcow2(backing=b"/etc/passwd")
    assert (await service.upload(user, hostile, headers=headers)).status_code == 422
    assert (await service.upload(user, disks.qcow2(), headers=headers)).status_code == 201


async def test_an_upload_without_a_token_is_refused_before_a_byte_is_read(service: Service) -> None:
    answer = await service.http.post("/api/v1/images/upload", headers=FORM, content=form(IMAGE))
    assert answer.status_code == 401
