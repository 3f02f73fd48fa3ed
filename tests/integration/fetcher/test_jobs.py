"""Jobs from the request to the pictures on disk, against a real web server and a MongoDB-compatible one."""

import asyncio
import json
import re
from typing import Any

from services.fetcher.settings import FetcherSettings
from tests.integration.fetcher.conftest import OWNER, STRANGER, Eventually, Fetcher, RunFetcher, account_event
from tests.integration.fetcher.pictures import PictureServer, picture

MISBEHAVIOUR = {
    "/missing": ("failed", "http-404", 1),
    "/broken": ("failed", "http-500", 3),
    "/flaky": ("completed", None, 3),
    "/html": ("failed", "not-a-picture", 1),
    "/svg": ("failed", "not-a-picture", 1),
    "/empty": ("failed", "not-a-picture", 1),
    "/truncated": ("failed", "picture-damaged", 1),
    "/short": ("failed", "length-mismatch", 3),
    "/pixels": ("failed", "pixels-too-many", 1),
    "/frames": ("failed", "frames-too-many", 1),
    "/large": ("failed", "body-too-large", 1),
    "/big": ("completed", None, 1),
    "/redirect": ("completed", None, 1),
    "/inward": ("failed", "address-metadata", 1),
    "/patience": ("completed", None, 2),
    "/recovers": ("completed", None, 2),
    "/loop": ("failed", "redirect-limit", 1),
    "/scheme": ("failed", "url-scheme", 1),
    "/packed": ("failed", "decoded-too-large", 1),
    "/endless": ("failed", "body-too-large", 1),
    "/drip": ("failed", "deadline", 3),
    **{f"/format/{name}": ("completed", None, 1) for name in ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")},
}


async def start(fetcher: Fetcher, path: str, body: dict[str, Any] | None = None, **options: Any) -> str:
    answer = await fetcher.call("POST", f"/download/{path}", json=body, **options)
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "pending"
    job_id: str = answer.json()["job_id"]
    assert answer.headers["location"] == f"/api/v1/jobs/{job_id}"
    return job_id


async def test_every_item_ends_in_its_documented_state_with_its_reason(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    await source["shop"].insert_many(
        [{"_id": path.strip("/").replace("/", "-"), "image": pictures.url + path} for path in MISBEHAVIOUR]
    )
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    job = await fetcher.ended(job_id, deadline_s=90)
    found = {
        item["url"].removeprefix(pictures.url): (item["status"], item["reason"], item["attempts"])
        for item in await fetcher.items(job_id)
    }
    ends = {path: (status, reason) for path, (status, reason, _) in found.items()}
    assert ends == {path: (status, reason) for path, (status, reason, _) in MISBEHAVIOUR.items()}
    for path, (_, _, attempts) in MISBEHAVIOUR.items():
        assert attempts <= found[path][2] <= 3, path  # a busy machine may break a connection, and it is tried again
    assert (job["status"], job["documents"], job["total_items"]) == ("completed", 28, 28)
    assert (job["items"]["completed"], job["items"]["failed"]) == (12, 16)
    assert (job["search_field"], job["search_field_guessed"]) == ("image", True)
    assert [(row["domain"], row["items"]) for row in job["domains"]] == [("127.0.0.1", {"completed": 12, "failed": 16})]


async def test_pictures_and_metadata_lie_in_the_documented_layout(
    fetcher: Fetcher, source: Any, pictures: PictureServer, settings: FetcherSettings
) -> None:
    urls = [f"{pictures.url}/ok/1.jpg", f"{pictures.url}/missing", f"{pictures.url}/format/PNG"]
    media = {"photos": [{"url": url} for url in urls]}
    result = await source["shop"].insert_one({"media": media})
    document_id = str(result.inserted_id)
    job_id = await start(fetcher, f"document/{source.name}/shop/{document_id}", {"search_field": "media.photos"})
    job = await fetcher.ended(job_id)
    assert job["status"] == "completed"
    folder = settings.storage_root / source.name / "shop" / f"{document_id}-media.photos"
    assert (folder / "original" / "img_001.jpg").read_bytes() == picture(seed=1)
    assert (folder / "original" / "img_003.png").read_bytes() == picture("PNG")
    assert (folder / "processed").is_dir()
    metadata = json.loads((folder / "metadata.json").read_bytes())
    first, second, third = metadata["pictures"]
    assert (first["source_url"], first["status"], first["format"], first["width"], first["height"]) == (
        urls[0],
        "completed",
        "JPEG",
        64,
        48,
    )
    assert first["bytes"] == len(picture(seed=1))
    assert len(first["sha256"]) == 64
    assert len(first["perceptual_hash"]) == 16
    assert (second["status"], second["error"]["reason"], second["http_status"]) == ("failed", "http-404", 404)
    assert third["file"] == "original/img_003.png"
    leftovers = [path for path in settings.storage_root.rglob("*") if path.name.endswith(".part")]
    assert leftovers == []
    assert sum(item["bytes"] for item in await fetcher.items(job_id)) == job["bytes"]

    path = (await fetcher.items(job_id))[0]["path"]
    answer = await fetcher.call("GET", f"/jobs/{job_id}/files/{path}")
    assert (answer.status_code, answer.content) == (200, picture(seed=1))
    assert (
        await fetcher.call("GET", f"/jobs/{job_id}/files/{path.rsplit('/', 2)[0]}/metadata.json")
    ).json() == metadata
    for other in ("../secret", "shop", path + "x", "%2e%2e/%2e%2e/etc/passwd"):
        assert (await fetcher.call("GET", f"/jobs/{job_id}/files/{other}")).status_code == 404


async def test_a_job_may_ask_for_a_check_of_the_header_only(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    paths = ["/ok/1.jpg", "/truncated", "/pixels", "/html"]
    await source["shop"].insert_many([{"image": pictures.url + path} for path in paths])
    job_id = await start(fetcher, f"collection/{source.name}/shop", {"options": {"check": "header"}})
    await fetcher.ended(job_id)
    found = {item["url"].removeprefix(pictures.url): item for item in await fetcher.items(job_id)}
    assert [found[path]["reason"] for path in paths] == [None, None, "pixels-too-many", "not-a-picture"]
    assert (found["/ok/1.jpg"]["width"], found["/ok/1.jpg"]["perceptual_hash"]) == (64, None)


async def test_a_batch_takes_the_filtered_documents_up_to_its_limit(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    await source["shop"].insert_many(
        [{"_id": number, "year": number, "photo": f"{pictures.url}/ok/{number}.jpg"} for number in range(10)]
    )
    body = {"database": source.name, "collection": "shop", "filter": {"year": {"$gte": 4}}, "limit": 3}
    job_id = await start(fetcher, "batch", body)
    assert (await fetcher.ended(job_id))["items"]["completed"] == 3
    assert sorted(pictures.hits) == ["/ok/4.jpg", "/ok/5.jpg", "/ok/6.jpg"]


async def test_a_job_tells_its_life_as_events_in_order(
    fetcher: Fetcher, source: Any, pictures: PictureServer, eventually: Eventually
) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    await fetcher.ended(job_id)
    assert (await fetcher.call("DELETE", f"/jobs/{job_id}")).status_code == 204
    assert (await fetcher.call("GET", f"/jobs/{job_id}")).status_code == 404
    await eventually(lambda: len(fetcher.events) == 4)
    life = [(event.type, event.sequence) for event in fetcher.events]
    assert life == [
        ("fetcher.job.created.v1", 1),
        ("fetcher.job.started.v1", 2),
        ("fetcher.job.completed.v1", 3),
        ("fetcher.job.deleted.v1", 4),
    ]
    created, _, completed, _ = fetcher.events
    assert {event.owner for event in fetcher.events} == {OWNER}
    assert created.data["resource"] == {"type": "fetch_job", "id": job_id, "name": f"{source.name}.shop"}
    assert created.data["usage"]["used"] == {"fetch_jobs": 1}
    assert completed.data["usage"]["used"] == {"fetch_jobs": 0}
    assert completed.data["usage"]["sequence"] > created.data["usage"]["sequence"]
    assert completed.data["items"]["completed"] == 1


async def test_a_job_none_of_whose_pictures_came_failed_and_can_be_retried(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/broken"})
    job_id = await start(fetcher, f"collection/{source.name}/shop", {"options": {"max_attempts": 1}})
    job = await fetcher.ended(job_id)
    assert (job["status"], job["error"]["slug"]) == ("failed", "nothing-fetched")
    assert (await fetcher.call("POST", f"/jobs/{job_id}/retry-failed")).json()["status"] == "running"
    assert (await fetcher.ended(job_id))["status"] == "failed"
    assert pictures.hits["/broken"] == 2


async def test_a_collection_without_a_usual_field_fails_and_an_empty_one_completes(
    fetcher: Fetcher, source: Any
) -> None:
    await source["shop"].insert_one({"name": "no picture"})
    job = await fetcher.ended(await start(fetcher, f"collection/{source.name}/shop"))
    assert (job["status"], job["error"]["slug"]) == ("failed", "search-field-not-found")
    job = await fetcher.ended(await start(fetcher, f"collection/{source.name}/shop", {"filter": {"name": "another"}}))
    assert (job["status"], job["total_items"]) == ("completed", 0)


async def test_a_domain_is_never_asked_for_more_at_once_than_allowed(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    pictures.delay_s = 0.03
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(30)])
    job_id = await start(fetcher, f"collection/{source.name}/shop", {"options": {"max_per_domain": 3}})
    assert (await fetcher.ended(job_id))["items"]["completed"] == 30
    assert pictures.most_at_once == 3


async def test_a_small_job_does_not_wait_behind_a_large_one(
    fetcher: Fetcher, source: Any, pictures: PictureServer, eventually: Eventually
) -> None:
    pictures.delay_s = 0.05
    await source["large"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(400)])
    await source["small"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(5)])
    large = await start(fetcher, f"collection/{source.name}/large")
    await eventually(lambda: len(pictures.hits) > 5)
    small = await start(fetcher, f"collection/{source.name}/small")
    assert (await fetcher.ended(small))["items"]["completed"] == 5
    assert (await fetcher.job(large))["status"] == "running"
    await fetcher.call("POST", f"/jobs/{large}/cancel")


async def test_a_cancelled_job_stops_and_leaves_no_open_item(
    fetcher: Fetcher, source: Any, pictures: PictureServer, eventually: Eventually
) -> None:
    pictures.delay_s = 0.05
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(200)])
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    await eventually(lambda: len(pictures.hits) > 5)
    answer = await fetcher.call("POST", f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")

    async def settled() -> bool:
        items = (await fetcher.job(job_id))["items"]
        return bool(items["pending"] == items["downloading"] == 0)

    await eventually(settled)
    items = (await fetcher.job(job_id))["items"]
    assert items["completed"] + items["cancelled"] == 200
    assert items["cancelled"] > 100
    assert (await fetcher.call("POST", f"/jobs/{job_id}/cancel")).status_code == 409


async def test_a_paused_job_waits_and_goes_on_when_resumed(
    fetcher: Fetcher, source: Any, pictures: PictureServer, eventually: Eventually
) -> None:
    pictures.delay_s = 0.03
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(60)])
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    await eventually(lambda: len(pictures.hits) > 5)
    assert (await fetcher.call("POST", f"/jobs/{job_id}/pause")).json()["status"] == "paused"

    async def idle() -> bool:
        return bool((await fetcher.job(job_id))["items"]["downloading"] == 0 and pictures.at_once == 0)

    await eventually(idle)
    before = len(pictures.hits)
    assert before < 60
    assert (await fetcher.call("DELETE", f"/jobs/{job_id}")).status_code == 409
    assert (await fetcher.call("POST", f"/jobs/{job_id}/resume")).json()["status"] == "running"
    assert (await fetcher.ended(job_id))["items"]["completed"] == 60


async def test_jobs_of_others_do_not_exist(fetcher: Fetcher, source: Any, pictures: PictureServer) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    await fetcher.ended(job_id)
    path = (await fetcher.items(job_id))[0]["path"]
    calls = [("GET", ""), ("GET", "/items"), ("GET", "/events"), ("GET", f"/files/{path}"), ("DELETE", "")]
    calls += [("POST", f"/{verb}") for verb in ("cancel", "pause", "resume", "retry-failed")]
    for method, rest in calls:
        answer = await fetcher.call(method, f"/jobs/{job_id}{rest}", user=STRANGER)
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/fetch-job-not-found"), rest
    assert (await fetcher.call("GET", "/jobs", user=STRANGER)).json()["items"] == []
    assert [job["job_id"] for job in (await fetcher.call("GET", "/jobs?status=completed")).json()["items"]] == [job_id]


async def test_the_quota_of_unfinished_jobs_holds_under_parallel_requests(fetcher: Fetcher, source: Any) -> None:
    await fetcher.bus.publish(account_event(OWNER, fetch_jobs=2, sequence=9))
    body = {"search_field": "image"}
    await source["shop"].insert_one({"image": "http://192.0.2.1/never.jpg"})
    answers = await asyncio.gather(
        *(fetcher.call("POST", f"/download/collection/{source.name}/shop", json=body) for _ in range(12))
    )
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(202) >= 2
    assert set(statuses) == {202, 409}
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["type"] == "/problems/quota-exceeded"


async def test_the_same_idempotency_key_makes_one_job(fetcher: Fetcher, source: Any) -> None:
    headers = {"idempotency-key": "once"}
    await source["none"].insert_one({"name": "no picture"})
    answers = await asyncio.gather(
        *(fetcher.call("POST", f"/download/collection/{source.name}/none", headers=headers) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1


async def test_wrong_names_filters_and_documents_are_refused_with_the_place(fetcher: Fetcher, source: Any) -> None:
    refused = [
        ("collection/admin/x", {}, 422, "/database"),
        ("collection/a$b/x", {}, 422, "/database"),
        (f"collection/{source.name}/system.users", {}, 422, "/collection"),
        (f"collection/{source.name}/x", {"search_field": "a..b"}, 422, "/search_field"),
        (f"collection/{source.name}/x", {"filter": {"a": {"$where": "1"}}}, 422, "/filter/a/$where"),
        (f"collection/{source.name}/x", {"status": "running"}, 422, "/body/status"),
        (f"document/{source.name}/x/unknown", {}, 404, None),
    ]
    for path, body, status, pointer in refused:
        answer = await fetcher.call("POST", f"/download/{path}", json=body)
        assert answer.status_code == status, (path, answer.text)
        if pointer:
            assert answer.json()["errors"][0]["pointer"] == pointer


async def test_a_page_links_to_the_next_one(fetcher: Fetcher, source: Any, pictures: PictureServer) -> None:
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(3)])
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    await fetcher.ended(job_id)
    page = await fetcher.call("GET", f"/jobs/{job_id}/items?status=completed&limit=2")
    link = re.fullmatch(r'</api/v1(/jobs/[^>]+)>; rel="next"', page.headers["link"])
    assert link is not None
    rest = await fetcher.call("GET", link[1])
    assert "link" not in rest.headers
    urls = {item["url"] for item in (*page.json()["items"], *rest.json()["items"])}
    assert urls == {f"{pictures.url}/ok/{number}.jpg" for number in range(3)}


async def test_the_stream_of_a_job_tells_its_progress_and_ends_with_it(
    fetcher: Fetcher, source: Any, pictures: PictureServer
) -> None:
    pictures.delay_s = 0.1
    await source["shop"].insert_many([{"image": f"{pictures.url}/ok/{number}.jpg"} for number in range(20)])
    job_id = await start(fetcher, f"collection/{source.name}/shop")
    answer = await fetcher.call("GET", f"/jobs/{job_id}/events")
    blocks = [block.splitlines() for block in answer.text.strip().split("\n\n")]
    assert blocks[-1] == ["event: end", 'data: {"status": "completed"}']
    last = json.loads(blocks[-2][2].removeprefix("data: "))
    assert (last["status"], last["items"]["completed"]) == ("completed", 20)


async def test_a_fetcher_without_permission_for_a_network_reaches_nothing_there(
    run_fetcher: RunFetcher, settings: FetcherSettings, source: Any, pictures: PictureServer
) -> None:
    closed = settings.model_copy(update={"common": settings.common.model_copy(update={"outbound_allow_networks": ()})})
    await source["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
    async with run_fetcher(closed) as fetcher:
        job_id = await start(fetcher, f"collection/{source.name}/shop")
        await fetcher.ended(job_id)
        assert [item["reason"] for item in await fetcher.items(job_id)] == ["address-loopback"]
    assert not pictures.hits


async def test_metrics_and_lists_answer_older_clients(fetcher: Fetcher, source: Any, pictures: PictureServer) -> None:
    await source["shop"].insert_one({"image": f"{pictures.url}/ok/1.jpg"})
    await fetcher.ended(await start(fetcher, f"collection/{source.name}/shop"))
    answer = await fetcher.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'telar_fetch_attempts_total{outcome="completed",reason=""} 1.0' in answer.text
    assert "telar_http_requests" not in answer.text
    assert (await fetcher.http.get("/readyz")).json()["status"] == "ok"
