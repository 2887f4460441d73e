"""The API server that the tests of this directory run against: one that KUBECONFIG names, or the double.

A named one must be for tests: kube-apiserver with etcd behind it, no kubelets, nothing of a cluster in use. Where that
is not so, nothing is written and the tests fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from routerd.formats.kinds import KINDS
from tests.k8s.client import Client, Json
from tests.models.apiserver import ApiServer
from tests.waiting import wait

SWITCH = "KUBECONFIG"
MADE = "tests.routerd.io/made"  # annotation of everything that a test makes where others could have made it
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RBAC = "rbac.authorization.k8s.io/v1"
# what tests put into namespaces, as there need be no controller that empties them
CONTENTS = (
    "api/v1 configmaps", "api/v1 services", "api/v1 pods", "api/v1 secrets", "api/v1 events", "api/v1 serviceaccounts",
    "apis/coordination.k8s.io/v1 leases", "apis/discovery.k8s.io/v1 endpointslices", "apis/apps/v1 daemonsets",
    "apis/apps/v1 deployments", "apis/policy/v1 poddisruptionbudgets", f"apis/{RBAC} roles",
    f"apis/{RBAC} rolebindings",
)  # fmt: skip
SERVERS_OWN = ("default", "kube-system", "kube-public", "kube-node-lease")  # namespaces
CRD_GROUPS = {each.group for each in KINDS if each.custom and each.read_by}  # of CRDs that tests make
# where a cluster in use has objects, and which of them an empty one has as well
TELLTALE: dict[str, tuple[str, ...]] = {
    "/api/v1/namespaces": SERVERS_OWN, "/api/v1/nodes": (), "/api/v1/pods": (), "/api/v1/services": ("kubernetes",),
    "/apis/apps/v1/daemonsets": (), "/apis/apps/v1/deployments": (),
}  # fmt: skip
CONFIGURATION = "/api/v1/namespaces/kube-system/configmaps/bgp-config"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class NotForTests(Exception):
    """The API server is in use."""


def named() -> Path | None:
    """The kubeconfig that the environment names. Raises NotForTests if it cannot be one."""
    text = os.environ.get(SWITCH, "")
    if not text:
        return None
    if not Path(text).is_file():
        raise NotForTests(f"{SWITCH}={text}: no such file; expected the kubeconfig of an API server for tests, or none")
    return Path(text)


@contextmanager
def a_server() -> Iterator[Client]:
    """An administrator's client: of the named server, looked at before anything is written, or of a new double."""
    kubeconfig = named()
    with ExitStack() as stack:
        if kubeconfig is None:
            kubeconfig = Path(stack.enter_context(ApiServer()).kubeconfig)
        client = Client(kubeconfig)
        if named():
            _look_at(client)
        yield client


_seen: set[str] = set()


def _look_at(client: Client) -> None:
    if client.server in _seen:
        return
    if not _may_do_everything(client):
        raise NotForTests(f"{SWITCH}: {client.server}: expected an administrator's kubeconfig, who may do everything")
    if found := strangers(client):
        raise NotForTests(
            f"{SWITCH}: {client.server} is in use: it has {', '.join(found[:3])}; these tests make and delete Nodes, "
            f"CRDs and configuration: name an API server of their own, or unset {SWITCH} to use the double"
        )
    _seen.add(client.server)


def _may_do_everything(client: Client) -> bool:
    """What one may not see must not count as absent."""
    everything = {"verb": "*", "group": "*", "resource": "*"}
    head = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    answer = client.create(REVIEWS, {**head, "spec": {"resourceAttributes": everything}})
    return answer.code == 201 and bool(answer.body["status"]["allowed"])


def strangers(client: Client) -> list[str]:
    """What no test has made and an empty cluster does not have. Raises NotForTests if that cannot be seen."""
    found = []
    places = {each["metadata"]["name"] for each in _listed(client, "/api/v1/namespaces") if is_made(each)}
    for path, usual in TELLTALE.items():
        others = (each["metadata"] for each in _listed(client, path) if not is_made(each))
        names = (meta["name"] for meta in others if meta.get("namespace") not in places)
        found += [f"{path.rpartition('/')[2]}/{name}" for name in names if name not in usual]
    for each in _listed(client, DEFINITIONS):
        if each["spec"]["group"] in CRD_GROUPS and not is_made(each):
            found.append(f"customresourcedefinitions/{each['metadata']['name']}")
    answer = client.get(CONFIGURATION)
    if answer.code != 404 and not (answer.code == 200 and is_made(answer.body)):
        found.append("ConfigMap kube-system/bgp-config")
    return found


def _listed(client: Client, path: str) -> list[Json]:
    answer = client.get(path)
    if answer.code != 200:
        raise NotForTests(f"{SWITCH}: {client.server} answers {answer.code} to {path}: {answer.message}")
    return list(answer.body["items"])


def marked(each: Json) -> Json:
    """With the annotation that says that a test made it."""
    meta = each["metadata"]
    return {**each, "metadata": {**meta, "annotations": {**(meta.get("annotations") or {}), MADE: "yes"}}}


# --- namespaces, where nothing may tend them


def make_namespace(client: Client, name: str) -> None:
    """With the service account that every namespace of a cluster has. One that is there is taken."""
    if name not in SERVERS_OWN:
        created(client, "/api/v1/namespaces", {"metadata": {"name": name}})
    created(client, f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})


def leave(client: Client) -> None:
    """Removes what tests of the store leave for one another."""
    found = client.get(DEFINITIONS).body["items"]
    remove_definitions(client, *(each["metadata"]["name"] for each in found if is_made(each)))
    for path in ("/api/v1/namespaces", "/api/v1/serviceaccounts"):
        for each in filter(is_made, client.get(path).body["items"]):
            if path.endswith("namespaces"):
                remove_namespace(client, each["metadata"]["name"])
            else:
                place = f"/api/v1/namespaces/{each['metadata']['namespace']}/serviceaccounts"
                client.delete(f"{place}/{each['metadata']['name']}")


def is_made(each: Json) -> bool:
    return MADE in (each["metadata"].get("annotations") or {})


def created(client: Client, path: str, body: Json) -> None:
    """Also if it is there already."""
    answer = client.create(path, marked(body))
    assert answer.code in (201, 409), answer


def remove_namespace(client: Client, name: str) -> None:
    """With all that is in it: by the server's controllers, if it has any."""
    path = f"/api/v1/namespaces/{name}"
    client.delete(path)
    empty(client, name)
    client.update(f"{path}/finalize", {"metadata": {"name": name}, "spec": {"finalizers": []}})
    until(lambda: client.get(path).code == 404, f"namespace {name} is gone")


def empty(client: Client, namespace: str) -> None:
    for each in CONTENTS:
        root, plural = each.split()
        path = f"/{root}/namespaces/{namespace}/{plural}"
        for item in client.get(path).body.get("items") or ():
            if (plural, item["metadata"]["name"]) != ("serviceaccounts", "default"):
                remove(client, f"{path}/{item['metadata']['name']}")


def remove(client: Client, path: str) -> None:
    """At once, whatever finalizers say."""
    answer = client.delete(path, gracePeriodSeconds=0)
    if answer.code < 300 and (answer.body.get("metadata") or {}).get("finalizers"):
        client.patch(path, {"metadata": {"finalizers": None}})


def remove_definitions(client: Client, *names: str) -> None:
    for name in names:
        client.delete(f"{DEFINITIONS}/{name}")
    for name in names:
        until(lambda name=name: client.get(f"{DEFINITIONS}/{name}").code == 404, f"definition {name} is gone")


def until(ask: Any, what: str = "waited in vain") -> Any:
    """The first true answer. Raises WaitTimeout with `what` after a bounded time."""
    return wait(ask, what)
