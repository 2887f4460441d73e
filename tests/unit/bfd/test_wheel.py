"""The queue of timers agrees with a list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bfd.wheel import NEVER, Wheel

steps = st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.integers(0, 20), st.just(NEVER))), max_size=30)


@given(steps, st.lists(st.integers(0, 25), max_size=10))
def test_it_gives_what_is_due_in_order(puts: list[tuple[str, float]], looks: list[int]) -> None:
    wheel: Wheel[str] = Wheel()
    model: dict[str, float] = {}
    for key, due in puts:
        wheel.put(key, due)
        model[key] = due
    for now in sorted(looks):
        earliest = min(model.values(), default=NEVER)
        assert wheel.next <= earliest
        taken = list(wheel.take(now))
        assert sorted(taken) == sorted(key for key, due in model.items() if due <= now)
        assert [model[key] for key in taken] == sorted(model[key] for key in taken)
        model = {key: due for key, due in model.items() if due > now}
    for key in "abc":
        wheel.drop(key)
    assert list(wheel.take(1000)) == []
