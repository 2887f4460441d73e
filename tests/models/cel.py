"""Expressions of CEL, as an API server evaluates them. By cel-python, which the demo does without: the double of an API
server has equivalents of its own (`apiserver/cel.py`), and a test holds them against this.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import celpy


def _environment() -> celpy.Environment:
    """cel-python raises the process's limit of recursion for good, and tests of deep texts count on it."""
    limit = sys.getrecursionlimit()
    try:
        return celpy.Environment()
    finally:
        sys.setrecursionlimit(limit)


ENVIRONMENT = _environment()


def evaluated(expression: str, **known: Any) -> Any:
    """`known`: values of JSON by name. Raises an error of celpy for what is wrong, or not there."""
    return _program(expression).evaluate({name: celpy.json_to_cel(value) for name, value in known.items()})  # type: ignore[attr-defined]


@cache
def _program(expression: str) -> celpy.Runner:
    return ENVIRONMENT.program(ENVIRONMENT.compile(expression))
