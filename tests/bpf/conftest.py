"""The datapath, loaded once per module; a second one with tables so small that they fill."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.bpf.gateway import Gateway
from tests.bpf.wishes import HERE, to_world
from tests.bpf.world import SMALL, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    built = World(f"rbpf{os.getpid()}")
    yield built
    built.close()


@pytest.fixture(scope="module")
def small_world() -> Iterator[World]:
    built = World(f"rbpfs{os.getpid()}", SMALL)
    yield built
    built.close()


@pytest.fixture(scope="module")
def attached(world: World) -> Iterator[Gateway]:
    world.attach()
    with world.wire("underlay") as underlay, world.wire("uplink") as uplink, world.wire("pod0") as pod:
        yield Gateway(world, underlay, uplink, pod)


@pytest.fixture
def gateway(attached: Gateway) -> Gateway:
    attached.world.fill(to_world(HERE))
    return attached
