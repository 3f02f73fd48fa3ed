"""Buckets of S3 or of anything that speaks its protocol (MinIO, Ceph, Garage, …): whose, how reached, how they fail."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Self
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store
from pydantic import SecretStr, model_validator

from libs.common.settings import ServiceSettings

FAILURES = (BaseError, OSError)
"""What obstore raises: OSError itself for missing objects and from its writers."""
_FULL = re.compile(r"<Code>\w*(?:StorageFull|QuotaExceeded|InsufficientStorage)\w*</Code>|507 Insufficient Storage")


@dataclass(frozen=True, slots=True)
class S3Account:
    """A bucket and who may use it; without keys they are found as AWS's own tools find them (environment, role).

    `endpoint` is None for AWS itself; `link_endpoint` is the address under which clients reach the same server, None
    where it is the same.
    """

    bucket: str
    prefix: str
    region: str
    endpoint: str | None = None
    link_endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    allow_http: bool = False

    def url(self, key: str | None, *, for_clients: bool = False) -> str:
        """The address of an object (path style), or of the bucket itself for None."""
        endpoint = (self.link_endpoint if for_clients else None) or self.endpoint
        root = f"{(endpoint or f'https://s3.{self.region}.amazonaws.com').rstrip('/')}/{self.bucket}"
        return root if key is None else f"{root}/{self.full_key(key)}"

    def full_key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


class S3Settings(ServiceSettings):
    """Settings of a service that may keep its files in a bucket; its own URL names it, `s3://bucket/prefix`."""

    s3_endpoint: str | None = None
    """Where the bucket is, such as https://minio.example.org:9000; AWS if not given."""
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    """Without keys they are looked for as AWS's own tools do (environment, instance role); then images have no links to
    S3, and multipart uploads of killed processes must be ended by a lifecycle rule of the bucket."""
    s3_secret_access_key: SecretStr | None = None
    s3_allow_http: bool = False
    """Lets the endpoint be http://, where keys are safe but files are not."""

    def s3_account(self, url: str) -> S3Account:
        """The account for the bucket of an `s3:` URL."""
        parts = urlsplit(url)
        return S3Account(
            bucket=parts.netloc,
            prefix=unquote(parts.path).strip("/"),
            region=self.s3_region,
            endpoint=self.s3_endpoint,
            access_key_id=self.s3_access_key_id,
            secret_access_key=self.s3_secret_access_key,
            allow_http=self.s3_allow_http,
        )

    @model_validator(mode="after")
    def _refuse_half_an_account(self) -> Self:
        name = f"{self.model_config.get('env_prefix', '')}S3"
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError(f"{name}_ACCESS_KEY_ID and {name}_SECRET_ACCESS_KEY belong together")
        if (self.s3_endpoint or "").startswith("http://") and not self.s3_allow_http:
            raise ValueError(f"{name}_ENDPOINT is not https; {name}_ALLOW_HTTP=true allows it")
        return self


def connect(account: S3Account) -> S3Store:
    """A client of the bucket, with connections of its own; opens none yet."""
    secret = account.secret_access_key
    keys = {} if secret is None else {"secret_access_key": secret.get_secret_value()}
    if account.access_key_id is not None:
        keys["access_key_id"] = account.access_key_id
    if account.endpoint is not None:
        keys["endpoint"] = account.endpoint
    return S3Store(
        account.bucket,
        prefix=account.prefix or None,
        region=account.region,
        client_options={
            "allow_http": account.allow_http,
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=120),  # of one request, which never moves more than a part
        },
        retry_config={
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=60),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2},
        },
        **keys,  # type: ignore[arg-type]  # each is an option of its own
    )


def is_full(error: BaseException) -> bool:
    """Whether a failure tells that nothing more can be stored."""
    return _FULL.search(str(error)) is not None
