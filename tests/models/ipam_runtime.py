"""A container runtime as the agent's desk for pods' addresses hears it: one request, one answer, without a socket."""

from __future__ import annotations

import json
from typing import Any

from routerd.agent.plugins.pod_addresses import PodAddressDesk

VERSION = "1.0.0"


async def ask(
    desk: PodAddressDesk, command: str, container: str = "c1", pod: str = "", uid: str = "", **network: Any
) -> tuple[int, Any]:
    """Exit code, and what is printed as a value. `pod` "" = no pod's container."""
    namespace, _, name = pod.partition("/")
    arguments = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}" if pod else ""
    variables = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_ARGS": arguments,
    }  # fmt: skip
    section = {"type": "routerd-ipam", "timeout": 5}
    configuration = {"cniVersion": VERSION, "name": "pods", "type": "ptp", "ipam": section, **network}
    head = "".join(f"{name}={value}\0" for name, value in variables.items())
    answer = await desk.answer(f"{head}\0{json.dumps(configuration)}".encode())
    first, _, body = answer.partition(b"\n")
    code, length = map(int, first.split())
    assert length == len(body)
    return code, json.loads(body) if body else None


async def address(desk: PodAddressDesk, container: str = "c1", pod: str = "", uid: str = "", **network: Any) -> str:
    """What ADD gives, or the message by which it is refused."""
    code, found = await ask(desk, "ADD", container, pod, uid, **network)
    return str(found["msg"]) if code else " ".join(each["address"] for each in found["ips"])
