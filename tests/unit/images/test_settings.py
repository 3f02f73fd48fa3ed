from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from libs.common.settings import CommonSettings
from services.images.adapters.blob_stores import blob_store
from services.images.adapters.folder_blobs import FolderBlobStore
from services.images.adapters.s3_blobs import S3BlobStore
from services.images.settings import ImagesSettings

SECRET = SecretStr("long enough to be a secret of ours")
KEYS = {"s3_access_key_id": "id", "s3_secret_access_key": SecretStr("key")}


def settings(**options: Any) -> ImagesSettings:
    return ImagesSettings(common=CommonSettings(embedded=True, data_dir=Path("/nowhere")), **options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"blob_url": "/a/folder"},
        {"blob_url": "file://host/folder"},
        {"blob_url": "s3:///prefix"},
        {"blob_url": "gs://bucket"},
        {"blob_url": "s3://bucket", "s3_access_key_id": "id"},
        {"blob_url": "s3://bucket", "s3_secret_access_key": SecretStr("key")},
        {"blob_url": "s3://bucket", **KEYS, "s3_endpoint": "http://10.0.0.1:9000"},
        {"link_url": "https://files.example.org"},
        {"link_secret": SECRET},
        {"link_url": "https://files.example.org", "link_secret": SecretStr("short")},
        {"link_url": "files.example.org", "link_secret": SECRET},
        {"link_seconds": 0},
        {"link_seconds": 86_401},
    ],
    ids=str,
)
def test_what_cannot_work_stops_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


@pytest.mark.parametrize(
    ("chosen", "store"),
    [
        ({}, FolderBlobStore),
        ({"blob_url": "file:///a%20folder"}, FolderBlobStore),
        ({"link_url": "https://files.example.org", "link_secret": SECRET}, FolderBlobStore),
        ({"blob_url": "s3://bucket", **KEYS}, S3BlobStore),
        ({"blob_url": "s3://bucket/a/prefix", "s3_region": "eu-central-1"}, S3BlobStore),
        ({"blob_url": "s3://bucket", **KEYS, "s3_endpoint": "http://10.0.0.1", "s3_allow_http": True}, S3BlobStore),
        ({"blob_url": "s3://bucket", **KEYS, "link_url": "https://files.example.org"}, S3BlobStore),
    ],
    ids=str,
)
def test_the_settings_choose_the_store(chosen: dict[str, Any], store: type[object]) -> None:
    assert type(blob_store(settings(**chosen))) is store


def test_the_public_address_is_read_from_a_name_of_the_whole_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELAR_PUBLIC_URL", "https://telar.example.org")
    assert settings().public_url == "https://telar.example.org"


def test_keys_of_s3_are_not_shown() -> None:
    assert "hidden-key" not in repr(settings(s3_access_key_id="id", s3_secret_access_key=SecretStr("hidden-key")))
