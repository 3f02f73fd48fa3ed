"""URLs that carry their own authorisation: AWS Signature Version 4 in the query.

After "Authenticating Requests: Using Query Parameters" in the Amazon S3 API Reference. obstore signs URLs too, but
takes no query of the caller's, in which S3 is told the file's name.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"


def presigned(
    method: str,
    url: str,
    *,
    access_key_id: str,
    secret_access_key: str,
    region: str,
    now: datetime,
    expires_s: int,
    query: Mapping[str, str] | None = None,
) -> str:
    """The URL with its signature, valid for `expires_s` (at most 7 days) from `now` (UTC) on.

    `url` has no query and no escapes; `query` holds the unescaped parameters of the request itself.
    """
    parts = urlsplit(url)
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{day}/{region}/s3/aws4_request"
    parameters = {
        **(query or {}),
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{access_key_id}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    path = quote(parts.path or "/", safe="/~")
    told = "&".join(f"{quote(name, safe='~')}={quote(parameters[name], safe='~')}" for name in sorted(parameters))
    canonical = f"{method}\n{path}\n{told}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret_access_key}".encode()
    for step in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode(), "sha256").hex()
    return f"{parts.scheme}://{parts.netloc}{path}?{told}&X-Amz-Signature={signature}"
