import asyncio
import bz2
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from libs.pvesim.app import RunningLab
from libs.pvesim.faults import Fault
from tests.contract.pvesim.conftest import Client, lab_at
from tests.contract.pvesim.test_http import raw, token_header
from tests.contract.pvesim.test_storage import upload, volumes

FreshId = Callable[[], int]
GIB = 1024**3
IMAGE = b"an installation image " * 1000
QCOW2 = b"QFI\xfb" + bytes(20) + (5 * GIB).to_bytes(8, "big") + bytes(4064)
VMDK = b"KDMV" + (1).to_bytes(4, "little") + bytes(4) + (2 * GIB // 512).to_bytes(8, "little") + bytes(492)
RAW = bytes(1024**2)
OVF = b"""<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File ovf:id="file1" ovf:href="disk.vmdk"/></References>
  <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="file1" ovf:capacity="2"/></DiskSection>
  <VirtualSystem ovf:id="appliance"><VirtualHardwareSection>
    <Item><ResourceType>3</ResourceType><VirtualQuantity>4</VirtualQuantity></Item>
    <Item><ResourceType>4</ResourceType><VirtualQuantity>1024</VirtualQuantity></Item>
    <Item><ResourceType>10</ResourceType><ResourceSubType>E1000</ResourceSubType></Item>
  </VirtualHardwareSection></VirtualSystem>
</Envelope>"""


def lzo(data: bytes) -> bytes:
    return subprocess.run(["lzop", "-c"], input=data, capture_output=True, check=True).stdout  # noqa: S607


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
    **({"lzo": lzo} if shutil.which("lzop") else {}),
}


def ova() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in (("machine.ovf", OVF), ("disk.vmdk", VMDK)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture(scope="module")
async def mirror() -> AsyncIterator[str]:
    """A tiny HTTP server with the image, packed in every way, and damaged."""
    files = {f"/image.{name}": pack(IMAGE) for name, pack in PACKERS.items()}
    files |= {"/damaged.zst": zstandard.compress(IMAGE)[:-20] + bytes(20), "/damaged.gz": b"not packed at all"}
    files |= {"/image.iso": IMAGE}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        body = files[path]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-iso\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("packing", PACKERS)
async def test_30_downloads_are_unpacked(token: Client, mirror: str, packing: str) -> None:
    digest = hashlib.sha512(PACKERS[packing](IMAGE)).hexdigest()
    wish = {"url": f"{mirror}/image.{packing}", "content": "iso", "filename": f"from-{packing}.iso"}
    checked = {"checksum": digest, "checksum-algorithm": "sha512"} if packing != "lzo" else {}
    upid = await token("post", "nodes/sv1/storage/shared/download-url", compression=packing, **wish, **checked)
    assert (await token.task(upid))["exitstatus"] == "OK"
    assert upid.split(":")[5:7] == ["download", f"from-{packing}.iso"]
    assert (await volumes(token, "shared"))[f"shared:iso/from-{packing}.iso"]["size"] == len(IMAGE)


@pytest.mark.parametrize("packing", ["gz", "zst"])
async def test_30_a_damaged_archive_leaves_nothing_behind(token: Client, mirror: str, packing: str) -> None:
    wish = {"url": f"{mirror}/damaged.{packing}", "content": "iso", "filename": f"damaged-{packing}.iso"}
    ended = await token.done("post", "nodes/sv1/storage/shared/download-url", compression=packing, **wish)
    assert ended.startswith("decompression of ")
    assert f"shared:iso/damaged-{packing}.iso" not in await volumes(token, "shared")


async def test_30_downloads_that_cannot_be_are_refused(token: Client, root: Client, mirror: str) -> None:
    path = "nodes/sv1/storage/shared/download-url"
    wish = {"url": f"{mirror}/image.iso", "content": "iso", "filename": "x.iso"}
    assert set((await token.fails("post", path, **wish, compression="rar")).errors) == {"compression"}
    image = wish | {"content": "import", "filename": "x.qcow2"}
    assert set((await token.fails("post", path, **image, compression="gz")).errors) == {"compression"}
    assert set((await token.fails("post", path, **wish, checksum="00")).errors) == {"checksum-algorithm"}
    block = await token.fails("post", "nodes/sv1/storage/local-lvm/download-url", **wish)
    assert block.content == "can't upload to storage type 'lvmthin'"
    unknown = await root.fails("post", "nodes/sv1/storage/nowhere/download-url", **wish)
    assert unknown.content == "storage 'nowhere' does not exist"
    told = await token("get", "nodes/sv1/query-url-metadata", url=f"{mirror}/image.iso")
    assert told == {"filename": "image.iso", "size": len(IMAGE), "mimetype": "application/x-iso"}


@pytest.mark.parametrize(
    ("name", "content", "size"), [("a.qcow2", QCOW2, "5G"), ("b.vmdk", VMDK, "2G"), ("c.raw", RAW, "1M")]
)
async def test_disk_images_are_imported_with_the_size_in_their_header(
    token: Client, fresh_id: FreshId, tmp_path: Path, name: str, content: bytes, size: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert await upload(token, tmp_path / name, content="import") == "OK"
    vmid, kind = fresh_id(), name[2:]
    how = {"scsi0": f"shared:0,import-from=local:import/{name}"}
    assert await token.done("post", "nodes/sv1/qemu", vmid=vmid, **how) == "OK"
    config = await token("get", f"nodes/sv1/qemu/{vmid}/config")
    assert config["scsi0"] == f"shared:{vmid}/vm-{vmid}-disk-0.{kind},size={size}"
    await token("put", f"nodes/sv1/qemu/{vmid}/config", scsi1=f"local-lvm:0,import-from=local:import/{name}")
    config = await token("get", f"nodes/sv1/qemu/{vmid}/config")
    assert config["scsi1"] == f"local-lvm:vm-{vmid}-disk-0,size={size}"


async def test_a_disk_inside_an_archive_is_imported(token: Client, fresh_id: FreshId, tmp_path: Path) -> None:
    (tmp_path / "machine.ova").write_bytes(ova())
    assert await upload(token, tmp_path / "machine.ova", storage="shared", content="import") == "OK"
    volid = "shared:import/machine.ova"
    told = await token("get", "nodes/sv1/storage/shared/import-metadata", volume=volid)
    assert told["create-args"] == {"name": "appliance", "cores": 4, "memory": 1024}
    assert told["disks"] == {"scsi0": {"volid": f"{volid}/disk.vmdk", "size": 2 * GIB}}
    assert told["net"] == {"net0": {"model": "e1000"}}
    vmid = fresh_id()
    arguments: dict[str, Any] = told["create-args"] | {"scsi0": f"local-lvm:0,import-from={volid}/disk.vmdk"}
    assert await token.done("post", "nodes/sv1/qemu", vmid=vmid, **arguments) == "OK"
    assert (await token("get", f"nodes/sv1/qemu/{vmid}/config"))["scsi0"] == f"local-lvm:vm-{vmid}-disk-0,size=2G"
    missing = await token.fails(
        "post", "nodes/sv1/qemu", vmid=fresh_id(), scsi0=f"local-lvm:0,import-from={volid}/other.vmdk"
    )
    assert missing.content == f"volume '{volid}/other.vmdk' does not exist"
    unfit = await token.fails(
        "post", "nodes/sv1/qemu", vmid=fresh_id(), **{**arguments, "import-working-storage": "local"}
    )
    assert set(unfit.errors) == {"import-working-storage"}


async def test_imports_take_disks_and_nothing_else(token: Client, fresh_id: FreshId, tmp_path: Path) -> None:
    (tmp_path / "cd.iso").write_bytes(IMAGE)
    await upload(token, tmp_path / "cd.iso", content="iso")
    wrong = await token.fails("post", "nodes/sv1/qemu", vmid=fresh_id(), scsi0="shared:0,import-from=local:iso/cd.iso")
    text = "local:iso/cd.iso has wrong type 'iso' - needs to be 'images' or 'import'"
    assert wrong.errors == {"scsi0": text}
    path = await token.fails("post", "nodes/sv1/qemu", vmid=fresh_id(), scsi0="shared:0,import-from=/root/x.raw")
    assert path.content == "Only root can pass arbitrary filesystem paths."
    plain = await token.fails("post", "nodes/sv1/qemu", vmid=fresh_id(), ide0="local:iso/cd.iso")
    assert plain.errors == {"ide0": "explicit 'media=cdrom' is required for iso images"}
    vmid = fresh_id()
    copy = "shared:0,import-from=shared:9001/base-9001-disk-0.qcow2"
    assert await token.done("post", "nodes/sv2/qemu", vmid=vmid, scsi0=copy) == "OK"
    assert (await token("get", f"nodes/sv2/qemu/{vmid}/config"))["scsi0"].endswith("size=3G")


async def test_30_upload_parts_come_in_their_order_and_under_their_names(lab: RunningLab) -> None:
    def part(head: str, body: str) -> str:
        return f"--b\r\n{head}\r\n\r\n{body}\r\n"

    file = part('Content-Disposition: form-data; name="filename"; filename="x.iso"', "bytes")
    content = part('Content-Disposition: form-data; name="content"', "iso")
    late = part('Content-Type: text/plain\r\nContent-Disposition: form-data; name="content"', "iso")
    cases = {
        content + file: "200 OK",
        file + content: "500 upload failed",
        late + file: "500 wrong Content-Disposition in multipart request",
    }
    headers = token_header(lab) | {"Content-Type": "multipart/form-data; boundary=b"}
    for body, expected in cases.items():
        path = "/api2/json/nodes/sv1/storage/local/upload"
        head, _ = await raw(lab, "POST", path, headers, f"{body}--b--\r\n".encode())
        assert head.splitlines()[0] == f"HTTP/1.1 {expected}"


async def test_30_an_upload_stays_on_the_api_node_until_its_task_copied_it(tmp_path: Path) -> None:
    (tmp_path / "x.iso").write_bytes(IMAGE)
    async with lab_at(tmp_path / "lab") as lab:
        token = Client(lab)

        def send() -> str:
            with (tmp_path / "x.iso").open("rb") as file:
                upid: str = token.api().nodes("sv3").storage("local").upload.post(content="iso", filename=file)
                return upid

        upid = await asyncio.to_thread(send)
        assert upid.split(":")[1] == "sv1"
        assert (await token.task(upid))["exitstatus"] == "OK"
        assert [v["volid"] for v in await token("get", "nodes/sv3/storage/local/content")] == ["local:iso/x.iso"]
        assert await token("get", "nodes/sv1/storage/local/content") == []
        await lab.lab.inject(Fault(kind="node_down", node="sv3"))
        assert "No route to host" in (await token.task(await asyncio.to_thread(send)))["exitstatus"]


async def test_older_releases_know_less_of_files(tmp_path: Path) -> None:
    async with lab_at(tmp_path / "lab", version="7.4.3") as lab:
        token = Client(lab)
        (tmp_path / "x.qcow2").write_bytes(QCOW2)
        with pytest.raises(Exception, match="400 Bad Request"):
            await upload(token, tmp_path / "x.qcow2", content="import")
        wish = {"url": "http://127.0.0.1:9/x", "content": "iso", "filename": "x.iso", "compression": "gz"}
        unknown = await token.fails("post", "nodes/sv1/storage/local/download-url", **wish)
        assert set(unknown.errors) == {"compression"}
        head, _ = await raw(lab, "POST", "/api2/json/nodes/sv1/storage/local/upload", token_header(lab), b"x")
        assert head.splitlines()[0] == "HTTP/1.1 501 upload failed"
