"""Failures as an API server tells them: one exception that carries a `Status` (meta/v1). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


class ApiError(Exception):
    """A refused request. `headers` are added to the HTTP answer (Retry-After)."""

    def __init__(
        self, code: int, reason: str, message: str, details: Json | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details = details or {}
        self.headers = headers or {}
        self.continue_token = ""  # of an expired list

    def status(self) -> Json:
        meta = {"continue": self.continue_token} if self.continue_token else {}
        head: Json = {"kind": "Status", "apiVersion": "v1", "metadata": meta, "status": "Failure"}
        body = {**head, "message": self.message, **({"reason": self.reason} if self.reason else {})}
        if self.details:
            body["details"] = self.details
        return {**body, "code": self.code}


def qualified(group: str, plural: str) -> str:
    """`egresspolicies.routerd.io`, `pods`: how messages name a resource."""
    return f"{plural}.{group}" if group else plural


def _details(group: str, kind: str, name: str) -> Json:
    details: Json = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in details.items() if value}


def not_found(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        404, "NotFound", f'{qualified(group, plural)} "{name}" not found', _details(group, plural, name)
    )  # fmt: skip


def already_exists(group: str, plural: str, name: str) -> ApiError:
    message = f'{qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str = MODIFIED) -> ApiError:
    message = f'Operation cannot be fulfilled on {qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(group, plural, name))


def forbidden(group: str, plural: str, name: str, why: str, causes: Sequence[Json] = ()) -> ApiError:
    subject = f'{qualified(group, plural)} "{name}"' if name else qualified(group, plural)
    details = _details(group, plural, name)
    if causes:
        details["causes"] = list(causes)
    return ApiError(403, "Forbidden", f"{subject} is forbidden: {why}", details)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def method_not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unsupported_media_type(accepted: Sequence[str]) -> ApiError:
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted)
    return ApiError(415, "UnsupportedMediaType", message)


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def too_old(wanted: int, oldest: int) -> ApiError:
    return expired(f"too old resource version: {wanted} ({oldest})")


def initializing(retry_after: int) -> ApiError:
    """The cache of a kind is not filled yet. `retry_after`: seconds."""
    details = {"retryAfterSeconds": retry_after}
    headers = {"Retry-After": str(retry_after)}
    return ApiError(429, "TooManyRequests", "storage is (re)initializing", details, headers)


def too_large(wanted: int, current: int) -> ApiError:
    message = f"Too large resource version: {wanted}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(504, "Timeout", f"Timeout: {message}", {"causes": [cause], "retryAfterSeconds": 1})


class Invalid(ApiError):
    """422: `faults` are (field, FieldValueInvalid…, message) as the server lists them in `details.causes`."""

    def __init__(self, group: str, kind: str, name: str, faults: Sequence[tuple[str, str, str]]) -> None:
        subject = f'{kind}.{group} "{name}"' if group else f'{kind} "{name}"'
        texts = [f"{field}: {message}" for field, _, message in faults]
        text = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
        causes = [{"reason": reason, "message": message, "field": field} for field, reason, message in faults]
        details = {**_details(group, kind, name), "causes": causes}
        super().__init__(422, "Invalid", f"{subject} is invalid: {text}", details)
