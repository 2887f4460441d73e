"""Whether a request is signed as AWS wants it: Signature Version 4, headers. Written from its description."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, ?"
    r"SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})"
)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def is_signed(
    method: str, path: str, headers: Mapping[str, str], body: bytes, secrets: Mapping[str, str], service: str = "ec2"
) -> bool:
    """`headers` by their names in lower case; `secrets` by access key."""
    match = HEADER.fullmatch(headers.get("authorization", ""))
    if match is None:
        return False
    access, day, region, name, signed, signature = match.groups()
    if access not in secrets or name != service or not headers.get("x-amz-date", "").startswith(day):
        return False
    lines = "".join(f"{each}:{' '.join(headers[each].split())}\n" for each in signed.split(";"))
    canonical = f"{method}\n{path}\n\n{lines}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/{region}/{name}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{digest}"
    key = _hmac(_hmac(_hmac(_hmac(f"AWS4{secrets[access]}".encode(), day), region), name), "aws4_request")
    return hmac.compare_digest(_hmac(key, to_sign).hex(), signature)
