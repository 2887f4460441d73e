"""Structures of one layout become those of another, field by field."""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

import pytest

from bpf import handover, layout


class Part(Structure):
    _fields_ = [("node", c_uint16), ("up", c_uint8), ("gone", c_uint8)]


class NewPart(Structure):
    _fields_ = [("weight", c_uint32), ("up", c_uint8), ("new", c_uint8), ("node", c_uint16)]


class Before(Structure):
    _fields_ = [("last_seen", c_uint64), ("count", c_uint32), ("left_out", c_uint32), ("parts", Part * 3)]


class After(Structure):
    _fields_ = [("begun", c_uint64), ("count", c_uint32), ("parts", NewPart * 4), ("last_seen", c_uint64)]


class Wider(Structure):
    _fields_ = [("count", c_uint64)]


def test_fields_go_over_by_name_and_new_ones_are_zero() -> None:
    before = Before(7, 3, 9)
    for place in range(3):
        before.parts[place] = Part(place + 1, 1, 5)
    made = layout.decode(After, handover.converter(Before, After).convert(bytes(before)))
    assert (made.begun, made.count, made.last_seen) == (0, 3, 7)
    assert [(part.weight, part.up, part.new, part.node) for part in made.parts] == [
        (0, 1, 0, 1), (0, 1, 0, 2), (0, 1, 0, 3), (0, 0, 0, 0),
    ]  # fmt: skip


def test_a_field_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="c_uint became c_ulong: the field needs another name"):
        handover.converter(Before, Wider)


def test_what_did_not_change_goes_over_as_it_is() -> None:
    assert handover.converter(None, None).convert(b"1234") == b"1234"
    assert handover.converter(Part, Part).convert(b"1234") == b"1234"
    assert handover.converter(Before, type("Again", (Structure,), {"_fields_": Before._fields_})).moves == ((0, 0, 28),)
