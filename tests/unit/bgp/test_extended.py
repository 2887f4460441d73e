"""Extended communities: texts of people, and any eight bytes that a table may have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.path import by_kind, normal_communities
from bgp.rib import extended, is_community


@pytest.mark.parametrize(
    ("text", "wire"),
    [  # RFC 4360, sections 3.1, 3.2 and 4; RFC 5668, section 2; draft-ietf-idr-link-bandwidth, section 2
        ("rt:64512:7", "0002fc0000000007"),
        ("soo:64512:4294967295", "0003fc00ffffffff"),
        ("rt:192.0.2.1:7", "0102c00002010007"),
        ("soo:4200000000:7", "0203fa56ea000007"),
        ("link-bandwidth:64512:125000000", "4004fc004cee6b28"),
    ],
)
def test_each_kind_has_its_bytes(text: str, wire: str) -> None:
    assert extended.packed(text).hex() == wire
    assert extended.text_of(bytes.fromhex(wire)) == text
    assert is_community(text)


@given(st.binary(min_size=8, max_size=8) | st.binary(min_size=6, max_size=6).map(lambda rest: b"\x40\x04" + rest))
def test_any_bytes_have_one_text_that_leads_back(wire: bytes) -> None:
    text = extended.text_of(wire)
    assert extended.packed(text) == wire
    assert extended.normal(text) == text
    assert extended.is_extended(text) == (not text.startswith("0x"))


@pytest.mark.parametrize(
    ("written", "normal"),
    [("rt:064512:07", "rt:64512:7"), ("link-bandwidth:1:125000001", "link-bandwidth:1:125000000")],
)
def test_what_goes_out_alike_compares_alike(written: str, normal: str) -> None:
    assert extended.normal(written) == normal
    assert not is_community(written)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rt:64512", "found '', expected a number of 0 to 4294967295"),
        ("rt:4294967296:1", "found '4294967296', expected a number of 0 to 4294967295"),
        ("rt:70000:65536", "found '65536', expected a number of 0 to 65535"),
        ("rt:192.0.2.256:1", "Octet 256 (> 255) not permitted in '192.0.2.256'"),
        ("link-bandwidth:70000:1", "found '70000', expected a number of 0 to 65535"),
        ("rt:1:-1", "found '-1', expected a number of 0 to 4294967295"),
        ("ro:1:1", f"expected {extended.FORM}"),
    ],
)
def test_what_is_none_says_what_was_expected(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r"expected|Octet") as caught:
        extended.packed(text)
    assert str(caught.value) == fault
    assert not is_community(text)


def test_each_kind_is_an_attribute_of_its_own() -> None:
    found = normal_communities(["rt:1:1", "0x4006000000000001", "1:2:3", "1:2", "no-export"])
    assert by_kind(found) == (("1:2", "65535:65281"), ("1:2:3",), ("0x4006000000000001", "rt:1:1"))
