"""Whether a request is signed as Alibaba Cloud wants it: V3 (ACS3-HMAC-SHA256, headers) or V1 (HMAC-SHA1, parameters).

Written from their descriptions. A nonce counts once, and a time 15 minutes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

HEADER = re.compile(r"ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([^,]+),Signature=([0-9a-f]{64})")
NEEDED = {"host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"}
WINDOW = 900.0  # seconds


def encoded(text: str) -> str:
    return quote(text, safe="~")


def _canonical(query: Mapping[str, str]) -> str:
    return "&".join(f"{encoded(key)}={encoded(query[key])}" for key in sorted(query))


@dataclass(frozen=True)
class Asked:
    """What a request asks, and by whom. `code`: of the error, "" = it is signed as it should be."""

    code: str
    action: str
    version: str
    parameters: Mapping[str, str]
    key: str
    session: str
    when: str
    nonce: str

    def problem(self, seen: set[str]) -> str:
        """A code; `seen` are the nonces that came before."""
        if self.code:
            return self.code
        try:
            when = datetime.strptime(self.when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            return "InvalidTimeStamp.Format"
        if abs((datetime.now(UTC) - when).total_seconds()) > WINDOW:
            return "InvalidTimeStamp.Expired"
        if not self.nonce or self.nonce in seen:
            return "SignatureNonceUsed"
        seen.add(self.nonce)
        return ""


def read_v3(
    method: str, headers: Mapping[str, str], query: Mapping[str, str], body: bytes, secrets: Mapping[str, str]
) -> Asked:  # fmt: skip
    """`headers` by their names in lower case; `secrets` by access key."""
    match = HEADER.fullmatch(headers.get("authorization", ""))
    key = match[1] if match else ""
    code = _problem_v3(match, method, headers, query, body, secrets) if match else "IncompleteSignature"
    told = (headers.get(f"x-acs-{each}", "") for each in ("security-token", "date", "signature-nonce"))
    return Asked(code, headers.get("x-acs-action", ""), headers.get("x-acs-version", ""), query, key, *told)


def _problem_v3(
    match: re.Match[str], method: str, headers: Mapping[str, str], query: Mapping[str, str], body: bytes,
    secrets: Mapping[str, str],
) -> str:  # fmt: skip
    access, signed, signature = match.groups()
    names, payload = signed.split(";"), hashlib.sha256(body).hexdigest()
    if access not in secrets:
        return "InvalidAccessKeyId.NotFound"
    must = {*NEEDED, *(each for each in headers if each.startswith("x-acs-"))}
    if not must <= set(names) or headers["x-acs-content-sha256"] != payload:
        return "IncompleteSignature"
    lines = "".join(f"{each}:{headers[each].strip()}\n" for each in names)
    canonical = f"{method}\n/\n{_canonical(query)}\n{lines}\n{signed}\n{payload}"
    to_sign = f"ACS3-HMAC-SHA256\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    right = hmac.new(secrets[access].encode(), to_sign.encode(), hashlib.sha256).hexdigest()
    return "" if hmac.compare_digest(right, signature) else "SignatureDoesNotMatch"


ABOUT_IT = ("Signature", "SignatureMethod", "SignatureVersion", "Format")


def read_v1(method: str, given: Mapping[str, str], secrets: Mapping[str, str]) -> Asked:
    """`given`: parameters of the query and of the form."""
    parameters = {key: value for key, value in given.items() if key not in ABOUT_IT}
    names = ("Action", "Version", "AccessKeyId", "SecurityToken", "Timestamp", "SignatureNonce")
    action, version, *told = (parameters.pop(each, "") for each in names)
    return Asked(_problem_v1(method, given, secrets), action, version, parameters, *told)


def _problem_v1(method: str, given: Mapping[str, str], secrets: Mapping[str, str]) -> str:
    access, signature = given.get("AccessKeyId", ""), given.get("Signature", "")
    if given.get("SignatureMethod") != "HMAC-SHA1" or given.get("SignatureVersion") != "1.0":
        return "IncompleteSignature"
    if access not in secrets:
        return "InvalidAccessKeyId.NotFound"
    query = _canonical({key: value for key, value in given.items() if key != "Signature"})
    to_sign = f"{method}&{encoded('/')}&{encoded(query)}"
    right = base64.b64encode(hmac.new(f"{secrets[access]}&".encode(), to_sign.encode(), hashlib.sha1).digest())
    return "" if hmac.compare_digest(right, signature.encode()) else "SignatureDoesNotMatch"
