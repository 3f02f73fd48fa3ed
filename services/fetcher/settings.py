"""The fetcher's settings, from TELAR_FETCHER_*."""

from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from libs.common.s3 import S3Account, S3Settings
from libs.common.settings import Words


class FetcherSettings(S3Settings):
    """`mongo_uri` holds the jobs, `source_uri` the documents that point to pictures (the same server by default)."""

    model_config = SettingsConfigDict(env_prefix="TELAR_FETCHER_")

    mongo_uri: str = "mongodb://127.0.0.1:27017"
    mongo_database: str = Field(default="telar_fetcher", pattern=r"^[A-Za-z0-9_-]{1,63}$")
    source_uri: str | None = None
    mongo_timeout_s: float = Field(default=5.0, gt=0)
    """How long a call waits for a MongoDB that does not answer before it says so."""
    storage_url: str | None = None
    """Root of the picture store: a path, a file: URL or s3://bucket/prefix; `<data dir>/fetcher` by default."""
    min_free_bytes: int = Field(default=200_000_000, ge=0)
    """With less room on the folder's disk nothing is stored: jobs pause, new ones are refused with 507."""

    max_concurrent_downloads: int = Field(default=20, ge=1, le=1000)
    """Downloads at once in all processes that share the job store."""
    max_per_domain: int = Field(default=8, ge=1, le=1000)
    """Downloads at once from one host, in all processes together; a job may ask for fewer."""
    rate_per_domain: float | None = Field(default=None, gt=0, le=10_000)
    """Requests a second to one host, in all processes together; a job may ask for fewer."""
    breaker_s: float = Field(default=30.0, gt=0)
    """How long a host where nothing answers is left alone the first time; twice as long the second."""
    dead_s: float = Field(default=600.0, gt=0)
    """How long the pictures of a host that was left alone in vain fail without being asked for."""
    max_unwritten: int = Field(default=512, ge=1, le=10_000)
    """Pictures under way or downloaded but not yet written, in this process: so many a kill may fetch again."""
    max_attempts: int = Field(default=5, ge=1, le=20)
    retry_base_s: float = Field(default=2.0, gt=0)
    retry_cap_s: float = Field(default=300.0, gt=0)
    lease_s: float = Field(default=30.0, ge=1)
    """How long a killed worker's items stay taken; live workers renew three times as often."""

    max_picture_bytes: int = Field(default=50_000_000, gt=0)
    max_pixels: int = Field(default=100_000_000, gt=0)
    """Largest width x height of one frame, and a fifth of all frames together."""
    max_frames: int = Field(default=1_000, ge=1)
    download_deadline_s: float = Field(default=120.0, gt=0)
    min_rate_bytes_per_s: float = Field(default=1_000.0, gt=0)
    decoders: int = Field(default=2, ge=1, le=64)
    """Processes that decode pictures."""
    decode_timeout_s: float = Field(default=30.0, gt=0)
    write_back: bool = True
    """Whether jobs may ask for their results to be written into the source documents."""

    source_databases: Words = ()
    """Databases of the source that may be read, such as `shop,archive`. If not given: the one that the source URI
    names, or any but the systems' own where it names none."""
    source_max_time_ms: int = Field(default=30_000, gt=0)
    """Longest time that MongoDB may spend on one read of a source collection."""

    @property
    def readable_databases(self) -> frozenset[str] | None:
        """What `source_databases` comes to; None for any."""
        if self.source_databases:
            return frozenset(self.source_databases)
        named = unquote(urlsplit(self.source_uri).path.lstrip("/")) if self.source_uri else ""
        return frozenset({named}) if named and named != "admin" else None  # admin names where the user is kept

    @property
    def storage_root(self) -> Path:
        """Folder of the documented layout, if it is not in a bucket."""
        if self.storage_url is None:
            return self.common.data_dir / "fetcher"
        return Path(unquote(urlsplit(self.storage_url).path))

    @property
    def bucket(self) -> S3Account | None:
        """The bucket of the documented layout, if it is not in a folder."""
        url = self.storage_url or ""
        return self.s3_account(url) if url.startswith("s3:") else None

    @model_validator(mode="after")
    def _refuse_unknown_stores(self) -> Self:
        url = urlsplit(self.storage_url or "")
        if url.scheme not in ("", "file", "s3") or (url.scheme == "s3" and (not url.netloc or url.query)):
            raise ValueError("TELAR_FETCHER_STORAGE_URL must be a path, a file: URL or s3://bucket/prefix")
        return self
