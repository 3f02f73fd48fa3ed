import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.contract.images import importing
from tests.contract.images.harness import Service, running
from tests.contract.images.test_usage import new_name, told
from tests.contract.images.web import serving_web
from tests.corpora.images import disks


async def provenance(service: Service, user: str, image_id: str, **options: Any) -> dict[str, Any]:
    url = f"/api/v1/images/{image_id}/provenance"
    answer = await service.http.get(url, headers=service.as_user(user, **options))
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def derive(service: Service, owner: str, source_id: str, name: str, visibility: str = "private") -> str:
    """An image that says it was converted from another one."""
    content = disks.qcow2(virtual_size=len(name) << 20)
    image = await service.image(owner, content, name=name, visibility=visibility)
    document = '{"kind": "conversion", "source_sha256": "' + "ab" * 32 + '", "qemu_img": "8.2", "arguments": ["-O"]}'
    await service.change(
        "UPDATE images SET derived_from = %s, provenance = provenance || %s::jsonb WHERE id = %s",
        *(source_id, document, image["id"]),
    )
    return str(image["id"])


async def test_an_uploaded_images_provenance_tells_who_what_and_when(service: Service) -> None:
    owner, content = await service.new_user(), disks.qcow2(virtual_size=77 << 20)
    digest = hashlib.sha256(content).hexdigest()
    image = await service.image(owner, content, sha256=digest.upper(), filename="debian.qcow2")
    told = await provenance(service, owner, image["id"])
    assert {name: value for name, value in told["source"].items() if value is not None} == {
        "kind": "multipart",
        "filename": "debian.qcow2",
        "uploader_id": owner,
    }
    assert told["digests"] == {
        "sha256": digest,
        "sha512": hashlib.sha512(content).hexdigest(),
        "expected_sha256": digest,
        "downloaded_sha256": None,
    }
    assert told["inspection"] == {"formats": ["qcow2"], "size_bytes": len(content), "virtual_size_bytes": 77 << 20}
    assert told["inspected_at"] is not None
    assert told["blob"]["verified_at"] is not None
    assert told["blob"]["rotten_at"] is None
    assert (told["derived_from"], told["derived"], told["used_by"]) == (None, [], [])


async def test_a_reader_learns_all_but_who_uploaded_it_and_from_where(service: Service) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    image = await service.image(owner, visibility="public")
    document = '{"kind": "import", "url": "https://example.org/a", "final_url": "https://cdn.example/a", "etag": "x"}'
    await service.change("UPDATE images SET provenance = provenance || %s::jsonb WHERE id = %s", document, image["id"])
    seen_by_owner = await provenance(service, owner, image["id"])
    assert seen_by_owner["source"]["url"] == "https://example.org/a"
    assert seen_by_owner["source"]["uploader_id"] == owner
    assert (await provenance(service, "root", image["id"], role="ADMIN"))["source"] == seen_by_owner["source"]
    seen_by_reader = await provenance(service, reader, image["id"])
    assert {name for name, value in seen_by_reader["source"].items() if value} == {"kind", "filename"}
    assert seen_by_reader["digests"] == seen_by_owner["digests"]
    assert seen_by_reader["inspection"] == seen_by_owner["inspection"]


async def test_an_image_tells_what_was_made_of_it_as_far_as_the_caller_may_see_it(service: Service) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    source = await service.image(owner, visibility="public", name="source")
    shown = await derive(service, owner, source["id"], "shown", "public")
    hidden = await derive(service, owner, source["id"], "hidden")
    readers = await derive(service, reader, source["id"], "the reader's")
    for kind, user in (("template", owner), ("vm", reader)):
        name = new_name(kind)
        await service.bus.publish(told(kind, verb="updated", name=name, owner=user, image_id=source["id"]))
    seen_by_owner = await provenance(service, owner, source["id"])
    assert {image["id"] for image in seen_by_owner["derived"]} == {shown, hidden}
    assert [use["type"] for use in seen_by_owner["used_by"]] == ["template"]
    seen_by_reader = await provenance(service, reader, source["id"])
    assert {image["id"]: image["format"] for image in seen_by_reader["derived"]} == {shown: "qcow2", readers: "qcow2"}
    assert [use["type"] for use in seen_by_reader["used_by"]] == ["vm"]
    seen_by_admin = await provenance(service, "root", source["id"], role="ADMIN")
    assert {image["id"] for image in seen_by_admin["derived"]} == {shown, hidden, readers}
    assert len(seen_by_admin["used_by"]) == 2


async def test_a_derived_image_names_its_source_while_the_caller_may_see_it(service: Service) -> None:
    owner, reader = await service.new_user(), await service.new_user()
    source = await service.image(owner, name="source")
    derived = await derive(service, owner, source["id"], "derived", "public")
    seen = (await provenance(service, owner, derived))["derived_from"]
    assert seen == {"id": source["id"], "name": "source", "sha256": source["sha256"]}
    seen = (await provenance(service, reader, derived))["derived_from"]
    assert seen == {"id": source["id"], "name": None, "sha256": None}
    url = f"/api/v1/images/{source['id']}"
    assert (await service.http.delete(url, headers=service.as_user(owner))).status_code == 204
    seen = (await provenance(service, owner, derived))["derived_from"]
    assert seen == {"id": source["id"], "name": None, "sha256": "ab" * 32}
    assert (await provenance(service, owner, derived))["source"]["qemu_img"] == "8.2"


async def test_an_image_of_the_first_version_has_a_provenance_too(service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner)
    await service.change("UPDATE images SET provenance = '{}' WHERE id = %s", image["id"])
    told = await provenance(service, owner, image["id"])
    assert (told["source"]["kind"], told["inspection"], told["inspected_at"]) == ("multipart", None, None)


async def test_an_image_whose_file_has_not_come_yet_has_no_digests(service: Service) -> None:
    owner = await service.new_user()
    image = await service.image(owner)
    await service.change(
        "UPDATE images SET status = 'uploading', sha256 = NULL, sha512 = NULL WHERE id = %s", image["id"]
    )
    told = await provenance(service, owner, image["id"])
    assert (told["digests"]["sha256"], told["blob"]) == (None, None)


async def test_an_imported_image_tells_the_digests_of_the_published_file_and_of_the_image_in_it(
    new_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = disks.qcow2(virtual_size=55 << 20)
    packed = gzip.compress(content)
    announced = hashlib.sha256(packed).hexdigest()
    monkeypatch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "127.0.0.0/8")
    async with running(new_database_url, tmp_path) as importer, serving_web() as web:
        owner = await importer.new_user()
        web.publish("/a.qcow2.gz", packed, etag='"v7"')
        image = await importing.imported(importer, owner, web.url("/a.qcow2.gz?signature=x"), sha256=announced)
        told = await provenance(importer, owner, image["id"])
        assert told["source"]["url"] == web.url("/a.qcow2.gz")
    assert told["digests"] == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "sha512": hashlib.sha512(content).hexdigest(),
        "expected_sha256": announced,
        "downloaded_sha256": announced,
    }
    assert (told["source"]["kind"], told["source"]["etag"]) == ("import", '"v7"')
