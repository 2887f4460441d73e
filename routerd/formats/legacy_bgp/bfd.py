"""`bfd-profiles`: ranges, in the order in which MetalLB 0.12 checks them. Intervals in milliseconds."""

from __future__ import annotations

from routerd.formats.legacy_bgp.decode import Struct

_RANGES = (
    ("detect-multiplier", "invalid detect multiplier value", 2, 255),
    ("receive-interval", "invalid receive interval value", 10, 60000),
    ("transmit-interval", "invalid transmit interval value", 10, 60000),
    ("minimum-ttl", "invalid minimum ttl value", 1, 254),
    ("echo-interval", "invalid minimum ttl value", 10, 60000),  # the original's own mistake, kept: same text
)


def profile_names(structs: list[Struct]) -> frozenset[str]:
    """Names of the profiles. Raises InputError with the original's message."""
    names: set[str] = set()
    for index, struct in enumerate(structs, 1):
        fault = _fault(struct)
        if fault:
            raise struct.at(fault[0]).error(f"parsing bfd profile #{index}: {fault[1]}")
        name = struct.text("name")
        if name in names:
            raise struct.at("name").error(f"found duplicate bfd profile name {name}")
        names.add(name)
    return frozenset(names)


def _fault(struct: Struct) -> tuple[str, str] | None:
    if not struct.text("name"):
        return "name", "missing bfd profile name"
    for key, message, low, high in _RANGES:
        if key in struct.plain and not low <= struct.number(key) <= high:
            return key, f"{message}: invalid value {struct.number(key)}, must be in {low}-{high} range"
    return None
