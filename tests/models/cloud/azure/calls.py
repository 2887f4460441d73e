"""The operations of Azure that the fake knows: what they take, refuse and need. Docs are held against this table."""

from __future__ import annotations

from collections.abc import Mapping

from tests.models.cloud.calls import ApiCall

NOT_THERE = {"ResourceNotFound": "there is no such resource"}
OF_ANY = {
    "PreconditionFailed": "the ETag is not the interface's any more",
    "AnotherOperationInProgress": "the interface is being changed",
    "SubnetIsFull": "the subnet has too few free addresses, or no whole prefix",
    "NetworkInterfaceIPConfigurationLimitReached": "the interface or its VM has 256 addresses",
    "InvalidRequestFormat": "something that may not change is another, or IPv6 where the subnet has none",
}
# By what the interface refers to: whoever writes it must be allowed to join each of these.
JOINS = {
    "subnet": "Microsoft.Network/virtualNetworks/subnets/join/action",
    "networkSecurityGroup": "Microsoft.Network/networkSecurityGroups/join/action",
    "applicationSecurityGroups": "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action",
    "loadBalancerBackendAddressPools": "Microsoft.Network/loadBalancers/backendAddressPools/join/action",
    "publicIPAddress": "Microsoft.Network/publicIPAddresses/join/action",
}
SETS = "Microsoft.Compute/virtualMachineScaleSets"
ARM: tuple[ApiCall, ...] = (
    ApiCall(
        "NetworkInterfaces_List",
        "Microsoft.Network/networkInterfaces/read",
        ("id", "url"),
        {"ResourceGroupNotFound": "there is no such resource group"},
    ),
    ApiCall("NetworkInterfaces_Get", "Microsoft.Network/networkInterfaces/read", ("id",), NOT_THERE),
    ApiCall("VirtualNetworks_Get", "Microsoft.Network/virtualNetworks/read", ("id",), NOT_THERE),
    ApiCall(
        "NetworkInterfaces_CreateOrUpdate",
        "Microsoft.Network/networkInterfaces/write",
        ("id", "etag", "body"),
        {
            **OF_ANY,
            "PrivateIPAddressInUse": "an address that is named is somebody's",
            "PrivateIPAddressNotInSubnet": "an address that is named is not of the subnet",
        },
        "async",
        JOINS,
    ),
    ApiCall(
        "NetworkInterfaces_ListVirtualMachineScaleSetNetworkInterfaces",
        f"{SETS}/networkInterfaces/read",
        ("id", "url"),
        NOT_THERE,
    ),
    ApiCall(
        "NetworkInterfaces_GetVirtualMachineScaleSetNetworkInterface",
        f"{SETS}/virtualMachines/networkInterfaces/read",
        ("id",),
        NOT_THERE,
    ),
    ApiCall("VirtualMachineScaleSetVMs_Get", f"{SETS}/virtualMachines/read", ("id",), NOT_THERE),
    ApiCall(
        "VirtualMachineScaleSetVMs_Update",
        f"{SETS}/virtualMachines/write",
        ("id", "etag", "body"),
        {**OF_ANY, "LinkedAuthorizationFailed": "the image is named, and may not be read"},
        "async",
        JOINS,
    ),
)
BY_NAME: Mapping[str, ApiCall] = {each.name: each for each in ARM}
# Of any call.
EVERY: Mapping[str, str] = {
    "AuthorizationFailed": "the permission is missing",
    "TooManyRequests": "the bucket of the subscription is empty",
    "UnknownParameter": "a parameter is not the call's",
    "NotFound": "there is no such call",
    "InternalServerError": "the cloud failed: it may have been done",
}
