"""Links to image files through the gateway: made with a login, used without one, and nowhere in the log."""

import json
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from libs.common.redaction import REDACTED
from tests.corpora.images import disks

from .conftest import Account, RunningSuite

CONTENT = disks.raw_disk(1 << 20) + secrets.token_bytes(1 << 20)


@pytest.fixture(scope="module")
def image(admin: Account) -> Iterator[str]:
    """The path of an image of the administrator's."""
    answer = admin.http.post(
        "/api/v1/images/upload", data={"name": "linked", "os_type": "Debian"}, files={"file": ("a.img", CONTENT)}
    )
    assert answer.status_code == 201, answer.text
    path = f"/api/v1/images/{answer.json()['image']['id']}"
    yield path
    admin.http.delete(path)


def test_a_redirect_is_followed_without_a_login(suite: RunningSuite, admin: Account, image: str) -> None:
    answer = admin.http.get(f"{image}/download", params={"redirect": "true"}, follow_redirects=False)
    assert answer.status_code == 307
    with httpx.Client(base_url=suite.url) as anybody:
        link = answer.headers["location"]
        assert anybody.get(link).content == CONTENT
        assert anybody.get(link, headers={"range": "bytes=5-9"}).content == CONTENT[5:10]
        assert anybody.head(link).headers["content-length"] == str(len(CONTENT))
        assert anybody.post(link).status_code == 401
        assert anybody.get("/api/v1/image-files/nonsense/a.img").status_code == 403
    assert admin.http.get(f"{image}/download", params={"redirect": "true"}, follow_redirects=True).content == CONTENT


def test_a_program_gets_a_url_that_leads_through_the_gateway(suite: RunningSuite, admin: Account, image: str) -> None:
    answer = admin.http.post(f"{image}/link", json={"expires_s": 60})
    assert answer.status_code == 200, answer.text
    assert answer.json()["url"].startswith(f"{suite.url}/api/v1/image-files/")
    assert httpx.get(answer.json()["url"]).content == CONTENT


def test_no_link_reaches_the_log(suite: RunningSuite, admin: Account, image: str) -> None:
    url = admin.http.post(f"{image}/link").json()["url"]
    token = url.split("/image-files/")[1].split("/")[0]
    assert httpx.get(url).status_code == 200
    assert httpx.post(url).status_code == 401
    assert httpx.get(url.replace(token, token[::-1])).status_code == 403
    seen, deadline = "", time.monotonic() + 30
    with admin.http.stream("GET", "/logs/stream", params={"service": "images"}) as stream:
        for line in stream.iter_lines():
            seen += line
            if f"/image-files/{REDACTED}/" in line and json.loads(line.partition("data:")[2])["status"] == 403:
                break
            assert time.monotonic() < deadline, "the request was not logged"
    assert token not in seen
    assert token[::-1] not in seen
    assert token not in suite.logged()
