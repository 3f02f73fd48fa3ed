import time
from datetime import UTC, datetime
from uuid import UUID

import httpx
import pytest
import structlog
from opentelemetry import trace

from libs.common.redaction import REDACTED, redact
from services.images.adapters.links import LinkTokens
from tests.contract.images.harness import Service
from tests.corpora.images import disks

CONTENT = disks.raw_disk(3 << 20)[:-4096] + bytes(range(256)) * 16
NAME = 'Zürich "cloud"/../ image'


class Shared:
    """An image and calls about it in its owner's name, or in nobody's."""

    def __init__(self, service: Service, owner: str, image_id: str) -> None:
        self.service = service
        self.headers = service.as_user(owner)
        self.path = f"/api/v1/images/{image_id}"
        self.image_id = UUID(image_id)

    async def link(self) -> str:
        answer = await self.service.http.get(f"{self.path}/download?redirect=true", headers=self.headers)
        assert (answer.status_code, answer.content) == (307, b"")
        assert answer.headers["cache-control"] == "no-store"
        location: str = answer.headers["location"]
        return location

    async def anyone(self, url: str, method: str = "GET", **headers: str) -> httpx.Response:
        return await self.service.http.request(method, url, headers=headers)

    async def downloads(self) -> int:
        shown = (await self.service.http.get(self.path, headers=self.headers)).json()
        return int(shown["downloads"])

    def signed(self, *, seconds: float) -> str:
        """A link that lasts so much longer, made as the service makes its own."""
        tokens = LinkTokens(self.service.settings.common.service_secret.get_secret_value())
        return f"/api/v1/image-files/{tokens.sign(self.image_id, int(time.time() + seconds))}/a.img"


@pytest.fixture
async def shared(service: Service) -> Shared:
    owner = await service.new_user()
    image = await service.image(owner, CONTENT, filename="a.img", name=NAME)
    return Shared(service, owner, image["id"])


async def test_a_redirect_gives_the_file_without_a_login(shared: Shared) -> None:
    link = await shared.link()
    assert link.startswith("/api/v1/image-files/")
    assert link.endswith("/Z%C3%BCrich%20_cloud_.._%20image.img")
    whole = await shared.anyone(link)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    with_login = await shared.service.http.get(f"{shared.path}/download", headers=shared.headers)
    for name in ("etag", "content-digest", "repr-digest", "content-disposition", "content-type", "accept-ranges"):
        assert whole.headers[name] == with_login.headers[name]
    part = await shared.anyone(link, range="bytes=1000-1999", **{"if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, CONTENT[1000:2000])
    assert (await shared.anyone(link, "HEAD")).headers["content-length"] == str(len(CONTENT))
    unchanged = await shared.anyone(link, **{"if-none-match": whole.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


async def test_a_linked_download_counts_when_its_file_is_asked_for(shared: Shared) -> None:
    link = await shared.link()
    await shared.anyone(link, "HEAD")
    assert await shared.downloads() == 0
    await shared.anyone(link)
    await shared.anyone(link, range="bytes=100-")
    assert await shared.downloads() == 1


async def test_a_link_that_was_changed_or_is_over_is_refused_in_the_same_words(shared: Shared) -> None:
    token = (await shared.link()).split("/")[4]
    changed = token[:30] + ("A" if token[30] != "A" else "B") + token[31:]
    over = shared.signed(seconds=-1).split("/")[4]
    told = set()
    for wrong in (changed, over, "x", "A" * 72):
        answer = await shared.anyone(f"/api/v1/image-files/{wrong}/a.img")
        assert answer.status_code == 403
        problem = answer.json()
        told.add((problem["type"], problem["detail"]))
    assert len(told) == 1
    assert told.pop()[0] == "/problems/link-invalid"
    assert (await shared.anyone(shared.signed(seconds=60))).status_code == 200


async def test_a_link_ends_with_the_image_s_being_active(shared: Shared) -> None:
    link, http = await shared.link(), shared.service.http
    await http.post(f"{shared.path}/deactivate", headers=shared.headers)
    assert (await shared.anyone(link)).status_code == 409
    await http.post(f"{shared.path}/activate", headers=shared.headers)
    assert (await shared.anyone(link)).status_code == 200
    await http.delete(shared.path, headers=shared.headers)
    assert (await shared.anyone(link)).status_code == 404


async def test_nobody_gets_a_link_to_what_he_may_not_read(shared: Shared) -> None:
    stranger = shared.service.as_user(await shared.service.new_user())
    http = shared.service.http
    assert (await http.get(f"{shared.path}/download?redirect=true", headers=stranger)).status_code == 404
    assert (await http.post(f"{shared.path}/link", headers=stranger)).status_code == 404
    assert (await http.get(f"{shared.path}/download?redirect=true")).status_code == 401
    assert (await http.post(f"{shared.path}/link")).status_code == 401
    await http.post(f"{shared.path}/deactivate", headers=shared.headers)
    assert (await http.post(f"{shared.path}/link", headers=shared.headers)).status_code == 409


async def test_a_program_gets_a_whole_url_and_its_end(shared: Shared) -> None:
    headers = {**shared.headers, "x-forwarded-proto": "https", "x-forwarded-host": "telar.example.org:8443"}
    answer = await shared.service.http.post(f"{shared.path}/link", headers=headers, json={"expires_s": 3600})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    url = httpx.URL(answer.json()["url"])
    assert (url.scheme, url.host, url.port) == ("https", "telar.example.org", 8443)
    lasts_s = (datetime.fromisoformat(answer.json()["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 3590 < lasts_s <= 3600
    assert (await shared.anyone(url.raw_path.decode())).content == CONTENT


async def test_without_a_wish_a_link_is_good_for_as_long_as_the_settings_say(shared: Shared) -> None:
    for body in ({}, {"json": {}}, {"json": {"expires_s": None}}):
        answer = await shared.service.http.post(f"{shared.path}/link", headers=shared.headers, **body)
        assert answer.json()["url"].startswith("http://images/api/v1/image-files/")
        lasts_s = (datetime.fromisoformat(answer.json()["expires_at"]) - datetime.now(UTC)).total_seconds()
        assert 290 < lasts_s <= 300


@pytest.mark.parametrize("expires_s", [0, -1, 86_401, "soon", 1.5])
async def test_a_link_for_longer_than_a_day_or_for_no_time_is_refused(shared: Shared, expires_s: object) -> None:
    answer = await shared.service.http.post(
        f"{shared.path}/link", headers=shared.headers, json={"expires_s": expires_s}
    )
    assert answer.status_code == 422


async def test_a_service_may_make_a_link_to_any_image(shared: Shared) -> None:
    vms = shared.service.as_user("service:vms", role="SERVICE")
    answer = await shared.service.http.post(f"{shared.path}/link", headers=vms)
    assert (await shared.anyone(httpx.URL(answer.json()["url"]).raw_path.decode())).status_code == 200


async def test_links_never_reach_the_log_or_a_trace(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    link = await shared.link()
    token = link.split("/")[4]
    kept: dict[str, str] = {}

    class Span(trace.NonRecordingSpan):
        def set_attribute(self, key: str, value: object) -> None:
            kept[key] = str(value)

    monkeypatch.setattr(trace, "get_current_span", lambda *_: Span(trace.INVALID_SPAN_CONTEXT))
    with structlog.testing.capture_logs() as lines:
        await shared.anyone(link)
        await shared.anyone(link.replace(token, token[::-1]))
    requests = [redact(line) for line in lines if line["event"] == "request"]
    assert [line["path"].split("/")[4] for line in requests] == [REDACTED, REDACTED]
    assert token not in str([redact(line) for line in lines])
    assert kept["url.path"] == "/api/v1/image-files/[redacted]"
