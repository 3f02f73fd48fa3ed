"""Resumable uploads through the gateway, by a client that is not ours (tuspy)."""

import base64
import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.integration.images import tus_uploader

from .conftest import Account, RunningSuite

MIB = 1 << 20
SIZE = 48 * MIB
BYTES = "application/offset+octet-stream"
METADATA = {"filename": "disk.img", "name": "Through the gateway", "os_type": "Debian", "tags": "tus,tuspy"}
Within = Callable[..., float]


def tus(suite: RunningSuite, account: Account, **headers: str) -> TusClient:
    return TusClient(f"{suite.url}/api/v1/uploads", headers={**authorized(account), **headers})


def authorized(account: Account) -> dict[str, str]:
    return {"authorization": f"Bearer {account.session['access_token']}"}


def disk(size: int) -> bytes:
    return b"".join(tus_uploader.block(number) for number in range(size // MIB))


def image_of(account: Account, upload_url: str) -> dict[str, Any]:
    answer = account.http.get(f"/api/v1/images/{upload_url.rpartition('/')[2]}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def begin(account: Account, size: int) -> str:
    """Create an upload; gives its path."""
    fields = (("filename", "disk.img"), ("os_type", "Debian"))
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in fields)
    headers = {"tus-resumable": "1.0.0", "upload-length": str(size), "upload-metadata": metadata}
    answer = account.http.post("/api/v1/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def patch(account: Account, path: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    told = {"tus-resumable": "1.0.0", "upload-offset": str(offset), "content-type": BYTES}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return account.http.patch(path, headers={**told, **named}, content=content)


def test_anybody_may_ask_what_the_server_knows_of_tus(suite: RunningSuite) -> None:
    answer = httpx.options(f"{suite.url}/api/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert "creation-with-upload" in answer.headers["tus-extension"]
    assert httpx.post(f"{suite.url}/api/v1/uploads").status_code == 401


@pytest.mark.parametrize("checksums", [False, True])
def test_tuspy_uploads_in_chunks(suite: RunningSuite, client: Account, within: Within, *, checksums: bool) -> None:
    content = disk(SIZE)
    uploader = tus(suite, client).uploader(
        file_stream=io.BytesIO(content), chunk_size=7 * MIB, metadata=METADATA, upload_checksum=checksums
    )
    uploader.upload()
    within(lambda: image_of(client, uploader.url)["status"] == "active", 30)
    image = image_of(client, uploader.url)
    assert image["sha256"] == hashlib.sha256(content).hexdigest()
    assert image["sha512"] == hashlib.sha512(content).hexdigest()
    assert (image["name"], image["tags"], image["size_bytes"]) == (METADATA["name"], ["tus", "tuspy"], SIZE)
    again = tus(suite, client).uploader(file_stream=io.BytesIO(content), url=uploader.url)
    assert again.offset == SIZE  # a client that lost the last answer


def test_tuspy_is_killed_and_goes_on_in_another_process(
    suite: RunningSuite, client: Account, within: Within, tmp_path: Path
) -> None:
    notes, path = tmp_path / "notes", begin(client, SIZE)

    def start() -> subprocess.Popen[bytes]:
        tus_uploader.clear_notes(notes)
        told = [suite.url, client.session["access_token"], str(SIZE), str(5 * MIB), str(notes), path]
        return subprocess.Popen([sys.executable, "-m", "tests.integration.images.tus_uploader", *told])

    for kills, until in enumerate((10 * MIB, 30 * MIB)):
        with start() as process:
            within(lambda until=until: sum(tus_uploader.read_notes(notes)) >= until, 30)
            process.kill()
        began, _ = tus_uploader.read_notes(notes)
        assert began > 0 if kills else began == 0
    with start() as process:
        assert process.wait(30) == 0
    within(lambda: image_of(client, path)["status"] == "active", 30)
    image = image_of(client, path)
    assert (image["sha256"], image["sha512"]) == tus_uploader.digests(SIZE)


def test_what_tuspy_is_refused_is_told(
    suite: RunningSuite, client: Account, make_client: Callable[[], Account]
) -> None:
    def create(client: Account, metadata: dict[str, str]) -> None:
        tus(suite, client).uploader(file_stream=io.BytesIO(bytes(MIB)), metadata=metadata).create_url()

    with pytest.raises(TusCommunicationError, match="422"):
        create(client, {"filename": "program.exe", "os_type": "Debian"})
    path = begin(client, MIB)
    with pytest.raises(TusCommunicationError, match="404"):
        tus(suite, make_client()).uploader(file_stream=io.BytesIO(bytes(MIB)), url=suite.url + path)
    headers = {"tus-resumable": "1.0.0"}
    assert client.http.delete(path, headers=headers).status_code == 204
    with pytest.raises(TusCommunicationError, match="404"):
        tus(suite, client).uploader(file_stream=io.BytesIO(bytes(MIB)), url=suite.url + path)


def test_tus_refusals_come_through_the_gateway_as_they_are(client: Account) -> None:
    path = begin(client, SIZE)
    wrong = patch(client, path, 0, bytes(100), upload_checksum="sha1 " + base64.b64encode(bytes(20)).decode())
    assert (wrong.status_code, wrong.json()["type"]) == (460, "/problems/checksum-mismatch")
    assert wrong.headers["tus-resumable"] == "1.0.0"
    early = patch(client, path, 5, bytes(16 * MIB))  # refused before it is read
    assert (early.status_code, early.headers["upload-offset"]) == (409, "0")
    version = client.http.head(path)
    assert (version.status_code, version.headers["tus-version"]) == (412, "1.0.0")
    overridden = client.http.post(path, headers={"x-http-method-override": "PATCH", "tus-resumable": "1.0.0"})
    assert overridden.status_code == 405
