"""Files on a cluster's storages: images to import, and seeds."""

import io

from services.vms.adapters.proxmox.calls import begin, upid_of
from services.vms.adapters.proxmox.session import Session
from services.vms.domain.cluster import safe_file, safe_name
from services.vms.errors import ProxmoxRefused, UnsafeId


class _NamedFile(io.BytesIO):
    """What proxmoxer sends as a file part: it takes the name from the file."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class StorageFiles:
    """Implements `ports.Files`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def download(self, node: str, storage: str, *, url: str, name: str, sha256: str) -> str:
        options = {
            "url": url,
            "content": "import",
            "filename": safe_file(name),
            "checksum": sha256,
            "checksum-algorithm": "sha256",
        }
        path = f"{_storage(node, storage)}/download-url"
        return await begin(self._session, "post", path, node, **options)

    async def upload(self, node: str, storage: str, *, name: str, content: bytes) -> str:
        file = _NamedFile(content, safe_file(name))
        path = f"{_storage(node, storage)}/upload"
        return await begin(self._session, "post", path, node, content="iso", filename=file)

    async def remove(self, node: str, volume: str) -> str | None:
        storage, _, rest = volume.partition(":")
        kind, _, name = rest.partition("/")
        if kind not in ("iso", "import"):
            raise UnsafeId("Only seeds and images to import are removed as files")
        path = f"{_storage(node, storage)}/content/{safe_name(storage)}:{kind}/{safe_file(name)}"
        try:
            answer = await self._session.call("delete", path, node=node)
        except ProxmoxRefused as error:
            if "does not exist" in error.reason or "no such" in error.reason.lower():
                return None
            raise
        return None if answer is None else upid_of(answer, node)


def _storage(node: str, storage: str) -> str:
    return f"nodes/{safe_name(node)}/storage/{safe_name(storage)}"
