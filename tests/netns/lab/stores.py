"""Where a lab's cluster and its users' manifests lie: in files, or at an API server in the ToR's namespace."""

from __future__ import annotations

import functools
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml

from tests.k8s import target
from tests.k8s.client import APPLY, MERGE, Answer, Client
from tests.k8s.deployment import foreign, install, kinds, kubeconfig_of, token
from tests.netns.lab import cluster, netns
from tests.netns.lab.daemons import REPOSITORY, file_store
from tests.netns.lab.lab import TOR_ADDRESS, Lab, LabError

API_PORT = 6443
Json = dict[str, Any]


class Manifests(Protocol):
    """A store as its users see it. `Daemons` takes `store`."""

    def prepare(self) -> str:
        """Makes the store ready for objects; returns one line that says which it is."""

    def put(self, name: str, text: str) -> None:
        """Creates or replaces what the manifest `name` holds."""

    def read(self, name: str) -> str:
        """What was put."""

    def store(self, role: str) -> dict[str, object]:
        """The section `store` of a role's configuration: "operator", "agent" or "speaker"."""

    def node_status(self, node: str) -> Json | None:
        """What the store tells people of a node's health; None where it has no place for that."""

    def look_around(self, name: str) -> Mapping[str, str]:
        """Commands for a lab that was left up, of which one edits the manifest `name`."""

    def remove(self) -> None:
        """What would stay when the lab is gone."""


@dataclass(slots=True)
class Files:
    """The directory of manifests that each node sees."""

    lab: Lab

    def prepare(self) -> str:
        return f"store: files in {self.lab.manifests}"

    def put(self, name: str, text: str) -> None:
        cluster.put(self.lab.manifests / name, text)

    def read(self, name: str) -> str:
        return (self.lab.manifests / name).read_text()

    def store(self, role: str) -> dict[str, object]:
        return file_store(self.lab)

    def node_status(self, node: str) -> Json | None:
        return None

    def look_around(self, name: str) -> Mapping[str, str]:
        return {"edit a policy": f"$EDITOR {self.lab.manifests}/{name}"}

    def remove(self) -> None:
        pass


@dataclass(slots=True)
class ApiObjects:
    """Objects of the API server that `administrator`, a kubeconfig, names; the ToR's namespace reaches it.

    `outside`: the same server as this machine reaches it, if it is none of the lab's own.
    """

    lab: Lab
    administrator: Path
    outside: Path | None = None
    _made: dict[str, Json] = field(default_factory=dict)  # by path
    _put: dict[str, str] = field(default_factory=dict)
    _resources: dict[tuple[str, str], Json] = field(default_factory=dict)  # (apiVersion, kind) -> of discovery

    def prepare(self) -> str:
        """Installs what `configs/deploy` has for the API server, and CRDs of others; writes the roles' kubeconfigs."""
        objects = [*install("namespace.yaml", "crds.yaml", "rbac.yaml"), *foreign()]
        for each in objects:
            self._apply(each)
        for api_version, kind in kinds(objects):
            self.lab.wait(functools.partial(self._resource, api_version, kind), f"{kind} is served")
        for account in ("agent", "operator"):
            bearer = self._ask(lambda api, name=account: token(api, f"routerd-{name}"))  # type: ignore[misc]
            kubeconfig_of(self.administrator, bearer, self._kubeconfig(account))
        server = yaml.safe_load(self.administrator.read_text())["clusters"][0]["cluster"]["server"]
        return f"store: Kubernetes API at {server}; CRDs and RBAC of configs/deploy; each role by its service account"

    def put(self, name: str, text: str) -> None:
        for each in yaml.safe_load_all(text):
            self._apply(each)
        self._put[name] = text

    def read(self, name: str) -> str:
        return self._put[name]

    def store(self, role: str) -> dict[str, object]:
        account = "operator" if role == "operator" else "agent"
        return {"kind": "kubernetes", "kubeconfig": str(self._kubeconfig(account))}

    def node_status(self, node: str) -> Json | None:
        answer: Answer = self._ask(lambda api: api.get(f"/apis/routerd.io/v1alpha1/routerdnodes/{node}"))
        return dict(answer.body.get("status") or {})

    def look_around(self, name: str) -> Mapping[str, str]:
        inside = f"ip netns exec {self.lab.tor.name} env KUBECONFIG={self.administrator} kubectl"
        each = list(yaml.safe_load_all(self._put[name]))[-1]
        return {
            "change a policy": f"{inside} patch {each['kind'].lower()} {each['metadata']['name']} --type=merge "
            """-p '{"spec": {"priority": 5}}'""",
            "what became of it": f"{inside} get {each['kind'].lower()} {each['metadata']['name']} -o yaml",
            "how the nodes are": f"{inside} get routerdnodes -o wide",
        }

    def remove(self) -> None:
        """Only from a server that outlives the lab."""
        if self.outside is None:
            return
        api = Client(self.outside)
        reports = "/apis/routerd.io/v1alpha1/routerdnodes"
        made = [*self._made, *(f"{reports}/{node}" for node in self.lab.nodes)]
        names = {kind: [] for kind in ("Namespace", "CustomResourceDefinition")}
        for path in reversed(made):
            kind = self._made.get(path, {}).get("kind")
            names[kind].append(path.rpartition("/")[2]) if kind in names else target.remove(api, path)
        for name in names["Namespace"]:
            target.remove_namespace(api, name)
        target.remove_definitions(api, *names["CustomResourceDefinition"])
        target.leave(api)

    def _kubeconfig(self, account: str) -> Path:
        return self.lab.directory / f"{account}.kubeconfig"

    # --- requests

    def _ask(self, request: Callable[[Client], Any]) -> Any:
        if self.outside is not None:
            return request(Client(self.outside))
        with netns.entered(self.lab.tor.name):
            return request(Client(self.administrator))

    def _apply(self, each: Json) -> None:
        """As `kubectl apply --server-side` does; the status too, which Kubernetes' own parts write."""
        path = f"{self._collection(each)}/{each['metadata']['name']}"
        is_own = each["kind"] == "Namespace" and each["metadata"]["name"] in target.SERVERS_OWN
        if not is_own:
            self._made[path], each = each, target.marked(each)
        spec = {key: value for key, value in each.items() if key != "status"}
        accepted(self._ask(lambda api: api.patch(path, spec, APPLY, fieldManager="lab", force="true")))
        if "status" in each:
            accepted(self._ask(lambda api: api.patch(f"{path}/status", {"status": each["status"]}, MERGE)))
        if each["kind"] == "Namespace":
            self._ask(lambda api: target.make_namespace(api, each["metadata"]["name"]))

    def _collection(self, each: Json) -> str:
        api_version = str(each["apiVersion"])
        resource = self._resource(api_version, each["kind"])
        assert resource is not None, f"{each['kind']} of {api_version} is not served"
        place = f"/namespaces/{each['metadata'].get('namespace', 'default')}" if resource["namespaced"] else ""
        return f"{_root(api_version)}{place}/{resource['name']}"

    def _resource(self, api_version: str, kind: str) -> Json | None:
        """What discovery says of a kind, None while it is not served."""
        if (api_version, kind) not in self._resources:
            found: Answer = self._ask(lambda api: api.get(_root(api_version)))
            for each in found.body.get("resources") or ():
                if "/" not in each["name"]:
                    self._resources[api_version, each["kind"]] = each
        return self._resources.get((api_version, kind))


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def accepted(answer: Answer) -> None:
    """Raises CommandError with what the API server said if it was refused."""
    if answer.code >= 300:
        raise netns.CommandError(f"API server: {answer.code} {answer.reason}: {answer.message}")


def start_api_server(lab: Lab) -> Path:
    """Starts the API server double as a process in the ToR's namespace; returns the administrator's kubeconfig.

    It ends with the lab, and keeps its files in the lab's directory.
    """
    log = lab.tor.directory / "apiserver.log"
    serve = ["-m", "tests.models.apiserver", "--tls", "--host", TOR_ADDRESS, "--port", str(API_PORT)]
    environment = ["env", "-C", str(REPOSITORY), f"TMPDIR={lab.tor.directory}"]
    process = lab.tor.popen([*environment, sys.executable, *serve], log)

    def kubeconfig() -> str:
        if not netns.is_alive(process.pid):
            raise netns.CommandError(f"the API server double ended: {log.read_text().strip()[-300:]}")
        found = re.search(r"KUBECONFIG=(\S+)", log.read_text())
        return found[1] if found else ""

    return Path(lab.wait(kubeconfig, "the API server double listens"))


def api_objects(lab: Lab) -> ApiObjects:
    """An API server for the lab, and its objects: the double, or the server that KUBECONFIG names."""
    try:
        outside = target.named()
        if outside is None:
            return ApiObjects(lab, start_api_server(lab))
        with target.a_server() as client:
            for name in ("default", "kube-system"):
                target.make_namespace(client, name)
            return ApiObjects(lab, relayed(lab, client), outside)
    except target.NotForTests as error:
        raise LabError(str(error)) from error


def relayed(lab: Lab, client: Client) -> Path:
    """A kubeconfig, without anybody's credentials, for the lab's hosts, which reach the server through a relay."""
    server = urlsplit(client.server)
    if not server.hostname or server.scheme != "https":
        raise LabError(f"KUBECONFIG: {client.server}: expected https://HOST:PORT")
    there = socket.gethostbyname(server.hostname)
    listen = [TOR_ADDRESS, str(API_PORT), there, str(server.port or 443)]
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)  # while this process is there, by its name
    program = [sys.executable, "-m", "tests.netns.lab.relay", f"/proc/{os.getpid()}/fd/{outside}"]
    lab.tor.popen(["env", "-C", str(REPOSITORY), *program, *listen], lab.tor.directory / "relay.log")
    value = client.without_credentials()
    value["clusters"][0]["cluster"] |= {
        "server": f"https://{TOR_ADDRESS}:{API_PORT}",
        "tls-server-name": server.hostname,
    }
    path = lab.directory / "relayed.kubeconfig"
    path.write_text(yaml.safe_dump(value))
    return path


STORES: Mapping[str, Callable[[Lab], Manifests]] = {"files": Files, "kubernetes": api_objects}
