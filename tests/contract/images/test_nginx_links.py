"""deploy/nginx/image-files.conf in a real nginx, with links that the service signs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr

from libs.common.testing.needs import require_program
from libs.common.testing.ports import free_port
from services.images.adapters.links import NginxLinks
from tests.contract.images.harness import Service, running
from tests.corpora.images import disks

CONF = Path(__file__).parents[3] / "deploy" / "nginx" / "image-files.conf"
SECRET = "a secret of the tests, long enough"
CONTENT = disks.raw_disk(3 << 20)[:-4096] + bytes(range(256)) * 16
NAME = 'Zürich "cloud"; 100 % image'
MAIN = """
daemon off; {user} pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ }}
http {{
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    include {folder}/image-files.conf;
}}
"""
Eventually = Callable[..., Awaitable[None]]


@dataclass
class Site:
    """The service with an nginx beside it that reads its folder, and the folder of nginx's own files."""

    service: Service
    http: httpx.AsyncClient
    folder: Path
    owner: str
    image_id: str

    async def link(self) -> str:
        """Where a download is redirected to."""
        url = f"/api/v1/images/{self.image_id}/download?redirect=true"
        answer = await self.service.http.get(url, headers=self.service.as_user(self.owner))
        assert answer.status_code == 307
        location: str = answer.headers["location"]
        return location


def _configure(folder: Path, blobs: Path, port: int) -> None:
    """The file as it is deployed, but for the port and the log's place."""
    text = CONF.read_text()
    for deployed, here in (
        ("listen 8088;", f"listen 127.0.0.1:{port};"),
        ("/var/log/nginx/image-files.log", f"{folder}/access.log"),
    ):
        assert text.count(deployed) == 1
        text = text.replace(deployed, here)
    (folder / "image-files.conf").write_text(text)
    (folder / "image-files.secret").write_text(f'set $image_folder {blobs};\nset $image_link_secret "{SECRET}";\n')
    user = "user root;" if Path("/root").owner() == Path.home().owner() else ""  # the tests' folders are ours alone
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))


@pytest.fixture(scope="module")
async def site(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> AsyncIterator[Site]:
    program = require_program("nginx", package="nginx-light")
    folder, data, port = tmp_path_factory.mktemp("nginx"), tmp_path_factory.mktemp("data"), free_port()
    base = f"http://127.0.0.1:{port}"
    links = {"link_url": f"{base}/some/where/", "link_secret": SecretStr(SECRET)}
    async with running(database_url, data, **links) as service, httpx.AsyncClient(base_url=base) as http:
        _configure(folder, service.settings.blob_folder, port)
        nginx = await asyncio.create_subprocess_exec(program, "-c", str(folder / "nginx.conf"))

        async def serves() -> bool:
            assert nginx.returncode is None, "nginx has ended"
            with contextlib.suppress(httpx.ConnectError):
                return (await http.get("/")).status_code == 404
            return False

        try:
            await eventually(serves)
            owner = await service.new_user()
            image = await service.image(owner, CONTENT, filename="a.img", name=NAME)
            yield Site(service, http, folder, owner, image["id"])
        finally:
            nginx.terminate()
            await nginx.wait()


async def test_a_link_gives_the_file_under_its_name_and_in_part(site: Site) -> None:
    link = await site.link()
    assert link.startswith(f"{site.http.base_url}/some/where/blobs/")
    whole = await site.http.get(link)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["content-disposition"] == (
        "attachment; filename*=UTF-8''Z%C3%BCrich%20_cloud_%20100%20_%20image.img"
    )
    assert whole.headers["content-type"] == "application/octet-stream"
    part = await site.http.get(link, headers={"range": "bytes=1000-1999", "if-range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, CONTENT[1000:2000])
    many = await site.http.get(link, headers={"range": "bytes=0-1,5-6"})
    assert (many.status_code, len(many.content)) == (200, len(CONTENT))
    assert (await site.http.head(link)).headers["content-length"] == str(len(CONTENT))
    assert (await site.http.post(link)).status_code == 403


async def test_a_link_that_was_changed_anywhere_is_refused(site: Site) -> None:
    link = await site.link()
    start = link.index("/blobs/")
    changed = [
        link[:at] + other + link[at + 1 :]
        for at in range(start, len(link))
        for other in "12AQR_~"
        if other.lower() != link[at].lower()  # the names of parameters have no case for nginx
    ]
    let_in = [url for url in changed if (await site.http.head(url)).status_code not in (403, 404)]
    assert let_in == []
    query = urlsplit(link).query
    for more in (f"{link}0", f"{link}&expires=9999999999", f"{link.split('?')[0]}?expires=9999999999&{query}"):
        assert (await site.http.head(more)).status_code in (200, 403)
    later = link.replace(f"expires={parse_qs(query)['expires'][0]}", "expires=9999999999")
    assert (await site.http.head(later)).status_code == 403
    assert (await site.http.head(link)).status_code == 200


async def test_a_link_of_the_past_is_refused(site: Site) -> None:
    key = urlsplit(await site.link()).path.removeprefix("/some/where/")
    past = NginxLinks(str(site.http.base_url), SECRET).sign(key, filename="a.img", expires_at=1_000_000_000)
    assert (await site.http.get(past)).status_code == 410


async def test_nothing_but_published_files_is_given_even_when_signed(site: Site) -> None:
    blobs = site.service.settings.blob_folder
    (blobs / "staging" / "a.part").write_bytes(b"secret")
    digest = "ab" * 32
    link = blobs / "blobs" / "ab" / f"{digest}.{site.image_id}"
    link.parent.mkdir()
    link.symlink_to("/etc/passwd")
    links = NginxLinks(str(site.http.base_url), SECRET)
    for key, status in (
        ("staging/a.part", 404),
        ("blobs/../staging/a.part", 404),
        (f"blobs/ab/{digest}.{site.image_id}", 403),
    ):
        url = links.sign(key, filename="a.img", expires_at=9_999_999_999)
        assert (await site.http.get(url)).status_code == status, key
    link.unlink()


async def test_a_deleted_image_is_gone_for_its_links_too(site: Site) -> None:
    service, owner = site.service, await site.service.new_user()
    image = await service.image(owner, disks.qcow2())
    made = await service.http.post(f"/api/v1/images/{image['id']}/link", headers=service.as_user(owner))
    assert (await site.http.get(made.json()["url"])).status_code == 200
    await service.http.delete(f"/api/v1/images/{image['id']}", headers=service.as_user(owner))
    assert (await site.http.get(made.json()["url"])).status_code == 404


async def test_a_link_past_the_service_counts_when_it_is_made(site: Site) -> None:
    service, owner = site.service, await site.service.new_user()
    image = await service.image(owner, disks.qcow2())
    url, headers = f"/api/v1/images/{image['id']}", service.as_user(owner)
    await service.http.get(f"{url}/download?redirect=true", headers=headers)
    await service.http.post(f"{url}/link", headers=headers)
    await service.http.head(f"{url}/download?redirect=true", headers=headers)
    assert (await service.http.get(url, headers=headers)).json()["downloads"] == 2


async def test_no_signature_reaches_the_log(site: Site) -> None:
    key = urlsplit(await site.link()).path.removeprefix("/some/where/")
    link = NginxLinks(str(site.http.base_url), SECRET).sign(key, filename="logged.img", expires_at=9_999_999_999)
    assert (await site.http.get(link)).status_code == 200
    line = (site.folder / "access.log").read_text().splitlines()[-1]
    assert line.endswith(f'"GET /{key}" 200 {len(CONTENT)}')
