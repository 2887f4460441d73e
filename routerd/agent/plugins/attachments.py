"""The agent's answers to the CNI plugin: a pod may start when a round has put in place what its first packet needs.

A request notes what the runtime says and asks for a round; the round takes all that were noted before it began, and
tells what came of it. So many pods that start at once wait for one round. Nothing is kept over a restart: by then the
store says the same of nearly all pods, and the guard holds the others back until it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cni.wire import CHAINED, NOT_AVAILABLE, PATIENCE, TRY_AGAIN, WRONG_ENVIRONMENT, Refused, Request, timeout_of
from routerd.agent.plugins.answered import answered
from routerd.model import IPAddress, Snapshot
from routerd.node.admission import Applicant, hindrance, unavailable
from routerd.node.attached import Attached, Interface, is_of
from routerd.node.desired import EGRESS_ROOM, NodeState

LOGGER = logging.getLogger("routerd.cni")


@dataclass(slots=True, eq=False)
class Waiting:
    """A pod that waits for a round. `reason`: what held it up in the last one."""

    applicant: Applicant
    done: asyncio.Future[None]
    taken: bool = False  # a round that began after the request has it
    reason: str = "no round has come to its end since"


@dataclass(slots=True)
class Attachments:
    """Lives in the agent's loop. `hurry` asks for a round that reads everything back, now; `wake` for any."""

    node: str
    snapshot: Callable[[], Snapshot] = Snapshot
    hurry: Callable[[], None] = lambda: None
    wake: Callable[[], None] = lambda: None
    guards: bool = True  # whether egress is on: else every pod may start
    _now: Mapping[str, Attached] = field(init=False, default_factory=dict)
    _waiting: list[Waiting] = field(init=False, default_factory=list)
    _seen: frozenset[str] = field(init=False, default=frozenset())  # of these, pods that the store has had
    _covers: bool = field(init=False, default=True)  # whether any policy leads anywhere: else nothing can be wrong

    # --- the rounds' side

    def take(self) -> Mapping[str, Attached]:
        """A round begins: what it goes by, by pod. The value never changes."""
        for each in self._waiting:
            each.taken = True
        self._look()
        return self._now

    def consider(self, snapshot: Snapshot, state: NodeState, undone: Mapping[str, Any]) -> None:
        """The round is over. `undone`: of its rooms that were read."""
        policies = state.egress.policies.values() if state.egress is not None else ()
        self._covers = state.egress is None or any(policy.destinations for policy in policies)
        found = undone.get(EGRESS_ROOM)
        for each in self._waiting:
            if each.taken and not each.done.done():
                decides = found.decides if found is not None else None
                each.reason = hindrance(each.applicant, snapshot, state, self.node, decides)
                if not each.reason:
                    each.done.set_result(None)

    # --- the plugin's side

    async def answer(self, data: bytes) -> bytes:
        """One request as the plugin sent it; the whole answer."""
        return await answered(data, self._answer, LOGGER, CHAINED)

    async def _answer(self, request: Request) -> Mapping[str, Any] | None:
        match request.command:
            case "ADD":
                return await self._add(request)
            case "CHECK":
                await self._wait(request)
            case "DEL":
                self._delete(request)
            case "GC":
                self._collect(request)
            case "STATUS":
                reason = unavailable(self.snapshot(), self.node) if self.guards and not request.allows else ""
                if reason:
                    raise Refused(NOT_AVAILABLE, reason)
            case command:
                raise Refused(WRONG_ENVIRONMENT, f"CNI_COMMAND {command!r} is not known")
        return None

    async def _add(self, request: Request) -> Mapping[str, Any]:
        result, addresses = request.result, request.addresses
        if request.pod is not None:
            self._note(request, addresses)
            await self._wait(request)
        return result

    def _note(self, request: Request, addresses: tuple[IPAddress, ...]) -> None:
        key = _key(request)
        known = self._now.get(key)
        others = known.interfaces if known is not None and known.container == request.container else {}
        interface = Interface(str(request.network.get("name", "")), addresses, request.devices)
        interfaces = {**others, request.interface: interface}
        self._put(key, Attached(request.container, request.uid, interfaces, self._addresses_of(key)))

    def _addresses_of(self, key: str) -> tuple[IPAddress, ...]:
        """As the store has them now."""
        pod = (self.snapshot().pods or {}).get(key)
        return pod.addresses if pod is not None else ()

    def _put(self, key: str, found: Attached) -> None:
        """What is said of pods that are gone from the store goes. Others have yet to appear there, also those that
        started without waiting for it (`onAgentAbsent: allow`), as long as they have a network.
        """
        self._look()
        pods = self.snapshot().pods
        gone = set() if pods is None else self._now.keys() - pods.keys()
        kept = {k: v for k, v in self._now.items() if k not in gone or (v.interfaces and k not in self._seen)}
        self._now = {**kept, key: found}
        self._look()

    def _look(self) -> None:
        """Notes which of these pods the store has."""
        pods = self.snapshot().pods or {}
        there = (k for k, v in self._now.items() if k in pods and is_of(v.uid, pods[k]))
        self._seen = (self._seen & self._now.keys()) | frozenset(there)

    def _delete(self, request: Request) -> None:
        """Of another sandbox than the last one it is late: the pod has its next network already."""
        key = _key(request) if request.pod is not None else ""
        known = self._now.get(key)
        if known is not None and known.container == request.container and request.interface in known.interfaces:
            self._drop(key, known, {request.interface})
            self.wake()

    def _drop(self, key: str, known: Attached, gone: set[str]) -> None:
        interfaces = {name: each for name, each in known.interfaces.items() if name not in gone}
        self._put(key, replace(known, interfaces=interfaces, before=self._addresses_of(key)))

    def _collect(self, request: Request) -> None:
        valid, network = request.valid, request.network.get("name")
        for key, known in self._now.items():
            there = ((name, each) for name, each in known.interfaces.items() if each.network == network)
            gone = {name for name, _ in there if (known.container, name) not in valid}
            if gone:
                self._drop(key, known, gone)
                self.wake()

    async def _wait(self, request: Request) -> None:
        """Until a round has decided the pod. Raises Refused when the plugin's time is nearly up."""
        if request.pod is None or not self.guards:
            return
        if not self._covers:
            self.wake()
            return
        applicant = Applicant(_key(request), request.uid, request.addresses)
        waiting = Waiting(applicant, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.hurry()
        try:
            async with asyncio.timeout(PATIENCE * timeout_of(request.network)):
                await waiting.done
        except TimeoutError:
            if not request.allows:
                raise Refused(TRY_AGAIN, waiting.reason) from None
        finally:
            self._waiting.remove(waiting)


def _key(request: Request) -> str:
    return "/".join(request.pod or ())
