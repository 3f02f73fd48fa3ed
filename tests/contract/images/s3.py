"""An S3 server of PyPI's (moto's) on loopback, and buckets on it."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from moto.moto_api._internal import moto_api_backend
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from libs.common.s3 import S3Account

ACCESS_KEY_ID = "AKIATELARTESTS"
SECRET_ACCESS_KEY = "made-up-for-the-tests-of-telar"
REGION = "eu-central-1"
PREFIX = "some/where"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """A bucket, as an operator's own tools see it through `client`, and as the service is told of it."""

    client: Any
    account: S3Account

    @property
    def settings(self) -> dict[str, Any]:
        """Of the service."""
        return {
            "blob_url": f"s3://{self.account.bucket}/{PREFIX}",
            "s3_endpoint": self.account.endpoint,
            "s3_region": REGION,
            "s3_access_key_id": ACCESS_KEY_ID,
            "s3_secret_access_key": SecretStr(SECRET_ACCESS_KEY),
            "s3_allow_http": True,
        }

    def keys(self) -> list[str]:
        """Every object."""
        listed = self.client.list_objects_v2(Bucket=self.account.bucket)
        return [item["Key"].removeprefix(f"{PREFIX}/") for item in listed.get("Contents", ())]

    def multiparts(self) -> list[str]:
        """The object that each unfinished multipart upload would become."""
        listed = self.client.list_multipart_uploads(Bucket=self.account.bucket)
        return [item["Key"].removeprefix(f"{PREFIX}/") for item in listed.get("Uploads", ())]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a running server."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        moto_api_backend.reset()  # it keeps every object in this process
        server.stop()


def new_bucket(endpoint: str) -> Bucket:
    name = f"images-{next(_numbers)}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    account = S3Account(
        bucket=name,
        prefix=PREFIX,
        region=REGION,
        endpoint=endpoint,
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SecretStr(SECRET_ACCESS_KEY),
        allow_http=True,
    )
    return Bucket(client, account)
