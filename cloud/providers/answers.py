"""What comes of asking a cloud: faults as outcomes, and what of an answer is not understood.

Whatever an SDK lets out is an outcome as well: a file of credentials, an answer, a connection (requests' are OSErrors).
"""

from __future__ import annotations

from collections.abc import Callable

from cloud.backend import CloudFault, Unanswered
from cloud.calls import Done, Outcome, Refused, Unknown
from cloud.model import Inventory

NOT_UNDERSTOOD = (LookupError, ValueError, TypeError, AttributeError, OSError)


def understood(look: Callable[[], Inventory]) -> Inventory:
    """Raises CloudFault, also for an answer that is not understood."""
    try:
        return look()
    except NOT_UNDERSTOOD as error:
        raise CloudFault("other", "", f"an answer is not understood: {error!r}") from error


def outcome(make: Callable[[], Done]) -> Outcome:
    """Of a call that `make` sends. What was done by one whose answer is not understood nobody knows."""
    try:
        return make()
    except Unanswered as error:
        return Unknown(str(error))
    except CloudFault as error:
        return Refused(error.problem, error.code, str(error), error.after)
    except NOT_UNDERSTOOD as error:
        return Unknown(f"the answer is not understood: {error!r}")
