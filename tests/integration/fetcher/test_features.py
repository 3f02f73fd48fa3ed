"""What a job can do besides fetching: only what changed, half pictures gone on with, robots, processing, write-back."""

import io
import json
import tarfile
import zipfile
from hashlib import sha256
from typing import Any

import pytest
from PIL import Image

from services.fetcher.adapters.storage import FolderStore
from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.conftest import STRANGER, Eventually, Fetcher, RunFetcher
from tests.integration.fetcher.pictures import PictureServer, picture


async def run(fetcher: Fetcher, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a job to its end."""
    answer = await fetcher.call("POST", f"/download/{path}", json=body)
    assert answer.status_code == 202, answer.text
    return await fetcher.ended(answer.json()["job_id"])


async def test_a_second_run_downloads_only_what_has_changed(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    paths = ["/etag/1.jpg", "/dated/2.jpg", "/ok/3.jpg", "/missing"]
    await source["shop"].insert_many([{"_id": n, "image": pictures.url + path} for n, path in enumerate(paths)])
    first = await run(fetcher, f"collection/{source.name}/shop")
    before = {item["url"]: item for item in await fetcher.items(first["job_id"])}
    pictures.sent_bytes.clear()
    second = await run(fetcher, f"collection/{source.name}/shop")
    assert second["items"] == first["items"]
    items = {item["url"].removeprefix(pictures.url): item for item in await fetcher.items(second["job_id"])}
    assert [items[path]["unchanged"] for path in paths] == [True, True, False, False]
    assert pictures.sent_bytes["/etag/1.jpg"] == pictures.sent_bytes["/dated/2.jpg"] == 0
    for path in paths[:3]:
        for fact in ("sha256", "path", "bytes", "width", "format", "perceptual_hash"):
            assert items[path][fact] == before[pictures.url + path][fact]
    pictures.generation = 2
    third = await run(fetcher, f"collection/{source.name}/shop")
    changed = {item["url"].removeprefix(pictures.url): item for item in await fetcher.items(third["job_id"])}
    assert not changed["/etag/1.jpg"]["unchanged"]
    assert changed["/etag/1.jpg"]["sha256"] != items["/etag/1.jpg"]["sha256"]
    assert (settings.storage_root / changed["/etag/1.jpg"]["path"]).read_bytes() == picture(seed=2001)
    pictures.asked.clear()
    await run(fetcher, f"collection/{source.name}/shop", {"options": {"refetch": True}})
    assert not any("if-none-match" in headers for _, headers in pictures.asked)


async def test_a_body_that_breaks_off_is_gone_on_with(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/broken-off"})
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"max_attempts": 5}})
    (item,) = await fetcher.items(job["job_id"])
    whole = picture("BMP", (600, 500), seed=1)
    assert (item["status"], item["bytes"], item["http_status"]) == ("completed", len(whole), 200)
    assert (settings.storage_root / item["path"]).read_bytes() == whole
    assert pictures.sent_bytes["/broken-off"] == len(whole)
    ranges = [headers.get("range") for _, headers in pictures.asked]
    assert ranges[0] is None
    assert all(ranges[1:])


async def test_a_body_that_broke_off_is_gone_on_with_after_a_restart(
    run_fetcher: RunFetcher,
    source: Any,
    pictures: PictureServer,
    settings: FetcherSettings,
    eventually: Eventually,
) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/broken-off"})
    async with run_fetcher(settings.model_copy(update={"retry_base_s": 2.0, "retry_cap_s": 2.0})) as fetcher:
        body = {"options": {"max_attempts": 3}}
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json=body)
        job_id = answer.json()["job_id"]

        async def broke_off() -> bool:
            return [(item["status"], item["attempts"]) for item in await fetcher.items(job_id)] == [("pending", 1)]

        await eventually(broke_off)
    visits = len(pictures.asked)
    async with run_fetcher(settings) as fetcher:
        job = await fetcher.ended(job_id)
        assert job["items"]["completed"] == 1
        (item,) = await fetcher.items(job_id)
    assert (settings.storage_root / item["path"]).read_bytes() == picture("BMP", (600, 500), seed=1)
    assert pictures.sent_bytes["/broken-off"] == item["bytes"]
    assert all(headers.get("range") for _, headers in pictures.asked[visits:])


async def test_a_picture_that_changed_in_between_begins_anew(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    pictures.changes_at_visit = 2
    await source["shop"].insert_one({"image": f"{pictures.url}/broken-off"})
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"max_attempts": 9, "rate_per_domain": 3}})
    (item,) = await fetcher.items(job["job_id"])
    stored = sha256((settings.storage_root / item["path"]).read_bytes()).hexdigest()
    assert stored == sha256(picture("BMP", (600, 500), seed=2)).hexdigest()
    assert pictures.hits["/broken-off"] > 2


async def test_robots_are_obeyed_where_a_job_wants_it(fetcher: Fetcher, source: Any, pictures: PictureServer) -> None:
    pictures.robots = (200, b"User-agent: *\nDisallow: /format/\nUser-agent: telar-fetcher\nDisallow: /ok/")
    paths = ["/ok/1.jpg", "/ok/2.jpg", "/format/PNG"]
    await source["shop"].insert_many([{"_id": n, "image": pictures.url + path} for n, path in enumerate(paths)])
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"robots": True}})
    items = await fetcher.items(job["job_id"])
    assert sorted((item["reason"] or "", item["error_class"] or "") for item in items) == [
        ("", ""),
        *[("robots-refused", "refused")] * 2,
    ]
    assert pictures.hits == {"/robots.txt": 1, "/format/PNG": 1}
    assert (await run(fetcher, f"collection/{source.name}/shop"))["items"]["completed"] == 3


async def test_a_site_whose_robots_cannot_be_read_is_left_alone(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    pictures.robots = (500, b"")
    await source["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"robots": True}})
    (item,) = await fetcher.items(job["job_id"])
    assert (item["reason"], item["attempts"]) == ("robots-unreachable", 3)
    assert pictures.hits == {"/robots.txt": 1}


async def test_equal_pictures_of_many_documents_are_stored_once(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    await source["shop"].insert_many([{"_id": n, "image": f"{pictures.url}/ok/7.jpg?{n}"} for n in range(12)])
    job = await run(fetcher, f"collection/{source.name}/shop")
    files = [settings.storage_root / item["path"] for item in await fetcher.items(job["job_id"])]
    assert len({file.stat().st_ino for file in files}) == 1
    assert len(files) == 12


async def test_processed_pictures_lie_beside_the_originals(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    await source["shop"].insert_one({"_id": 1, "image": [f"{pictures.url}/ok/1.jpg", f"{pictures.url}/etag/2.jpg"]})
    steps = [{"kind": "thumbnail", "size": 16}, {"kind": "convert", "format": "WEBP"}, {"kind": "strip_exif"}]
    steps += [{"kind": "perceptual_hash", "algorithm": "phash"}]
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"process": steps}})
    folder = settings.storage_root / source.name / "shop" / "1-image"
    assert sorted(path.name for path in (folder / "processed").iterdir()) == [
        f"img_00{number}-{name}" for number in (1, 2) for name in ("as-webp.webp", "stripped.jpg", "thumbnail-16.jpg")
    ]
    first, _ = json.loads((folder / "metadata.json").read_bytes())["pictures"]
    assert [made["processor"] for made in first["processed"]] == ["thumbnail-16", "as-webp", "stripped", "phash"]
    assert len(first["processed"][3]["value"]) == 16
    path = f"{source.name}/shop/1-image/processed/img_001-thumbnail-16.jpg"
    answer = await fetcher.call("GET", f"/jobs/{job['job_id']}/files/{path}")
    assert Image.open(io.BytesIO(answer.content)).size == (16, 12)
    assert answer.headers["content-type"] == "image/jpeg"
    more = [*steps, {"kind": "thumbnail", "size": 32}]
    for wanted, unchanged in ((steps, True), (more, False)):
        again = await run(fetcher, f"collection/{source.name}/shop", {"options": {"process": wanted}})
        assert (await fetcher.items(again["job_id"]))[1]["unchanged"] is unchanged
    twice = {"options": {"process": [steps[0], steps[0]]}}
    answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json=twice)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/processing-refused")


async def test_results_are_written_back_and_other_peoples_fields_left_alone(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    urls = [f"{pictures.url}/ok/1.jpg", f"{pictures.url}/missing"]
    numbered = await source["shop"].insert_one({"image": urls[0]})
    await source["shop"].insert_many(
        [
            {"_id": "both", "image": urls},
            {"_id": 7, "image": urls[1]},
            {"_id": "theirs", "image": urls[0], "fetched": {"note": "mine"}},
            {"_id": "none", "image": []},
        ]
    )
    for _ in range(2):
        job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"write_back": "fetched"}})
        assert (job["status"], job["documents_written"], job["documents_refused"]) == ("completed", 3, 1)
        found = {document["_id"]: document.get("fetched") for document in await source["shop"].find({}).to_list(None)}
        assert found["theirs"] == {"note": "mine"}
        assert found["none"] is None
        assert found[numbered.inserted_id]["status"] == "completed"
        assert found[7]["status"] == "failed"
        assert found[7]["pictures"][0]["reason"] == "http-404"
        assert (found["both"]["by"], found["both"]["job_id"]) == ("telar-fetcher", job["job_id"])
        assert found["both"]["status"] == "partial"
        stored, missing = found["both"]["pictures"]
        item = next(item for item in await fetcher.items(job["job_id"]) if item["document_id"] == "both")
        assert (stored["path"], stored["sha256"]) == (item["path"], item["sha256"])
        assert (missing["status"], missing["path"], missing["url"]) == ("failed", None, urls[1])
    for field in ("_id", "a.b", "$x", ""):
        body = {"options": {"write_back": field}}
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json=body)
        assert answer.status_code == 422, field


async def test_nothing_is_written_back_unasked_or_where_the_operator_forbids_it(
    run_fetcher: RunFetcher, settings: FetcherSettings, source: Any, pictures: PictureServer
) -> None:
    await source["shop"].insert_one({"_id": 1, "image": f"{pictures.url}/ok/1.jpg"})
    async with run_fetcher(settings.model_copy(update={"write_back": False})) as fetcher:
        body = {"options": {"write_back": "fetched"}}
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop", json=body)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/write-back-refused")
        await run(fetcher, f"collection/{source.name}/shop")
    assert await source["shop"].find_one({}) == {"_id": 1, "image": f"{pictures.url}/ok/1.jpg"}


async def test_failed_items_are_retried_by_class_and_reason(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    paths = ["/missing", "/broken", "/html", "/ok/1.jpg"]
    await source["shop"].insert_many([{"image": pictures.url + path} for path in paths])
    once = {"options": {"max_attempts": 1}}
    job_id = (await run(fetcher, f"collection/{source.name}/shop", once))["job_id"]
    for query, path in (("error_class=server", "/broken"), ("error=http-404", "/missing"), ("", None)):
        pictures.hits.clear()
        answer = await fetcher.call("POST", f"/jobs/{job_id}/retry-failed?{query}")
        assert answer.json()["status"] == "running"
        assert (await fetcher.ended(job_id))["items"]["failed"] == 3
        assert sorted(pictures.hits) == ([path] if path else ["/broken", "/html", "/missing"])
    answer = await fetcher.call("POST", f"/jobs/{job_id}/retry-failed?error_class=storage")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/nothing-to-retry")
    for query, count in (("error_class=content", 1), ("domain=127.0.0.1&status=failed", 3), ("domain=x", 0)):
        page = await fetcher.call("GET", f"/jobs/{job_id}/items?{query}")
        assert len(page.json()["items"]) == count


async def test_a_job_can_be_deleted_with_its_files_or_without(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings, eventually: Eventually
) -> None:
    await source["shop"].insert_many([{"_id": n, "image": f"{pictures.url}/ok/{n}.jpg"} for n in range(5)])
    first = await run(fetcher, f"collection/{source.name}/shop")
    second = await run(fetcher, f"collection/{source.name}/shop", {"filter": {"_id": {"$lt": 2}}})
    items = source.client[settings.mongo_database]["items"]

    def stored() -> list[str]:
        return sorted(path.parts[-3] for path in (settings.storage_root / source.name).rglob("img_*"))

    async def gone(job: dict[str, Any]) -> None:
        async def purged() -> bool:
            return bool(await items.count_documents({"job_id": job["job_id"]}) == 0)

        await eventually(purged)

    assert (await fetcher.call("DELETE", f"/jobs/{first['job_id']}?files=true")).status_code == 204
    await gone(first)
    assert stored() == ["0-image", "1-image"]
    assert (await fetcher.call("DELETE", f"/jobs/{second['job_id']}")).status_code == 204
    await gone(second)
    assert stored() == ["0-image", "1-image"]


async def test_a_dry_run_tells_what_would_be_fetched_and_asks_nobody(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    urls = [f"{pictures.url}/ok/{n}.jpg" for n in range(8)]
    await source["shop"].insert_many([{"photo": url} for url in urls] + [{"photo": ["http://b.example/x.jpg"]}, {}])
    path = f"/download/collection/{source.name}/shop?dry_run=true"
    answer = await fetcher.call("POST", path, json={"options": {"rate_per_domain": 2}})
    assert answer.status_code == 200
    assert answer.json() == {
        "dry_run": True,
        "search_field": "photo",
        "search_field_guessed": True,
        "documents": 10,
        "documents_without_pictures": 1,
        "pictures": 9,
        "complete": True,
        "domain_count": 2,
        "domains": [{"domain": "127.0.0.1", "pictures": 8}, {"domain": "b.example", "pictures": 1}],
        "estimate": {"seconds_at_least": 4.0, "bytes": None},
    }
    assert not pictures.hits
    assert (await fetcher.call("GET", "/jobs")).json()["items"] == []
    await run(fetcher, f"collection/{source.name}/shop", {"limit": 4})
    estimate = (await fetcher.call("POST", path)).json()["estimate"]
    assert estimate["bytes"] > 9 * 1000
    refused = await fetcher.call("POST", path, json={"filter": {"$where": "1"}})
    assert refused.status_code == 422


async def test_a_jobs_files_leave_as_one_archive(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    await source["shop"].insert_many(
        [{"_id": n, "image": [f"{pictures.url}/ok/{n}.jpg", f"{pictures.url}/missing"]} for n in range(3)]
    )
    steps = [{"kind": "thumbnail", "size": 16}]
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"process": steps}})
    root = settings.storage_root
    expected = {
        str(path.relative_to(root)): path.read_bytes() for path in (root / source.name).rglob("*") if path.is_file()
    }
    assert len(expected) == 9
    path = f"/jobs/{job['job_id']}/export"
    answer = await fetcher.call("GET", path)
    assert answer.headers["content-type"] == "application/zip"
    assert f"{source.name}-shop-" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == expected
    answer = await fetcher.call("GET", f"{path}?format=tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert sorted(tar.getnames()) == sorted(expected)
    assert (await fetcher.call("GET", f"{path}?format=rar")).status_code == 422
    assert (await fetcher.call("GET", path, user=STRANGER)).status_code == 404


async def test_a_report_names_dead_links_by_domain(fetcher: Fetcher, source: Any, pictures: PictureServer) -> None:
    paths = ["/missing", "/gone", "/html", "/ok/1.jpg"]
    await source["shop"].insert_many([{"_id": n, "image": pictures.url + path} for n, path in enumerate(paths)])
    await source["shop"].insert_one({"_id": 9, "image": "http://[::1/"})
    job = await run(fetcher, f"collection/{source.name}/shop", {"options": {"max_attempts": 1}})
    report = (await fetcher.call("GET", f"/jobs/{job['job_id']}/report")).json()
    assert (report["failed"], report["dead"]) == (4, 2)
    assert report["by_class"] == {"client": 2, "content": 1, "refused": 1}
    first, second = report["domains"]
    assert (first["domain"], first["failed"], first["dead"]) == ("127.0.0.1", 3, 2)
    assert first["reasons"] == {"http-404": 2, "not-a-picture": 1}
    assert f"{pictures.url}/missing" in first["examples"]
    assert (second["domain"], second["reasons"]) == ("(invalid)", {"url-host": 1})
    assert (await fetcher.call("GET", f"/jobs/{job['job_id']}/report", user=STRANGER)).status_code == 404


async def test_a_full_disk_pauses_jobs_and_refuses_new_ones(
    run_fetcher: RunFetcher,
    settings: FetcherSettings,
    source: Any,
    pictures: PictureServer,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await source["shop"].insert_many([{"_id": n, "image": f"{pictures.url}/ok/{n}.jpg"} for n in range(30)])
    pictures.delay_s = 0.02
    disk = {"full": False}
    monkeypatch.setattr(FolderStore, "_is_full", lambda _store: disk["full"])
    async with run_fetcher(settings) as fetcher:
        answer = await fetcher.call("POST", f"/download/collection/{source.name}/shop")
        job_id = answer.json()["job_id"]
        disk["full"] = True

        async def paused() -> bool:
            return bool((await fetcher.job(job_id))["status"] == "paused")

        await eventually(paused, 30)
        assert (await fetcher.job(job_id))["error"]["slug"] == "storage-full"
        for path in (f"/download/collection/{source.name}/shop", f"/jobs/{job_id}/resume"):
            answer = await fetcher.call("POST", path)
            assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-full")
        disk["full"] = False
        assert (await fetcher.call("POST", f"/jobs/{job_id}/resume")).status_code == 200
        job = await fetcher.ended(job_id)
        assert (job["items"]["completed"], job["error"]) == (30, None)
        assert {item["attempts"] for item in await fetcher.items(job_id)} == {1}
