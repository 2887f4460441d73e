"""JSON that others wrote. Whatever is wrong with it is a ValueError. Pure."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError, also where it is nested too deep, and for half a surrogate pair, which no file takes."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if _has_surrogates(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _has_surrogates(text: str | bytes) -> bool:
    """Whether one is escaped in it; a pair is good."""
    if isinstance(text, str):
        return "\\ud" in text or "\\uD" in text
    return b"\\ud" in text or b"\\uD" in text
