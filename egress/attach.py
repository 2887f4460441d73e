"""Puts programs on devices: a pinned TCX link at the head of the hook (Linux 6.6), else a clsact filter. Decides
nothing.

A link is pinned as `links/PROGRAM_at_IFINDEX` (bpffs reserves names with dots). A filter has a handle and a priority of
its own: a replacement with another priority would leave two filters behind.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf import syscall
from egress import host_settings
from egress.entries import is_sayable
from egress.plan import Attachment

Mode = Literal["auto", "tcx", "clsact"]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

TCX_SINCE = (6, 6)
EGRESS_PROGRAMS = frozenset({"to_pod", "to_tunnel", "to_uplink", "to_beneath"})
FILTER_STEM = "routerd."
FILTER_PRIORITY = 7  # to_beneath is behind to_uplink, on the same hook
FILTER_HANDLE = 0x7264
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 0x0003
NOT_THERE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


def _attach_type(program: str) -> int:
    return syscall.TCX_EGRESS if program in EGRESS_PROGRAMS else syscall.TCX_INGRESS


def _parent(program: str) -> int:
    return CLSACT_EGRESS if program in EGRESS_PROGRAMS else CLSACT_INGRESS


def _priority(program: str) -> int:
    return FILTER_PRIORITY + (program == "to_beneath")


def _resolve(mode: Mode) -> Literal["tcx", "clsact"]:
    if mode != "auto":
        return mode
    major, minor = os.uname().release.split(".")[:2]
    return "tcx" if (int(major), int("".join(c for c in minor if c.isdigit()))) >= TCX_SINCE else "clsact"


def as_os_error(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """pyroute2's NetlinkError is no OSError, though it is one of the kernel's errors."""

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    return wrapped


def off_loop(function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """Runs `function` in a thread of its own: pyroute2's IPRoute refuses a thread that runs an asyncio loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()


class Attacher:
    """The programs pinned under a directory, and the devices they are on."""

    def __init__(self, pin_directory: Path, mode: Mode = "auto") -> None:
        self._programs = pin_directory / "programs"
        self._pins = pin_directory
        self._links = pin_directory / "links"
        self.mode = _resolve(mode)
        self._clsact: frozenset[int] | None = None  # devices that had a clsact qdisc when the first link was made

    # -- reading

    def observe(self, devices: dict[int, str]) -> frozenset[Attachment]:
        """What is attached to devices that exist (ifindex -> name)."""
        identities = self._identities()
        links = frozenset(self._observe_links(identities, devices))
        return links if self.mode == "tcx" else links | frozenset(self._observe_filters(identities, devices))

    def left_filters(self, devices: dict[int, str]) -> list[tuple[str, int]]:
        """(program, ifindex) of filters that an agent in clsact mode left, where links are used now."""
        if self.mode != "tcx":
            return []
        left = {ifindex: devices[ifindex] for ifindex in off_loop(_clsact_devices) if ifindex in devices}
        return [(found.program, found.ifindex) for found in self._observe_filters({}, left)]

    def _identities(self) -> dict[int, str]:
        """Kernel's program id -> name, of the programs that are pinned now."""
        found = {}
        if self._programs.is_dir():
            for path in self._programs.iterdir():
                fd = syscall.open_pinned(path)
                found[syscall.program_id(fd)] = path.name
                os.close(fd)
        return found

    def _observe_links(self, identities: dict[int, str], devices: dict[int, str]) -> Iterator[Attachment]:
        for path in self._links.iterdir() if self._links.is_dir() else ():
            fd = syscall.open_pinned(path)
            info = syscall.link_info(fd)
            os.close(fd)
            program, _, ifindex = path.name.partition("_at_")
            if info.ifindex not in devices:
                path.unlink()  # its device has gone, and with it the hook: the pin holds an empty link
                continue
            yield Attachment(program, int(ifindex), identities.get(info.program_id) == program)

    def _observe_filters(self, identities: dict[int, str], devices: dict[int, str]) -> Iterator[Attachment]:
        for ifindex, device in devices.items():
            for hook in ("ingress", "egress"):
                for program, program_id in _own_filters(device if is_sayable(device) else f"if{ifindex}", hook):
                    yield Attachment(program, ifindex, identities.get(program_id) == program)

    # -- changing

    def attach(self, program: str, ifindex: int) -> None:
        """Idempotent; replaces an older program of the same name at its place."""
        fd = syscall.open_pinned(self._programs / program)
        try:
            if self.mode == "tcx":
                self._attach_link(program, fd, ifindex)
            else:
                off_loop(self._attach_filter, program, fd, ifindex)
        finally:
            os.close(fd)

    def _attach_link(self, program: str, fd: int, ifindex: int) -> None:
        path = self._links / f"{program}_at_{ifindex}"
        if self._update_link(path, fd, ifindex):
            return
        link = syscall.create_tcx_link(fd, ifindex, _attach_type(program))
        try:
            syscall.pin(link, path)
        finally:
            os.close(link)
        if self._clsact is None:
            self._clsact = off_loop(_clsact_devices)
        if ifindex in self._clsact:  # a filter of ours from before links were used would run behind the link
            self.detach_filter(program, ifindex)

    def _update_link(self, path: Path, fd: int, ifindex: int) -> bool:
        """Swaps the program of the link that is pinned at `path`; False when no link there still holds its hook."""
        try:
            link = syscall.open_pinned(path)
        except FileNotFoundError:
            return False
        try:
            if syscall.link_info(link).ifindex == ifindex:
                syscall.update_link(link, fd)
                return True
            path.unlink()
            return False
        finally:
            os.close(link)

    @as_os_error
    def _attach_filter(self, program: str, fd: int, ifindex: int) -> None:
        with IPRoute() as route:
            try:
                route.tc("add", "clsact", ifindex)
                host_settings.record_qdisc(self._pins, ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                if ifindex not in _clsact_devices():  # its one block would take both hooks' filters as one
                    raise OSError(
                        errno.EEXIST, f"device {ifindex} has an ingress qdisc: clsact cannot be added"
                    ) from None
            route.tc(
                "replace-filter", "bpf", ifindex, FILTER_HANDLE, fd=fd, name=f"{FILTER_STEM}{program}",
                parent=_parent(program), classid=1, direct_action=True, prio=_priority(program), protocol=ETH_P_ALL,
            )  # fmt: skip

    def detach(self, program: str, ifindex: int) -> None:
        """Detaching what is not attached is no error."""
        path = self._links / f"{program}_at_{ifindex}"
        try:
            link = syscall.open_pinned(path)
        except FileNotFoundError:
            self.detach_filter(program, ifindex)
            return
        with suppress(OSError):  # the device may have gone meanwhile, and the link with it
            syscall.detach_link(link)
        os.close(link)
        path.unlink()

    def detach_filter(self, program: str, ifindex: int) -> None:
        """Takes away a clsact filter of ours; one that is not there is no error."""
        off_loop(self._detach_filter, program, ifindex)

    @as_os_error
    def _detach_filter(self, program: str, ifindex: int) -> None:
        with IPRoute() as route:
            try:
                route.tc(
                    "del-filter", "bpf", ifindex, FILTER_HANDLE, parent=_parent(program), prio=_priority(program),
                    protocol=ETH_P_ALL,
                )  # fmt: skip
            except NetlinkError as error:
                if error.code not in NOT_THERE:
                    raise

    def remove_qdiscs(self) -> list[int]:
        """Takes away the clsact qdiscs that we made and nobody uses; returns the devices."""
        ours = sorted(host_settings.recorded_qdiscs(self._pins))
        return off_loop(lambda: [ifindex for ifindex in ours if _delete_unused_qdisc(ifindex)]) if ours else []


def _clsact_devices() -> frozenset[int]:
    with IPRoute() as route:
        return frozenset(q["index"] for q in route.get_qdiscs() if q.get_attr("TCA_KIND") == "clsact")


def _delete_unused_qdisc(ifindex: int) -> bool:
    with IPRoute() as route:
        try:
            if any(route.get_filters(index=ifindex, parent=parent) for parent in (CLSACT_INGRESS, CLSACT_EGRESS)):
                return False
            route.tc("del", "clsact", ifindex)
        except NetlinkError as error:
            if error.code not in NOT_THERE:
                raise
            return False
    return True


def _own_filters(device: str, hook: str) -> Iterator[tuple[str, int]]:
    """(program, kernel's program id) of our filters; asked of tc(8), as pyroute2 does not decode the id."""
    for row in _tc("filter", "show", "dev", device, hook):
        options = row.get("options", {})
        name = str(options.get("bpf_name", ""))
        if name.startswith(FILTER_STEM):
            yield name.removeprefix(FILTER_STEM), int(options.get("prog", {}).get("id", 0))


def _tc(*arguments: str) -> list[dict[str, Any]]:
    """What tc(8) shows, as JSON; nothing for a device that has gone. OSError when it does not answer."""
    try:
        shown = subprocess.run(["tc", "-j", *arguments], capture_output=True, text=True, timeout=10, check=False)
        rows: list[dict[str, Any]] = json.loads(shown.stdout or "[]") if shown.returncode == 0 else []
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"tc did not answer within {error.timeout:g} s") from error
    except json.JSONDecodeError as error:
        raise OSError(errno.EBADMSG, f"tc printed no JSON: {error}") from error
    return rows
