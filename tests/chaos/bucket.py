"""What can be seen of a bucket by anybody who may read it, by S3's own calls, which obstore does not have."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlencode

import httpx

from tests.support.servers import S3

_SECONDS: Final = "60"


def unfinished(s3: S3) -> list[str]:
    """The keys of multipart uploads that were begun, and neither completed nor aborted."""
    return re.findall(r"<Upload>\s*<Key>([^<]+)</Key>", _get(s3, {"uploads": ""}, none="NoSuchUpload"))


def visible(s3: S3) -> dict[str, int]:
    """The objects that a list shows, and their bytes."""
    found = _get(s3, {"list-type": "2", "max-keys": "1000"})
    return {key: int(size) for key, size in re.findall(r"<Key>([^<]+)</Key>.*?<Size>(\d+)</Size>", found, re.DOTALL)}


def _get(s3: S3, query: dict[str, str], *, none: str = "") -> str:
    """The answer; empty where it is the error `none`, by which rclone says that there has never been any."""
    answer = httpx.get(_signed(s3, query), trust_env=False, timeout=30)
    if none and answer.status_code == 404 and f"<Code>{none}</Code>" in answer.text:
        return ""
    answer.raise_for_status()
    return answer.text


def _signed(s3: S3, query: dict[str, str]) -> str:
    """A GET of the bucket itself, presigned by AWS Signature Version 4 in its query parameters."""
    at = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{at[:8]}/{s3.region}/s3/aws4_request"
    signing = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{s3.key}/{scope}",
        "X-Amz-Date": at,
        "X-Amz-Expires": _SECONDS,
        "X-Amz-SignedHeaders": "host",
    }
    path, named = f"/{s3.bucket}", urlencode(sorted((query | signing).items()), quote_via=quote, safe="")
    host = s3.endpoint.removeprefix("http://")
    request = "\n".join(["GET", path, named, f"host:{host}\n", "host", "UNSIGNED-PAYLOAD"])
    text = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{s3.secret}".encode()
    for word in (*scope.split("/"), text):
        key = hmac.digest(key, word.encode(), "sha256")
    return f"{s3.endpoint}{path}?{named}&X-Amz-Signature={key.hex()}"
