"""Kube-OVN's kinds of egress (kubeovn.io/v1) and its annotations `eip` and `snat`, as far as they are not done. Pure.

keys.py      keys that change what Kube-OVN does, and nothing here
named.py     addresses, subnets and NAT gateways: what policies name
policies.py  rules of SNAT and egress gateways
joined.py    policies with what they name
pods.py      pools of pods, and annotations

Rules and gateways are policies. They name addresses (OvnEip, IptablesEIP) and subnets, which stores put in
(`joined.completed`); of a subnet the namespaces count that are bound to it, and its VPC, as two may have one CIDR.
What the annotations ask for is in `foreign.policies`.
"""
