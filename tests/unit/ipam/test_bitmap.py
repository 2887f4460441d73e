"""The bitmap tree against a plain set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.bitmap import Bitmap

SIZES = st.sampled_from([1, 2, 63, 64, 65, 128, 4095, 4096, 4097, 1 << 24, 1 << 64, 1 << 128])


def naive_lowest(taken: set[int], size: int, start: int) -> int | None:
    offset = start
    while offset < size and offset in taken:
        offset += 1
    return offset if offset < size else None


@given(data=st.data(), size=SIZES)
@settings(max_examples=200)
def test_behaves_as_a_set(data: st.DataObject, size: int) -> None:
    bitmap, model = Bitmap(size), set[int]()
    near = st.integers(0, min(size, 200) - 1)
    far = st.integers(max(0, size - 200), size - 1)
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["occupy", "release", "lowest", "run"]))
        offset = data.draw(near | far)
        if action == "occupy":
            assert bitmap.occupy(offset) == (offset not in model)
            model.add(offset)
        elif action == "release":
            assert bitmap.release(offset) == (offset in model)
            model.discard(offset)
        elif action == "run":
            for each in range(offset, min(size, offset + 130)):
                bitmap.occupy(each)
                model.add(each)
        assert bitmap.lowest_free(offset) == naive_lowest(model, size, offset)
        assert bitmap.lowest_free() == naive_lowest(model, size, 0)
        assert (offset in bitmap) == (offset in model)
        assert bitmap.taken == len(model)


@pytest.mark.parametrize("size", [1, 64, 65, 4096, 4097, 70000])
def test_fills_in_order_and_then_has_nothing(size: int) -> None:
    bitmap = Bitmap(size)
    for expected in range(size):
        assert bitmap.lowest_free() == expected
        bitmap.occupy(expected)
    assert bitmap.lowest_free() is None
    bitmap.release(size // 2)
    assert bitmap.lowest_free() == size // 2
    assert bitmap.lowest_free(size // 2 + 1) is None


def test_offsets_outside_are_errors() -> None:
    bitmap = Bitmap(10)
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            bitmap.occupy(outside)
        with pytest.raises(IndexError):
            bitmap.release(outside)
    assert bitmap.lowest_free(10) is None
    with pytest.raises(ValueError):
        Bitmap(0)
