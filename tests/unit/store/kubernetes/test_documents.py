"""What routerd keeps in ConfigMaps reads back as it was, and what does not fit is refused."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.port_sets import PortSet, PortTable, Told
from ipam.round import Record
from routerd.cluster.ledger import AuditEntry, GroupRecord, Ledger, NumberRecord, PastSet
from routerd.errors import StoreError
from routerd.store.kubernetes.documents import LIMIT, Data, LedgerText

ADDRESSES = st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(IPv6Address, st.integers(0, 2**128 - 1))
TEXTS = st.text(max_size=12)
TIMES = st.floats(0, 4e9)
RECORDS = st.builds(
    Record, ADDRESSES, TEXTS, TEXTS, st.sampled_from(["used", "reserved", "cooling"]), TIMES, st.booleans()
)
GROUPS = st.builds(
    GroupRecord, st.integers(1, 2**24 - 1), ADDRESSES, st.sampled_from(["active", "retired"]), TIMES,
    st.lists(TEXTS, max_size=3).map(tuple),
)  # fmt: skip
NUMBERS = st.builds(NumberRecord, st.integers(1, 65535), TEXTS, st.sampled_from(["used", "resting"]), TIMES)
VERSIONS = st.integers(0, 2**63 - 1)
STATES = st.tuples(st.sampled_from(["granted", "returning", "cooling"]), TIMES, VERSIONS, TIMES)
PAST = st.builds(PastSet, ADDRESSES, st.integers(0, 65535), st.integers(64, 16384), TIMES, TIMES, TEXTS)


def port_table(address: IPv4Address | IPv6Address, version: int, states: dict[int, Any]) -> PortTable:
    sets = (PortSet(address, first * 64, 64, first, *state) for first, state in sorted(states.items()))
    return PortTable(address, version, tuple(sets), (Told(1, 2), Told(3, version, version)))


PORTS = st.builds(port_table, ADDRESSES, VERSIONS, st.dictionaries(st.integers(16, 1023), STATES, max_size=5))
LEDGERS = st.builds(
    Ledger, st.integers(0, 2**63 - 1), TEXTS, st.integers(1, 2**24 - 1),
    st.lists(RECORDS, max_size=5).map(tuple), st.lists(GROUPS, max_size=3).map(tuple),
    st.lists(NUMBERS, max_size=3).map(tuple), st.lists(PORTS, max_size=3).map(tuple),
    st.lists(PAST, max_size=3).map(tuple),
)  # fmt: skip


def ledger_data(ledger: Ledger, audit: tuple[AuditEntry, ...]) -> Data:
    data, parts = LedgerText().written(ledger, audit)
    assert not parts
    return data


def read_ledger(data: Data) -> tuple[Ledger, tuple[AuditEntry, ...]]:
    return LedgerText().read(data, lambda name: None)


@given(LEDGERS, st.lists(st.builds(AuditEntry, TIMES, TEXTS, TEXTS, TEXTS), max_size=3).map(tuple))
def test_a_ledger_reads_back(ledger: Ledger, audit: tuple[AuditEntry, ...]) -> None:
    assert read_ledger(ledger_data(ledger, audit)) == (ledger, audit)


def test_no_ledger_is_an_empty_one() -> None:
    assert read_ledger({}) == (Ledger(), ())


@pytest.mark.parametrize(
    ("table", "row"), [("addresses", '["10.0.0.1"]'), ("groups", '[4, "192.0.2.9", "active", 1.0, [[]]]')]
)
def test_a_damaged_ledger_is_refused_with_what_to_do(table: str, row: str) -> None:
    data = ledger_data(Ledger(), ())
    with pytest.raises(StoreError, match=r"routerd-ledger is damaged.*restore it, .* all parts .* delete it"):
        read_ledger({**data, table: f"{row}\n"})


def test_a_ledger_of_the_version_before_reads_back() -> None:
    data = {
        "meta": '{"generation": 3, "digest": "d", "nextGroup": 9}\n',
        "addresses": '["192.0.2.1", "svc/d/a", "p", "used", 1.5, false]\n',
        "groups": '[4, "192.0.2.9", "active", 1.0, [["g1", 0]], 2, 7]\n',
        "audit": '[10.0, "assigned", "svc/d/a", "192.0.2.1"]\n',
    }
    group = GroupRecord(4, IPv4Address("192.0.2.9"), "active", 1.0, ("g1",))
    record = Record(IPv4Address("192.0.2.1"), "svc/d/a", "p", "used", 1.5)
    entry = AuditEntry(10.0, "assigned", "svc/d/a", "192.0.2.1")
    assert read_ledger(data) == (Ledger(3, "d", 9, (record,), (group,)), (entry,))


def test_a_ledger_that_lacks_a_table_or_has_a_later_one_is_refused() -> None:
    data = ledger_data(of_services(1), ())
    with pytest.raises(StoreError, match="damaged"):
        read_ledger({key: value for key, value in data.items() if key != "addresses"})
    later = data["meta"].replace('"groups"', '"groups", "dreams"')
    with pytest.raises(StoreError, match="has dreams, which this routerd does not know: run the newer one"):
        read_ledger({**data, "meta": later})


def of_services(count: int) -> Ledger:
    return Ledger(addresses=tuple(
        Record(IPv4Address(0x0A000000 + each), f"svc/team-{each % 40}/service-{each}", "default", "used", 1.7e9)
        for each in range(count)
    ))  # fmt: skip


def test_many_records_lie_in_parts_and_read_back() -> None:
    text, ledger = LedgerText(), of_services(10_000)
    data, parts = text.written(ledger, ())
    texts = {part.name: part.text for part in parts}
    assert len(texts) > 5 and "addresses" not in data
    assert LedgerText().read(data, texts.get) == (ledger, ())
    changed = replace(ledger, addresses=(replace(ledger.addresses[0], state="cooling"), *ledger.addresses[1:]))
    after, more = text.written(changed, ())
    assert len({part.name for part in more} - texts.keys()) == 1
    assert LedgerText().written(changed, ()) == (after, more), "what was written before makes no difference"
    texts.popitem()
    with pytest.raises(
        StoreError, match=r"routerd-ledger is damaged \(part [0-9a-f]{64} is missing or cut\): restore it, .* all parts"
    ):
        LedgerText().read(data, texts.get)


def test_a_record_that_fits_into_no_configmap_is_refused() -> None:
    gateways = ("n" * 200,) * 6000
    ledger = Ledger(groups=(GroupRecord(1, IPv4Address("192.0.2.1"), gateways=gateways),))
    with pytest.raises(StoreError, match=f"would have [0-9]+ bytes, and holds {LIMIT}"):
        LedgerText().written(ledger, ())
