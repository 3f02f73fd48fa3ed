from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from services.images.adapters.s3_blobs.signing import presigned

# Of the example in "Authenticating Requests: Using Query Parameters" (Amazon S3 API Reference), for everybody to read.
KEYS = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}


def test_the_example_of_the_reference_is_signed_alike() -> None:
    url = presigned(
        "GET",
        "https://examplebucket.s3.amazonaws.com/test.txt",
        region="us-east-1",
        now=datetime(2013, 5, 24, tzinfo=UTC),
        expires_s=86_400,
        **KEYS,
    )
    signature = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    assert parse_qs(urlsplit(url).query)["X-Amz-Signature"] == [signature]


@pytest.mark.parametrize(
    ("method", "url", "query"),
    [
        ("GET", "http://127.0.0.1:9000/bucket/pre fix/ü~(1)/blobs/x", {}),
        ("GET", "https://s3.example.org/bucket", {"uploads": "", "prefix": "a/b c/", "key-marker": "ü&="}),
        ("DELETE", "https://s3.example.org/bucket/a/blobs/b", {"uploadId": "a+b/c==~.-_"}),
        (
            "GET",
            "https://s3.example.org/bucket/key",
            {"response-content-disposition": "attachment; filename=\"a b.img\"; filename*=UTF-8''a%20b.img"},
        ),
    ],
)
def test_what_is_signed_is_what_aws_s_own_client_signs(method: str, url: str, query: dict[str, str]) -> None:
    now = datetime.now(UTC)
    ours = presigned(method, url, region="eu-central-1", now=now, expires_s=300, query=query, **KEYS)
    parts = urlsplit(ours)
    assert "X-Amz-Signature" in parts.query
    keys = Credentials(KEYS["access_key_id"], KEYS["secret_access_key"])

    class AtThatTime(S3SigV4QueryAuth):
        def add_auth(self, request: AWSRequest) -> None:
            request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
            self._modify_request_before_signing(request)
            canonical = self.canonical_request(request)
            self._inject_signature_to_request(request, self.signature(self.string_to_sign(request, canonical), request))

    request = AWSRequest(method=method, url=f"{parts.scheme}://{parts.netloc}{parts.path}", params=query)
    AtThatTime(keys, "s3", "eu-central-1", expires=300).add_auth(request)
    assert parse_qs(parts.query, keep_blank_values=True) == parse_qs(
        urlsplit(request.prepare().url).query, keep_blank_values=True
    )
