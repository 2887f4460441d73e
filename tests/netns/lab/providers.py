"""The fakes of the clouds as a lab needs them: how one is served, what its clients must be told, names of things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cloud.model import Vpc as VpcFacts
from routerd.config.cloud import VPCS, Provider
from tests.models.cloud import server as ec2
from tests.models.cloud.alibaba import server as alibaba
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure import names
from tests.models.cloud.azure import server as azure
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Cloud
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front


def itself(name: str) -> str:
    return name


@dataclass(frozen=True, slots=True)
class Fake:
    name: Provider
    front: Front
    served: Callable[[Cloud], AbstractContextManager[str]]
    credentials: Callable[[str], Mapping[str, str]]  # variables of the environment, by the endpoint
    provider_id: str  # of a Node; {} is the instance
    region: str = ""
    instance: Callable[[str], str] = itself  # the id of one that the fake knows by this name
    interface: Callable[[str], str] = itself

    @property
    def vpc(self) -> VpcFacts:
        return VPCS[self.name]


AWS = Fake(
    "aws", EC2_FRONT, ec2.served,
    lambda _: {
        "AWS_ACCESS_KEY_ID": ec2.ACCESS, "AWS_SECRET_ACCESS_KEY": ec2.SECRET, "AWS_EC2_METADATA_DISABLED": "true",
    },
    "aws:///a/{}", "eu-central-1",
)  # fmt: skip
ALIBABA = Fake(
    "alibaba", ALIBABA_FRONT, alibaba.served,
    lambda _: {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": alibaba.ACCESS, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": alibaba.SECRET,
    },
    f"{alibaba.REGION}.{{}}", alibaba.REGION,
)  # fmt: skip
AZURE = Fake(
    "azure", AZURE_FRONT, azure.served,
    lambda endpoint: {
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential", "AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint,
    },
    "azure://{}",
    instance=lambda name: names.vm(name).lower(), interface=lambda name: names.nic(name).lower(),
)  # fmt: skip
FAKES: Mapping[str, Fake] = {each.name: each for each in (AWS, ALIBABA, AZURE)}
