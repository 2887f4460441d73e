"""One request of a plugin, from its bytes to those of the answer; what is refused is logged, too."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from cni.wire import Refused, Request, answer, parse, refusal
from routerd.log import event


async def answered(
    data: bytes, serve: Callable[[Request], Awaitable[Mapping[str, Any] | None]], log: logging.Logger, program: str
) -> bytes:
    """`serve` gives the result, or raises Refused. `program`: the name that the plugin was called by."""
    request = Request("")
    try:
        request = parse(data)
        return answer(await serve(request))
    except Refused as refused:
        pod = "/".join(request.pod or ())
        event(log, logging.WARNING, "refused", command=request.command, pod=pod, reason=str(refused))
        return refusal(refused, request.version, program)
