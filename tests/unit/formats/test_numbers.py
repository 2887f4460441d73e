"""A strict document misreads no number, whatever YAML 1.1 would make of it: it is what it looks like, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.legacy_bgp import parse
from routerd.model import AddressPool, Peer
from tests.models.manifests import read_text

NATIVE = """\
apiVersion: routerd.io/v1alpha1
peers:
- {{peer-address: 10.0.0.1, peer-asn: {0}, my-asn: 64512, peer-port: {1}}}
"""
PRIORITY = "address-pools:\n- {{name: p, protocol: bgp, addresses: [192.0.2.0/24], priority: {0}}}\n"
POOL = """\
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {{name: p}}
spec: {{blocks: [192.0.2.0/24], priority: {0}, autoAssign: {1}}}
"""
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{ports: [{{port: {0}}}]}}\n"


def peer(as_number: str = "64512", port: str = "179") -> Peer:
    (found,) = parse(NATIVE.format(as_number, port), "native").peers
    return found


def pool(priority: str = "1", auto_assign: str = "true") -> AddressPool:
    found = read_text(POOL.format(priority, auto_assign)).entries[0].object
    assert isinstance(found, AddressPool)
    return found


NUMBERS: dict[str, Callable[[str], int]] = {
    "port of a peer": lambda text: peer(port=text).port,
    "priority in a document of ours": lambda text: parse(PRIORITY.format(text), "native").pools[0].priority,
    "priority of an object of ours": lambda text: pool(text).priority,
    "port of a Service": lambda text: read_text(SERVICE.format(text)).entries[0].object.ports[0].port,  # type: ignore[union-attr]
}
ODD = [
    "0100", "-0100", "1:30", "190:20:30", "1.5", "1.0", "1.", ".5", "1e3", "1E+3", "0x10", "0o17", "0b11", "1_000",
    ".inf", ".nan", "yes", "no", "on", "y", "true", "2024-01-01", "'7'", "++7", "7 7", "٣",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("read", NUMBERS.values(), ids=NUMBERS)
def test_what_is_no_decimal_number_is_refused_with_its_place(read: Callable[[str], int], text: str) -> None:
    with pytest.raises(InputError, match="expected an integer from") as caught:
        read(text)
    assert caught.value.line
    assert caught.value.column


@pytest.mark.parametrize("read", NUMBERS.values(), ids=NUMBERS)
@given(st.text("0123456789+-_.:xobeE", min_size=1, max_size=6).filter(lambda text: text not in "-.:"))
@example("+7")
@example("-0")
def test_what_is_read_is_what_is_written(read: Callable[[str], int], text: str) -> None:
    try:
        found = read(text)
    except InputError:
        return
    written = re.sub(r"^\+|^-(?=0$)", "", text)
    assert str(found) == written or (found == 179 and written == "0")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64512", 64512), ("4294967295", 2**32 - 1), ("1.10", 65546), ("1.1", 65537), ("'1.10'", 65546),
        ("0.64512", 64512), ("65535.65535", 2**32 - 1), ("64512.0", 64512 << 16),
    ],
)  # fmt: skip
def test_as_numbers_are_read_in_asdot_too(text: str, number: int) -> None:
    assert peer(text).remote_as == number


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0.0",
        "4294967296",
        "1.65536",
        "65536.1",
        "1.010",
        "01.10",
        "1.1.1",
        "1.10e1",
        "0x1.1",
        "-1",
        "1.",
        ".1",
        "1:30",
    ],
)  # fmt: skip
def test_what_is_no_as_number_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InputError) as caught:
        peer(text)
    assert str(caught.value).startswith("<input>:3:38: peers[0].peer-asn: found ")
    assert "expected an AS number: an integer from 1 to 4294967295, or two with a dot" in str(caught.value)


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "y", "N", "1", "'true'"])
def test_only_true_and_false_are_booleans(text: str) -> None:
    for read in (
        lambda text: pool(auto_assign=text),
        lambda text: parse(PRIORITY.replace("priority", "disabled").format(text), "native"),
    ):
        with pytest.raises(InputError, match="expected true or false"):
            read(text)


@pytest.mark.parametrize(
    ("text", "number"), [("1.10", 1), ("0xFC00", 64512), ("64_512", 64512), ("0177", 127), ("9e3", 9000)]
)
def test_a_document_of_another_program_is_read_as_that_reads_it_and_the_number_is_told(text: str, number: int) -> None:
    found = parse(f"peers:\n- {{peer-address: 10.0.0.1, peer-asn: 64512, my-asn: {text}}}\n", "cilium-1.10")
    assert found.peers[0].local_as == number
    (refusal,) = found.refusals
    assert (str(refusal.object), refusal.reason, refusal.severity) == ("bgp", "NumberMisread", "warning")
    assert f'peers[0].my-asn: "{text}" is read as {number}' in refusal.message
