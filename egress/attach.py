"""Puts programs on devices: a pinned TCX link at the head of the hook (Linux 6.6), else a clsact filter. Decides
nothing.

A link is pinned as `links/PROGRAM_at_IFINDEX` (bpffs reserves names with dots). A filter has a handle and a priority of
its own: a replacement with another priority would leave two filters behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf import syscall
from egress.plan import Attachment

Mode = Literal["auto", "tcx", "clsact"]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

TCX_SINCE = (6, 6)
EGRESS_PROGRAMS = frozenset({"to_pod"})
FILTER_PRIORITY = 7
FILTER_HANDLE = 0x7264
CLSACT = 0xFFFF0000
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 0x0003
NOT_THERE = (errno.ENOENT, errno.ENODEV, errno.EINVAL)


def _attach_type(program: str) -> int:
    return syscall.TCX_EGRESS if program in EGRESS_PROGRAMS else syscall.TCX_INGRESS


def _parent(program: str) -> int:
    return CLSACT_EGRESS if program in EGRESS_PROGRAMS else CLSACT_INGRESS


def _resolve(mode: Mode) -> Literal["tcx", "clsact"]:
    if mode != "auto":
        return mode
    major, minor = os.uname().release.split(".")[:2]
    return "tcx" if (int(major), int("".join(c for c in minor if c.isdigit()))) >= TCX_SINCE else "clsact"


def off_loop(function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
    """Runs `function` in a thread of its own: pyroute2's IPRoute refuses a thread that runs an asyncio loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args, **kwargs).result()


class Attacher:
    """The programs pinned under a directory, and the devices they are on."""

    def __init__(self, pin_directory: Path, mode: Mode = "auto") -> None:
        self._programs = pin_directory / "programs"
        self._links = pin_directory / "links"
        self.mode = _resolve(mode)

    # -- reading

    def observe(self, devices: dict[int, str]) -> frozenset[Attachment]:
        """What is attached to devices that exist (ifindex -> name)."""
        identities = self._identities()
        links = self._observe_links(identities, devices)
        if self.mode == "tcx":
            return frozenset(links)
        return frozenset((*links, *off_loop(self._observe_filters, identities, devices)))

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

    def _observe_filters(self, identities: dict[int, str], devices: dict[int, str]) -> list[Attachment]:
        attachments = []
        with IPRoute() as route:
            qdiscs = route.get_qdiscs()
            clsact = {q["index"] for q in qdiscs if q.get_attr("TCA_KIND") == "clsact" and q["index"] in devices}
            for ifindex in sorted(clsact):
                for parent in (CLSACT_INGRESS, CLSACT_EGRESS):
                    for found in route.get_filters(index=ifindex, parent=parent):
                        program_id = _own_filter(found)
                        if program_id is not None:
                            name = _filter_name(found)
                            attachments.append(Attachment(name, ifindex, identities.get(program_id) == name))
        return attachments

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

    def _attach_filter(self, program: str, fd: int, ifindex: int) -> None:
        with IPRoute() as route:
            try:
                route.tc("add", "clsact", ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            route.tc(
                "replace-filter", "bpf", ifindex, FILTER_HANDLE, fd=fd, name=f"routerd.{program}",
                parent=_parent(program), classid=1, direct_action=True, prio=FILTER_PRIORITY, protocol=ETH_P_ALL,
            )  # fmt: skip

    def detach(self, program: str, ifindex: int) -> None:
        """Detaching what is not attached is no error."""
        path = self._links / f"{program}_at_{ifindex}"
        try:
            link = syscall.open_pinned(path)
        except FileNotFoundError:
            if self.mode == "clsact":
                off_loop(self._detach_filter, program, ifindex)
            return
        with suppress(OSError):  # the device may have gone meanwhile, and the link with it
            syscall.detach_link(link)
        os.close(link)
        path.unlink()

    def _detach_filter(self, program: str, ifindex: int) -> None:
        with IPRoute() as route:
            try:
                route.tc(
                    "del-filter", "bpf", ifindex, FILTER_HANDLE, parent=_parent(program), prio=FILTER_PRIORITY,
                    protocol=ETH_P_ALL,
                )  # fmt: skip
            except NetlinkError as error:
                if error.code not in NOT_THERE:
                    raise


def _filter_name(found: Any) -> str:
    options = found.get_attr("TCA_OPTIONS")
    name = (options.get_attr("TCA_BPF_NAME") if options else "") or ""
    return str(name).removeprefix("routerd.")


def _own_filter(found: Any) -> int | None:
    """The program id of a filter of ours; None for a foreign one."""
    options = found.get_attr("TCA_OPTIONS")
    name = (options.get_attr("TCA_BPF_NAME") if options else "") or ""
    if not str(name).startswith("routerd."):
        return None
    return int(options.get_attr("TCA_BPF_ID") or 0)
