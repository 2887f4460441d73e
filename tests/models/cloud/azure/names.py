"""How ARM calls what is in the fake cloud. It ignores case, and does not keep it."""

from __future__ import annotations

SUBSCRIPTION = "/subscriptions/0000-Sub"
GROUP = f"{SUBSCRIPTION}/resourceGroups/Group-1"
NETWORK = f"{GROUP}/providers/Microsoft.Network"
LOCATION = "westeurope"


def vm(name: str) -> str:
    return f"{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}"


def nic(name: str) -> str:
    return f"{NETWORK}/networkInterfaces/{name}"


def vnet(name: str) -> str:
    return f"{NETWORK}/virtualNetworks/{name}"


def subnet(vnet_: str, name: str) -> str:
    return f"{vnet(vnet_)}/subnets/{name}"


def last(id_: str) -> str:
    return id_.rpartition("/")[2]
