"""Conversions with the real qemu-img, through the whole service."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.qemu_img import DRIVERS
from services.images.domain import Format
from tests.contract.images.converting import (
    CREATED,
    EXTENSIONS,
    MIB,
    QEMU_IMG,
    a_disk,
    as_format,
    content,
    convert,
    converted,
    failed,
    is_same_disk,
    needs_qemu_img,
    program,
    work_files,
)
from tests.contract.images.harness import Service, running
from tests.contract.images.importing import ended, provenance
from tests.corpora.images import disks

pytestmark = needs_qemu_img

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
async def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(database_url, tmp_path_factory.mktemp("images"), max_file_size=128 * MIB) as service:
        yield service


PAIRS = [(one, other) for one in EXTENSIONS for other in EXTENSIONS if one != other]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_a_converted_image_holds_the_same_disk(
    service: Service, tmp_path: Path, source: str, target: str
) -> None:
    user, disk = await service.new_user(), a_disk()
    original = await service.image(user, as_format(tmp_path, disk, source), filename=f"d.{EXTENSIONS[source]}")
    image = await converted(service, user, original["id"], target)
    assert (image["status"], image["format"], image["derived_from"]) == ("active", target, original["id"])
    assert image["virtual_size_bytes"] == original["virtual_size_bytes"] == len(disk)
    assert is_same_disk(tmp_path, disk, await content(service, user, image["id"]), target)
    assert service.used_bytes(user) == original["size_bytes"] + image["size_bytes"]
    assert work_files(service) == []
    told = provenance(service, image["id"])
    assert (told["kind"], told["source_image_id"], told["source_sha256"]) == (
        *("conversion", original["id"]),
        original["sha256"],
    )
    arguments = ["convert", "-p", "-f", DRIVERS[Format(source)], "-O", DRIVERS[Format(target)]]
    assert told["arguments"] == [*arguments, *CREATED.get(target, ()), "source", "output"]
    assert told["qemu_img"][0].isdigit()


async def test_a_qcow2_can_be_compressed(service: Service, tmp_path: Path) -> None:
    user, disk = await service.new_user(), disks.mbr_disk(MIB) + b"telar " * 3_000_000
    disk = disk[: 16 * MIB]
    original = await service.image(user, disk, filename="d.img")
    plain = await converted(service, user, original["id"], "qcow2")
    small = await converted(service, user, original["id"], "qcow2", compress=True)
    assert small["size_bytes"] < plain["size_bytes"] / 10
    assert is_same_disk(tmp_path, disk, await content(service, user, small["id"]), "qcow2")


async def test_a_conversion_is_answered_at_once_with_what_it_will_make(service: Service) -> None:
    user = await service.new_user()
    original = await service.image(
        user, a_disk(), filename="d.img", version="13", tags="lts,cloud", min_disk_gib="3", visibility="public"
    )
    answer = await convert(service, user, original["id"], "qcow2", name="Smaller")
    document = answer.json()
    assert answer.headers["location"] == f"/api/v1/operations/{document['id']}"
    assert (document["kind"], document["resource"]["id"]) == ("image.convert", document["image"]["id"])
    image = document["image"]
    assert (image["status"], image["name"], image["os"], image["version"]) == ("queued", "Smaller", "Debian", "13")
    assert (image["tags"], image["min_disk_gib"], image["visibility"]) == (["lts", "cloud"], 3, "private")
    await ended(service, user, document["id"])


async def test_whoever_may_read_an_image_may_convert_it_into_one_of_their_own(service: Service) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    public = await service.image(owner, a_disk(), filename="d.img", visibility="public")
    image = await converted(service, reader, public["id"], "qcow2")
    assert (image["owner_id"], image["name"], image["derived_from"]) == (reader, "Debian 13", public["id"])
    assert service.used_bytes(owner) == public["size_bytes"]
    assert service.used_bytes(reader) == image["size_bytes"]
    private = await service.image(owner, a_disk(), filename="d.img")
    assert (await convert(service, reader, private["id"], "qcow2")).status_code == 404


async def test_what_makes_no_sense_is_refused_with_words(service: Service) -> None:
    user = await service.new_user()
    raw = await service.image(user, a_disk(), filename="d.img")
    iso = await service.image(user, disks.iso(), filename="d.iso")
    for image_id, wish, status, words in (
        (iso["id"], {"format": "raw"}, 409, "a disc and not a disk"),
        (raw["id"], {"format": "iso"}, 422, "cannot become an ISO"),
        (raw["id"], {"format": "raw"}, 422, "raw already"),
        (raw["id"], {"format": "vmdk", "compress": True}, 422, "only qcow2 can be compressed"),
        (raw["id"], {"format": "vdi"}, 422, ""),
        (raw["id"], {"format": "qcow2", "owner_id": "me"}, 422, ""),
        (raw["id"], {}, 422, ""),
    ):
        url = f"/api/v1/images/{image_id}/convert"
        answer = await service.http.post(url, headers=service.as_user(user), json=wish)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"]
    assert service.rows("SELECT count(*) FROM images WHERE owner_id = %s", user) == [(2,)]


async def test_only_an_active_image_is_converted(service: Service) -> None:
    user = await service.new_user()
    image = await service.image(user, a_disk(), filename="d.img")
    url = f"/api/v1/images/{image['id']}"
    await service.http.post(f"{url}/deactivate", headers=service.as_user(user))
    answer = await convert(service, user, image["id"], "qcow2")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/image-state")


async def test_a_source_that_is_deleted_meanwhile_is_converted_to_its_end_or_missed(
    slow: Service, tmp_path: Path, eventually: Eventually
) -> None:
    user, disk = await slow.new_user(), disks.mbr_disk(MIB) + os.urandom(7 * MIB)
    original = await slow.image(user, disk, filename="d.img")
    begun = [(await convert(slow, user, original["id"], "qcow2")).json() for _ in range(2)]
    await eventually(lambda: work_files(slow) and (work_files(slow)[0] / "output").exists())
    url = f"/api/v1/images/{original['id']}"
    assert (await slow.http.delete(url, headers=slow.as_user(user))).status_code == 204
    first, second = [await ended(slow, user, one["id"]) for one in begun]
    assert first["state"] == "succeeded"
    assert is_same_disk(tmp_path, disk, await content(slow, user, begun[0]["image"]["id"]), "qcow2")
    assert (second["state"], second["error"]["type"]) == ("failed", "/problems/image-not-found")


async def test_a_store_of_another_disk_is_copied_from_and_to(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def elsewhere(*_: object) -> bool:
        return False

    for name in ("lend", "adopt"):
        monkeypatch.setattr(FolderBlobStore, name, elsewhere)
    user, disk = await service.new_user(), a_disk(40 * MIB)
    original = await service.image(user, disk, filename="d.img")
    image = original
    for target in ("vmdk", "raw"):
        image = await converted(service, user, image["id"], target)
        assert is_same_disk(tmp_path, disk, await content(service, user, image["id"]), target)
    assert work_files(service) == []
    (blob,) = [path for path in service.files() if original["id"] in path.name]
    with blob.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"rotten")
    problem = await failed(service, user, original["id"], "qcow2")
    assert "is not what it was" in problem["detail"]


async def test_what_comes_out_of_the_converter_is_trusted_no_more_than_an_upload(
    new_database_url: str, tmp_path: Path
) -> None:
    evil = tmp_path / "evil"
    evil.write_bytes(disks.qcow2(backing=b"/etc/passwd"))
    script = f'#!/bin/sh\nif [ "$1" = convert ]; then exec /bin/cp {evil} output; fi\nexec {QEMU_IMG} "$@"\n'
    async with running(new_database_url, tmp_path, qemu_img=program(tmp_path, script)) as service:
        user = await service.new_user()
        original = await service.image(user, a_disk(), filename="d.img")
        problem = await failed(service, user, original["id"], "qcow2")
        assert problem["type"] == "/problems/image-rejected"
        assert "backing file" in problem["detail"]
        assert service.used_bytes(user) == original["size_bytes"]
