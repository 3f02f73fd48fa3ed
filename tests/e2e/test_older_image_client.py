"""The older image API's client through the gateway: its two documented examples, unchanged but for the token."""

import json
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from libs.common.testing.needs import require_program
from tests.corpora.images import disks
from tests.corpora.images.hostile import HOSTILE, QUOTA
from tests.corpora.images.valid import made_by_tools

from .conftest import Account, RunningSuite

ISOS = {
    "memtest86+": "usr/lib/memtest86+/memtest86+x64.iso",
    "grub-rescue-pc": "usr/lib/grub-rescue/grub-rescue-cdrom.iso",
}


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: apt-get install {name}")
    return path


def _fetch(package: str, folder: Path) -> None:
    """Unpack a package of Debian into the folder; nothing is installed."""
    download = [_tool("apt-get"), "-q", "download", package]
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:  # never updated, perhaps
        subprocess.run([_tool("apt-get"), "-q", "update"], check=True, capture_output=True)
        subprocess.run(download, cwd=folder, check=True, capture_output=True)
    for archive in folder.glob("*.deb"):
        subprocess.run([_tool("dpkg-deb"), "-x", str(archive), str(folder)], check=True, capture_output=True)


@pytest.fixture(scope="module", params=sorted(ISOS))
def iso(request: pytest.FixtureRequest) -> Path:
    """A real bootable ISO out of one of Debian's packages, fetched once."""
    require_program("apt-get", package="apt")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "telar-tests" / "isos" / request.param
    path = cache / ISOS[request.param]
    if not path.exists():
        _fetch(request.param, cache)
    with path.open("rb") as file:
        file.seek(32_769)
        assert file.read(5) == b"CD001", f"{path} is not an ISO"
    return path


@pytest.fixture(scope="module")
def disk_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same disk in every format, by qemu-img; the key says which."""
    folder = tmp_path_factory.mktemp("disks")
    return {valid.what: folder / valid.filename for valid in made_by_tools(folder) if valid.format != "iso"}


def looks_as_documented(document: dict[str, Any], name: str, size: str) -> dict[str, Any]:
    """Check an upload's answer against the older API's example; gives the image."""
    image: dict[str, Any] = document["image"]
    assert document["success"] is True
    told = {key: image[key] for key in ("name", "os", "version", "architecture", "size", "status", "downloads")}
    assert told == {
        "name": name,
        "os": "Linux",
        "version": "22.04",
        "architecture": "x86_64",
        "size": size,
        "status": "active",
        "downloads": 0,
    }
    assert isinstance(image["id"], str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", image["created"])
    return image


def shown(path: Path) -> str:
    """A file's size as the older API wrote it."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"


def curl(*arguments: str) -> bytes:
    return subprocess.run([_tool("curl"), "-sS", *arguments], check=True, capture_output=True, timeout=60).stdout


def test_the_curl_example_uploads_a_real_iso(suite: RunningSuite, client: Account, iso: Path, tmp_path: Path) -> None:
    authorization = f"Authorization: Bearer {client.session['access_token']}"
    fields = {
        "name": iso.stem,
        "os_type": "Linux",
        "version": "22.04",
        "architecture": "x86_64",
        "description": "Boots and tests the memory",
    }
    said = [part for name, value in fields.items() for part in ("-F", f"{name}={value}")]
    upload = ["-X", "POST", f"{suite.url}/api/v1/images/upload", "-H", authorization, "-F", f"file=@{iso}", *said]
    image = looks_as_documented(json.loads(curl(*upload)), iso.stem, shown(iso))
    assert image["format"] == "iso"
    copy = tmp_path / "copy.iso"
    curl("-f", "-o", str(copy), "-H", authorization, f"{suite.url}/api/v1/images/{image['id']}/download")
    assert copy.read_bytes() == iso.read_bytes()
    assert client.http.get(f"/api/v1/images/{image['id']}").json()["downloads"] == 1
    assert client.http.delete(f"/api/v1/images/{image['id']}").status_code == 204


def test_the_python_example_uploads_every_format_and_the_rest_of_the_api_answers(
    suite: RunningSuite, client: Account, disk_files: dict[str, Path]
) -> None:
    headers = {"Authorization": f"Bearer {client.session['access_token']}"}
    images = {}
    for what, path in disk_files.items():
        with path.open("rb") as file:
            answer = requests.post(
                f"{suite.url}/api/v1/images/upload",
                headers=headers,
                files={"file": file},
                data={
                    "name": what,
                    "os_type": "Linux",
                    "version": "22.04",
                    "architecture": "x86_64",
                    "description": "A disk",
                },
                timeout=60,
            )
        assert answer.status_code == 201, f"{what}: {answer.text}"
        images[what] = looks_as_documented(answer.json(), what, shown(path))
    assert {image["format"] for image in images.values()} == {"qcow2", "vmdk", "vhd", "raw"}

    def get(path: str) -> requests.Response:
        return requests.get(f"{suite.url}/api/v1{path}", headers=headers, timeout=30)

    listed = {image["id"]: image for image in get("/images?limit=100").json()["items"]}
    for what, image in images.items():
        assert listed[image["id"]]["name"] == what
        assert get(f"/images/{image['id']}").json()["sha256"] == image["sha256"]
        assert get(f"/images/{image['id']}/download").content == disk_files[what].read_bytes()
    stats = get("/stats").json()
    assert stats["images"] == stats["downloads"] == len(images)
    assert stats["bytes"] == sum(path.stat().st_size for path in disk_files.values())
    assert set(stats["by_format"]) == {"qcow2", "vmdk", "vhd", "raw"}
    assert get("/health").json()["status"] == "ok"
    for image in images.values():
        url = f"{suite.url}/api/v1/images/{image['id']}"
        assert requests.delete(url, headers=headers, timeout=30).status_code == 204
        assert get(f"/images/{image['id']}").status_code == 404
    assert get("/images").json()["items"] == []


def test_its_uploads_are_refused_in_words_that_it_can_show(suite: RunningSuite, client: Account) -> None:
    upload = f"{suite.url}/api/v1/images/upload"
    token = {"Authorization": f"Bearer {client.session['access_token']}"}
    for hostile in HOSTILE:
        answer = requests.post(
            upload,
            headers=token,
            files={"file": (hostile.filename, hostile.content)},
            data={"name": "n", "os_type": "Linux", "version": "1", "architecture": "x86_64", "description": ""},
            timeout=30,
        )
        assert answer.status_code == (409 if hostile.slug == QUOTA else 422), f"{hostile.what}: {answer.text}"
        assert hostile.reason in answer.json()["detail"], hostile.what
    for wrong, status in (({"Authorization": "Bearer x"}, 401), ({}, 401)):
        files = {"file": ("a.img", disks.mbr_disk())}
        answer = requests.post(upload, headers=wrong, files=files, data={"name": secrets.token_hex(4)}, timeout=30)
        assert answer.status_code == status
    stats = client.http.get("/api/v1/stats").json()
    assert (stats["images"], stats["bytes"]) == (0, 0)
