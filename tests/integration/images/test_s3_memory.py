import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.contract.images.s3 import new_bucket, s3_server
from tests.integration.images.test_processes import ENDING, MIB, opening, started


@pytest.mark.long
async def test_a_large_file_to_and_from_s3_takes_little_memory(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, piece = 256 * MIB, os.urandom(MIB)

    async def body() -> AsyncIterator[bytes]:
        yield opening()
        for _ in range(size // MIB):
            yield piece
        yield ENDING

    with s3_server() as endpoint:
        bucket = new_bucket(endpoint)
        for name, value in bucket.settings.items():
            told = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            monkeypatch.setenv(f"TELAR_IMAGES_{name.upper()}", told)
        async with started(database_url, tmp_path) as service:
            await service.http.get("/api/v1/images", headers=service.headers)
            before = service.memory_bytes("VmRSS")
            service.reset_peak()
            headers = {**service.headers, "content-length": str(len(opening()) + size + len(ENDING))}
            answer = await service.http.post("/api/v1/images/upload", headers=headers, content=body())
            assert answer.status_code == 201, answer.text
            path, digest = f"/api/v1/images/{answer.json()['image']['id']}", hashlib.sha256()
            async with service.http.stream("GET", f"{path}/download", headers=service.headers) as download:
                async for received in download.aiter_raw():
                    digest.update(received)
            assert digest.hexdigest() == answer.json()["image"]["sha256"]
            assert service.memory_bytes("VmHWM") - before < 64 * MIB
            assert len(bucket.keys()) == 1
            await service.http.delete(path, headers=service.headers)
            assert bucket.keys() == bucket.multiparts() == []
