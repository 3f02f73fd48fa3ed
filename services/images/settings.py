"""Settings of the images service, from `TELAR_IMAGES_*`."""

from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from libs.common.s3 import S3Settings
from libs.common.settings import refuse_weak_secret

_GIB = 1024**3


class ImagesSettings(S3Settings):
    """What the images service reads; sizes are in bytes, durations in seconds."""

    model_config = SettingsConfigDict(env_prefix="TELAR_IMAGES_", env_file=".env", extra="ignore", frozen=True)

    database_url: str = "postgresql://telar_images@127.0.0.1/telar_images"
    blob_url: str | None = None
    """`file:///absolute/folder`, shared by all replicas, or `s3://bucket/prefix`; `<data dir>/images` if not given."""
    s3_links: bool = True
    """Whether clients can reach S3, so that they may be sent there for a download."""
    link_url: str | None = None
    """Where clients get files without Telar: of an nginx that serves the blob folder (deploy/nginx), or of S3 under the
    name that clients know it by, if that is not `s3_endpoint`."""
    link_secret: SecretStr | None = None
    """Shared with that nginx; at least 24 characters."""
    link_seconds: int = Field(default=300, ge=1, le=86_400)
    """How long a link to a file is good for, to begin a download."""
    public_url: str | None = Field(default=None, validation_alias=AliasChoices("TELAR_PUBLIC_URL", "public_url"))
    """The gateway's address as clients know it; if not given, links name the host that was asked."""
    max_file_size: int = Field(default=20 * _GIB, ge=512)
    """Largest image file in bytes; a bigger one is refused with 413."""
    max_virtual_size_bytes: int = Field(default=16 * 1024 * _GIB, gt=0)
    """Largest disk that an image's header may claim."""
    upload_lease_s: float = Field(default=60, gt=0)
    """An upload whose process does not renew its lease for so long is dead and swept away."""
    upload_idle_s: float = Field(default=120, gt=0)
    """A client that sends nothing for so long is given up."""
    sweep_every_s: float = Field(default=60, gt=0)
    upload_expires_s: float = Field(default=86_400, gt=0)
    """A resumable upload that got no byte for so long has expired and is swept away."""
    rejected_days: float = Field(default=7, ge=0)
    """A rejected image's record is deleted so many days after its rejection (or its last change)."""
    rehash_every_s: float = Field(default=3600, gt=0)
    """So long after it has ended, the check of stored files begins again; one replica does it."""
    rehash_after_days: float = Field(default=30, ge=0)
    """A stored file is read again so many days after it was last found to have its digest."""
    rehash_bytes_per_s: int = Field(default=50 * 1024**2, ge=1)
    """How fast a stored file is read for that at most, so that downloads do not suffer."""

    imports: int = Field(default=8, ge=1)
    """How many imports one process works on at a time; the others wait."""
    import_attempts: int = Field(default=8, ge=1)
    """How often a download that broke off is tried; one that came further does not count."""
    import_min_rate_bytes_per_s: float = Field(default=10_000, gt=0)
    """A source that sends less on average over half a minute is broken off."""
    conversions: int = Field(default=1, ge=1)
    """How many conversions one process works on at a time; the others wait."""
    qemu_img: str = "qemu-img"
    """The converter: a name on PATH or an absolute path (Debian: the package qemu-utils)."""
    work_dir: Path | None = None
    """Where conversions work; `<data dir>/images-work` if not given. On the disk of the blobs nothing is copied."""
    conversion_memory_bytes: int = Field(default=2 * _GIB, ge=1)
    """Address space that the converter may have."""
    conversion_cpu_s: int = Field(default=7_200, ge=1)
    """CPU time that one conversion may take."""
    conversion_timeout_s: float = Field(default=4 * 3_600, gt=0)
    """How long one conversion may take by the clock."""

    @property
    def work_folder(self) -> Path:
        return self.work_dir or self.common.data_dir / "images-work"

    @property
    def blob_folder(self) -> Path:
        """The folder that holds the blobs."""
        if self.blob_url is None:
            return self.common.data_dir / "images"
        return Path(unquote(urlsplit(self.blob_url).path))

    @model_validator(mode="after")
    def _refuse_unknown_stores(self) -> Self:
        if self.blob_url is not None:
            url = urlsplit(self.blob_url)
            is_folder = url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/")
            is_bucket = url.scheme == "s3" and bool(url.netloc) and not url.query
            if not is_folder and not is_bucket:
                raise ValueError("TELAR_IMAGES_BLOB_URL must be file:///an/absolute/folder or s3://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _refuse_half_a_link(self) -> Self:
        is_bucket = (self.blob_url or "").startswith("s3:")
        if self.link_url is not None and not self.link_url.startswith(("http://", "https://")):
            raise ValueError("TELAR_IMAGES_LINK_URL must be an http or https URL")
        if not is_bucket and (self.link_url is None) != (self.link_secret is None):
            raise ValueError("TELAR_IMAGES_LINK_URL and TELAR_IMAGES_LINK_SECRET belong together")
        if self.link_secret is not None:
            refuse_weak_secret("TELAR_IMAGES_LINK_SECRET", self.link_secret)
        return self
