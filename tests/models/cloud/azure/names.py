"""How ARM calls what is in the fake cloud. It ignores case, and does not keep it."""

from __future__ import annotations

SUBSCRIPTION = "/subscriptions/0000-Sub"
GROUP = f"{SUBSCRIPTION}/resourceGroups/Group-1"
NETWORK = f"{GROUP}/providers/Microsoft.Network"
COMPUTE = f"{GROUP}/providers/Microsoft.Compute"
SET = "Set-1"
IN_SET = "i-5e7"  # begins the names of its instances, which look as all names of instances do
LOCATION = "westeurope"


def scale_set(name: str) -> str:
    return f"{COMPUTE}/virtualMachineScaleSets/{name}"


def vm(name: str) -> str:
    if is_in_set(name):
        return f"{scale_set(SET)}/virtualMachines/{name.removeprefix(IN_SET)}"
    return f"{COMPUTE}/virtualMachines/{name}"


def is_in_set(name: str) -> bool:
    return name.startswith(IN_SET)


def instance(id_: str) -> str:
    """The name of an instance of the scale set."""
    return f"{IN_SET}{last(id_)}"


def nic(name: str, of: str = "") -> str:
    """Of the instance `of`, if that is one of the scale set."""
    return f"{vm(of) if is_in_set(of) else NETWORK}/networkInterfaces/{name}"


def vnet(name: str) -> str:
    return f"{NETWORK}/virtualNetworks/{name}"


def subnet(vnet_: str, name: str) -> str:
    return f"{vnet(vnet_)}/subnets/{name}"


def last(id_: str) -> str:
    return id_.rpartition("/")[2]
