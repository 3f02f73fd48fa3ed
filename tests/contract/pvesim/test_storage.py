import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.contract.pvesim.conftest import Client

NewVm = Callable[..., Awaitable[int]]
FreshId = Callable[[], int]
IMAGE = b"an installation image " * 1000
QCOW2 = b"QFI\xfb" + bytes(20) + (5 * 1024**3).to_bytes(8, "big") + bytes(4064)


@pytest.fixture(scope="module")
async def mirror() -> AsyncIterator[str]:
    """A tiny HTTP server with one image, plain and packed."""
    files = {"/image.iso": IMAGE, "/image.iso.gz": gzip.compress(IMAGE), "/disk.qcow2": QCOW2}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        body = files.get(path)
        status = "200 OK" if body is not None else "404 Not Found"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body or b'')}\r\nConnection: close\r\n\r\n".encode())
        writer.write(body or b"")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def upload(token: Client, path: Path, storage: str = "local", **fields: str) -> str:
    def send() -> str:
        with path.open("rb") as file:
            named = {key.replace("__", "-"): value for key, value in fields.items()}
            upid: str = token.api().nodes("sv1").storage(storage).upload.post(**named, filename=file)
            return upid

    upid = await asyncio.to_thread(send)
    return str((await token.task(upid))["exitstatus"])


async def volumes(token: Client, storage: str) -> dict[str, dict[str, object]]:
    return {item["volid"]: item for item in await token("get", f"nodes/sv1/storage/{storage}/content")}


async def test_30_uploads_normalise_names_overwrite_and_verify(token: Client, tmp_path: Path) -> None:
    image = tmp_path / "my image.iso"
    image.write_bytes(IMAGE)
    assert await upload(token, image, content="iso") == "OK"
    assert (await volumes(token, "local"))["local:iso/my_image.iso"]["size"] == len(IMAGE)
    image.write_bytes(IMAGE * 2)
    digest = hashlib.sha256(IMAGE * 2).hexdigest()
    fields = {"content": "iso", "checksum__algorithm": "sha256"}
    assert await upload(token, image, **fields, checksum=digest) == "OK"
    assert (await volumes(token, "local"))["local:iso/my_image.iso"]["size"] == 2 * len(IMAGE)
    wrong = await upload(token, image, **fields, checksum="00")
    assert wrong == f"checksum mismatch: got '{digest}' != expect '00'"
    assert await token.done("delete", "nodes/sv1/storage/local/content/local:iso/my_image.iso") == "OK"
    assert "local:iso/my_image.iso" not in await volumes(token, "local")


async def test_30_a_large_upload_streams(token: Client, tmp_path: Path) -> None:
    image = tmp_path / "large.iso"
    image.write_bytes(b"0123456789abcdef" * 786_432)
    assert await upload(token, image, content="iso") == "OK"
    assert (await volumes(token, "local"))["local:iso/large.iso"]["size"] == 12 * 1024**2


async def test_30_the_file_part_is_named_filename_and_has_a_known_extension(token: Client, tmp_path: Path) -> None:
    wrong = tmp_path / "image.exe"
    wrong.write_bytes(b"x")
    with pytest.raises(Exception, match="wrong file extension"):
        await upload(token, wrong, content="iso")

    def misname() -> None:
        with wrong.open("rb") as file:
            token.api().nodes("sv1").storage("local").upload.post(content="iso", file=file)

    with pytest.raises(Exception, match="wrong field name 'file' for file upload, expected 'filename'"):
        await asyncio.to_thread(misname)


async def test_30_downloads_are_real_verified_unpacked_and_refuse_existing_files(token: Client, mirror: str) -> None:
    path = "nodes/sv1/storage/shared/download-url"
    digest = {"checksum": hashlib.sha256(IMAGE).hexdigest(), "checksum__algorithm": "sha256"}
    base = {"content": "iso", "filename": "plain.iso", "url": f"{mirror}/image.iso"}
    assert await token.done("post", path, **base, **digest) == "OK"
    assert (await volumes(token, "shared"))["shared:iso/plain.iso"]["size"] == len(IMAGE)
    assert await token.done("post", path, **base) == (
        "refusing to override existing file '/mnt/pve/shared/template/iso/plain.iso'"
    )
    assert await token.done("post", path, **base, **digest) == "OK"
    packed = {"content": "iso", "filename": "packed.iso", "url": f"{mirror}/image.iso.gz", "compression": "gz"}
    assert await token.done("post", path, **packed) == "OK"
    assert (await volumes(token, "shared"))["shared:iso/packed.iso"]["size"] == len(IMAGE)
    missing = {"content": "iso", "filename": "none.iso", "url": f"{mirror}/none.iso"}
    assert await token.done("post", path, **missing) == "download failed: exit code 8"
    bad = {"content": "iso", "filename": "bad.iso", "url": f"{mirror}/image.iso"}
    assert (await token.done("post", path, **bad, checksum="00", checksum__algorithm="md5")).startswith(
        "checksum mismatch: got"
    )


async def test_an_imported_image_becomes_a_machine_that_boots(token: Client, mirror: str, fresh_id: FreshId) -> None:
    fetch = {"content": "import", "filename": "disk.qcow2", "url": f"{mirror}/disk.qcow2"}
    assert await token.done("post", "nodes/sv1/storage/shared/download-url", **fetch) == "OK"
    vmid = fresh_id()
    created = await token.done(
        "post",
        "nodes/sv1/qemu",
        vmid=vmid,
        scsi0="shared:0,import-from=shared:import/disk.qcow2",
        ide2="shared:cloudinit",
        net0="virtio,bridge=vmbr0",
        agent="enabled=1",
    )
    assert created == "OK"
    config = await token("get", f"nodes/sv1/qemu/{vmid}/config")
    assert config["scsi0"] == f"shared:{vmid}/vm-{vmid}-disk-0.qcow2,size=5G"
    assert config["ide2"] == f"shared:{vmid}/vm-{vmid}-cloudinit.qcow2,media=cdrom"
    assert config["boot"] == "order=scsi0;net0"
    assert await token.done("post", f"nodes/sv1/qemu/{vmid}/template") == "OK"
    sized = await token.fails(
        "post", "nodes/sv1/qemu", vmid=fresh_id(), scsi0="shared:5,import-from=shared:import/disk.qcow2"
    )
    assert sized.errors == {"scsi0": "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>"}


async def test_storages_tell_what_they_are(token: Client) -> None:
    found = {storage["storage"]: storage for storage in await token("get", "nodes/sv1/storage")}
    assert {name: (s["type"], s["shared"]) for name, s in found.items()} == {
        "local": ("dir", 0),
        "local-lvm": ("lvmthin", 0),
        "shared": ("nfs", 1),
    }
    assert found["shared"]["total"] == found["shared"]["used"] + found["shared"]["avail"]
    assert [s["storage"] for s in await token("get", "nodes/sv1/storage", target="sv2")] == ["shared"]
    assert (await token.fails("get", "nodes/sv1/storage", storage="gone-x")).errors == {"storage": "No such storage."}
