"""Size and speed of what is published and recorded: `make bench-allocations`. Judges nothing, machines differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

from routerd.cluster.ledger import Ledger
from routerd.formats.published.parts import Part
from routerd.formats.published.whole import AllocationsReader, AllocationsWriter
from routerd.store.kubernetes.documents import LedgerText
from tests.models.many import allocations_of, ledger_of


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def sizes(index: str, parts: tuple[Part, ...]) -> str:
    found = [len(part.text) for part in parts]
    if not found:
        return f"one document of {len(index) / 1024:.0f} KiB"
    each = f"{min(found) / 1024:.0f} to {max(found) / 1024:.0f} KiB"
    return f"{len(found)} parts of {each}, index {len(index) / 1024:.0f} KiB, together {sum(found) / 2**20:.1f} MiB"


def published(services: int, groups: int) -> None:
    """What is written first, and after one service of all changed; and what an agent needs to read it."""
    writer, reader, before = AllocationsWriter(), AllocationsReader(), allocations_of(services, groups)
    other = replace(before.services[services // 2], addresses=(ip_address("192.0.2.1"),))
    changed = (*before.services[: services // 2], other, *before.services[services // 2 + 1 :])
    print(f"{services:,} services, {groups:,} groups:")
    for what, decision in (("first", before), ("then", replace(before, generation=2, services=changed))):
        began = time.perf_counter()
        document = writer.written(decision)
        written = time.perf_counter()
        reader.read(document.text, "", {part.name: part.text for part in document.parts}.get)
        took = f"written in {(written - began) * 1e3:.0f} ms, read in {(time.perf_counter() - written) * 1e3:.0f} ms"
        print(f"  allocations, {what}: {sizes(document.text, document.parts)}; {took}")


def recorded(ledger: Ledger) -> None:
    text = LedgerText()
    first = seconds(lambda: text.written(ledger, ()))
    data, parts = text.written(ledger, ())
    again = seconds(lambda: text.written(replace(ledger, generation=2, addresses=ledger.addresses[1:]), ()))
    print(f"  ledger: {sizes(''.join(data.values()), parts)}; first in {first * 1e3:.0f} ms, then {again * 1e3:.0f} ms")


def main() -> None:
    for services, groups in ((100, 10), (10_000, 1000), (100_000, 1000)):
        published(services, groups)
        recorded(ledger_of(services, groups))


if __name__ == "__main__":
    main()
