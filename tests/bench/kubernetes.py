"""The Kubernetes store at size, on real processes in front of the API server double: latency, memory, requests.

    make bench-k8s        or: python -m tests.bench.kubernetes [--services N] [--pods N] [--rounds N] [--idle SECONDS]

One agent (with eBPF datapath, without speaker) and one operator, in a network namespace of their own; then the lab of
three nodes for the way to the ToR, and for restarts of the API server during traffic. The exit code is 1 if a bar is
missed. A measurement for people to read: no test asserts these figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.store_lab import bgp_config, crds, namespace, node, pod, policy, pool, service
from tests.models.apiserver import ApiServer
from tests.netns.lab.api_restart import on_api_server, restarted
from tests.netns.lab.daemons import ROUTERD, resident
from tests.netns.lab.kubernetes import on_kubernetes
from tests.netns.lab.lab import Lab

MIB = 1 << 20
PATIENCE = 45.0  # seconds
LATENCY_BAR, TOR_BAR, MEMORY_BAR, REQUESTS_BAR = 0.3, 0.8, 160, 1.0  # seconds, seconds, MiB, per second
NODES = 50
RESTARTS = (0.3, 20.0)  # seconds
RECOVERY = 8.0  # seconds until everything has been listed again: the longest pause, the spread, and a second to do it
Json = dict[str, Any]


def objects(services: int, pods: int) -> Iterator[Json]:
    for number in range(NODES):
        labels = {"routerd.io/egress-gateway": ""} if number < 2 else {}
        yield node(f"node{number}", f"10.0.{number}.1", labels)
    for number in range(pods):
        address = f"10.244.{number // 250}.{number % 250 + 1}"
        yield pod(f"pod-{number}", f"node{number % NODES}", address, {"app": f"s{number % services}"})
    for number in range(services):
        yield service(f"s{number}", 80)
        yield endpoints(number, services, pods)
    yield bgp_config_of(services)
    yield pool("egress", "10.168.60.0/24", uses=("egress",))
    for number in range(20):
        yield policy(f"s{number}", pool="egress")


def bgp_config_of(services: int) -> Json:
    found = bgp_config()
    found["data"]["config.yaml"] = found["data"]["config.yaml"].replace("192.0.2.0/24", "10.200.0.0/16")
    return found


def endpoints(number: int, services: int, pods: int) -> Json:
    chosen = range(number, pods, services)
    items = [
        {"addresses": [f"10.244.{each // 250}.{each % 250 + 1}"], "nodeName": f"node{each % NODES}",
         "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": f"pod-{each}", "namespace": "default"}}
        for each in chosen
    ]  # fmt: skip
    meta = {"name": f"s{number}-x", "namespace": "default", "labels": {"kubernetes.io/service-name": f"s{number}"}}
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
            "endpoints": items, "ports": [{"port": 80, "protocol": "TCP"}]}  # fmt: skip


def config(directory: Path, kubeconfig: str) -> Path:
    path = directory / "routerd.yaml"
    value = {
        "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "node1",
        "store": {"kind": "kubernetes", "kubeconfig": kubeconfig},
        "state-dir": str(directory / "state"), "run-dir": str(directory / "run"), "metrics-listen": "",
        "pin-dir": "/sys/fs/bpf/routerd", "service-cidrs": ["10.96.0.0/12"], "egress": {"uplinks": ["uplink0"]},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(value))
    return path


def seconds_until(holds: Callable[[], object], what: str, log: Path | None = None) -> float:
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > PATIENCE:
            said = log.read_text()[-2000:] if log else ""
            raise SystemExit(f"bench: error: not within {PATIENCE:g} s: {what}\n{said}")
        time.sleep(0.002)
    return time.monotonic() - begin


def vip_of(server: ApiServer, name: str) -> str:
    row = server.storage.get("/services", f"default/{name}")
    ingress = ((row.object.get("status") or {}).get("loadBalancer") or {}).get("ingress") if row else None
    return str(ingress[0]["ip"]) if ingress else ""


def start(role: str, file: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen([*ROUTERD, role, "--config", str(file)], stdout=output, stderr=output)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def told(what: str, figure: str, held: bool | None, bar: str = "") -> bool:
    verdict = "" if held is None else f"   bar {bar} {'held' if held else 'MISSED'}"
    print(f"{what:<56} {figure:>12}{verdict}", flush=True)
    return held is not False


def measure(asked: argparse.Namespace) -> bool:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-k8s-")))
        server = stack.enter_context(ApiServer())
        server.load([namespace("routerd"), *crds()])
        seconds_until(lambda: server.catalogue.of_kind("routerd.io/v1alpha1", "RouterdNode"), "CRDs")
        server.load(objects(asked.services, asked.pods))
        file = config(directory, server.kubeconfig)
        operator = start("operator", file, directory / "operator.log")
        stack.callback(stop, operator)
        last = f"s{asked.services - 1}"
        spent = seconds_until(lambda: all(vip_of(server, f"s{n}") for n in range(asked.services)), f"VIP of {last}")
        told(f"{asked.services} services: start of the operator to the last VIP", f"{spent:.1f} s", None)
        agent = start("agent", file, directory / "agent.log")
        stack.callback(stop, agent)
        log = directory / "agent.log"
        ready = seconds_until(lambda: b"event=ready" in log.read_bytes(), "agent ready", log)
        told("agent: start to ready", f"{ready:.1f} s", None)
        held = [latency(server, asked.rounds)]
        held += idle(server, agent, asked)
        told("operator: resident memory", f"{resident(operator.pid) / MIB:.1f} MiB", None)
    return all(held)


def latency(server: ApiServer, rounds: int) -> bool:
    times = []
    for number in range(rounds):
        name = f"bench-{number}"
        server.load([service(name, 80)])
        times.append(seconds_until(lambda name=name: vip_of(server, name), "the VIP"))  # type: ignore[misc]
    median = statistics.median(times)
    told("service created -> VIP in status: slowest", f"{max(times) * 1000:.0f} ms", None)
    bar = f"{LATENCY_BAR * 1000:.0f} ms"
    return told(f"service created -> VIP in status: median of {rounds}", f"{median * 1000:.0f} ms",
                median < LATENCY_BAR, bar)  # fmt: skip


def to_the_tor(rounds: int) -> bool:
    """In the lab of three nodes: from the objects at the API server to the ToR's table."""
    times = []
    with Lab(f"k8s{os.getpid()}") as lab:
        lab.add_pod("web", "worker", {"app": "web"})
        with on_kubernetes(lab) as story:
            for number in range(rounds):
                name, before = f"bench-{number}", set(lab.tor.routes())
                story.serve(name, "web")
                times.append(seconds_until(lambda seen=before: set(lab.tor.routes()) - seen, "the path"))  # type: ignore[misc]
    median = statistics.median(times)
    return told(f"service created -> path at the ToR: median of {rounds}", f"{median * 1000:.0f} ms",
                median < TOR_BAR, f"{TOR_BAR * 1000:.0f} ms")  # fmt: skip


def over_a_restart() -> bool:
    """In the lab, during traffic: the API server is restarted, the second time for longer than a lease lasts."""
    with Lab(f"k8s{os.getpid()}") as lab, on_api_server(lab) as (story, server):
        seen = restarted(story, server, *RESTARTS)
    away = " and ".join(f"{seconds:g}" for seconds in RESTARTS)
    told(f"API server away for {away} s: looks at the ToR's table", f"{seen.looks}", None)
    told("lists after it", " and ".join(map(str, seen.lists)), None)
    for problem in seen.problems():
        print(f"  {problem[:200]}")
    made = f"lost connections and echoes, of {seen.connections} and {seen.echoes}"
    again = "API server back -> everybody has listed again: slowest"
    return all([
        told(again, f"{max(seen.reread):.1f} s", max(seen.reread) < RECOVERY, f"{RECOVERY:g} s"),
        told("changes at the ToR: other tables and updates received", f"{seen.table}", seen.table == 0, "0"),
        told("changes of maps and of other objects of the kernel", f"{len(seen.kernel)}", not seen.kernel, "0"),
        told(made, f"{len(seen.lost)}", not seen.lost, "0"),
        told("packets of selected pods with another source", f"{seen.leaks}", not seen.leaks, "0"),
        not seen.problems(),
    ])  # fmt: skip


def idle(server: ApiServer, agent: subprocess.Popen[bytes], asked: argparse.Namespace) -> list[bool]:
    time.sleep(3)  # the last changes have been worked off
    user = "kubernetes-admin"
    before = [each for each in server.audit if each.user == user]
    cpu = cpu_seconds(agent.pid)
    time.sleep(asked.idle)
    after = [each for each in server.audit if each.user == user][len(before) :]
    of_agent = [each for each in after if each.resource != "leases"]
    rate, memory = len(of_agent) / asked.idle, resident(agent.pid) / MIB
    told("agent: processor while idle", f"{(cpu_seconds(agent.pid) - cpu) / asked.idle * 100:.1f} %", None)
    told("operator: requests for its lease while idle", f"{(len(after) - len(of_agent)) / asked.idle:.2f} /s", None)
    what = f"agent: resident memory ({asked.services} services, {asked.pods} pods)"
    return [
        told("agent and operator: other requests while idle", f"{rate:.2f} /s", rate < REQUESTS_BAR, "1 /s"),
        told(what, f"{memory:.1f} MiB", memory < MEMORY_BAR, f"{MEMORY_BAR} MiB"),
    ]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_INSIDE = """
mount -t sysfs sysfs /sys && mount -t bpf bpf /sys/fs/bpf && ip link set lo up &&
ip link add uplink0 type veth peer name tor0 && ip address add 10.0.1.1/24 dev uplink0 &&
ip link set uplink0 up && exec "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle", type=float, default=30.0)
    asked = parser.parse_args()
    if os.environ.get("BENCH_K8S_INSIDE"):
        return 0 if measure(asked) else 1
    again = [sys.executable, "-m", "tests.bench.kubernetes", *sys.argv[1:]]
    shell = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-euc", _INSIDE, "sh", *again]
    missed = subprocess.run(shell, env={**os.environ, "BENCH_K8S_INSIDE": "1"}, check=False).returncode
    held = [to_the_tor(asked.rounds), over_a_restart()]
    return missed if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
