"""What the agent answers its node's container runtime, by the CNI plugin: how a pod's network is, and its addresses.

It must not program anything: rounds do.
"""
