"""download-url: a task that really fetches the URL, verifies its checksum and unpacks it."""

import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from libs.pvesim.access.permissions import AllOf, AnyOf, needs
from libs.pvesim.endpoints import Call, Routes
from libs.pvesim.errors import PveError, parameter_error
from libs.pvesim.params import STORAGE, Param, Schema, boolean, one_of, text
from libs.pvesim.storage.files import ALGORITHMS, adopt, check_content, check_digest, digest_of, normalised
from libs.pvesim.storage.kinds import FOLDERS
from libs.pvesim.storage.packing import UNPACKERS, unpack
from libs.pvesim.tasks import TaskRun

routes = Routes()
_NETWORK = AnyOf((needs("/", "Sys.Audit", "Sys.Modify"), needs("/nodes/{node}", "Sys.AccessNetwork")))
_PARAMS: Schema = {
    "storage": STORAGE.must(),
    "url": text(pattern="https?://.*", required=True),
    "content": one_of("iso", "vztmpl", "import").must(),
    "filename": text(255, required=True),
    "checksum": text(requires="checksum-algorithm"),
    "checksum-algorithm": Param(enum=ALGORITHMS, requires="checksum"),
    "compression": text(since=(8, 1)),
    "verify-certificates": boolean(1),
}


@routes.post(
    "/nodes/{node}/storage/{storage}/download-url",
    _PARAMS,
    AllOf((needs("/storage/{storage}", "Datastore.AllocateTemplate"), _NETWORK)),
)
async def download(call: Call) -> str:
    lab = call.lab
    storage = lab.storages.usable(call.get("storage"), call.node)
    content = call.get("content")
    check_content(storage, content, lab.settings.release)
    name = normalised(call.get("filename"), content)
    compression = call.get("compression")
    if compression is not None:
        if content != "iso":
            raise parameter_error("compression", "decompression not supported for this content type")
        if compression not in UNPACKERS:
            raise parameter_error("compression", f"unknown compression '{compression}'")
    node = call.node
    target = lab.storages.folder(storage, node, content) / name
    shown = f"{storage.path}/{FOLDERS[content]}/{name}"

    async def worker(run: TaskRun) -> None:
        run.log(f"downloading {call.get('url')} to {shown}")
        if await _already_there(call, target, shown):
            run.log("OK, got correct file already, no need to download")
            return
        folder = lab.settings.data_dir / "uploads"
        await lab.threads.run(folder.mkdir, parents=True, exist_ok=True)
        path = folder / f"download-{secrets.token_hex(8)}"
        try:
            await _fetch(call.get("url"), path, verify=call.flag("verify-certificates"))
            await run.work(lab.settings.seconds_of("download"))
            await check_digest(lab, path, call.get("checksum-algorithm"), call.get("checksum"))
            if compression is not None:
                run.log(f"decompressing with {compression}")
                await lab.threads.run(unpack, path, compression)
            await adopt(lab, storage, node, content, name, path)
            run.log(f"download of '{call.get('url')}' to '{shown}' finished")
        finally:
            path.unlink(missing_ok=True)

    return lab.tasks.start(node, "download", quote(name, safe=""), call.identity.authid, worker)


async def _already_there(call: Call, target: Path, shown: str) -> bool:
    if not await call.lab.threads.run(target.exists):
        return False
    expected = call.get("checksum")
    if expected is None:
        raise PveError(f"refusing to override existing file '{shown}'")
    found = await call.lab.threads.run(digest_of, target, call.get("checksum-algorithm"))
    if found != expected.lower():
        raise PveError(f"checksum mismatch: got '{found}' != expect '{expected.lower()}', aborting")
    return True


async def _fetch(url: str, path: Path, *, verify: bool) -> None:
    """Stream a URL into a file; failures are worded with wget's exit codes: 4 the network, 8 the server's answer."""
    try:
        async with (
            httpx.AsyncClient(verify=verify, follow_redirects=True, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            response.raise_for_status()
            with path.open("wb") as file:
                async for chunk in response.aiter_bytes(65536):
                    file.write(chunk)
    except httpx.HTTPStatusError as refused:
        raise PveError("download failed: exit code 8") from refused
    except (httpx.HTTPError, httpx.InvalidURL) as broken:
        raise PveError("download failed: exit code 4") from broken


@routes.get(
    "/nodes/{node}/query-url-metadata",
    {"url": text(pattern="https?://.*", required=True), "verify-certificates": boolean(1)},
    _NETWORK,
)
async def url_metadata(call: Call) -> dict[str, Any]:
    url = call.get("url")
    try:
        async with httpx.AsyncClient(
            verify=call.flag("verify-certificates"), follow_redirects=True, trust_env=False
        ) as client:
            response = await client.head(url)
            response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as broken:
        raise PveError("invalid server response") from broken
    found: dict[str, Any] = {"filename": urlsplit(str(response.url)).path.rsplit("/", 1)[-1]}
    if "content-length" in response.headers:
        found["size"] = int(response.headers["content-length"])
    if "content-type" in response.headers:
        found["mimetype"] = response.headers["content-type"].split(";")[0]
    return found
