"""What all tests share: a BPF file system for those that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.lab.mounts import own_bpffs


@pytest.fixture
def bpffs() -> Iterator[None]:
    """A BPF file system at /sys/fs/bpf, for this test and its processes alone."""
    with own_bpffs():
        yield
