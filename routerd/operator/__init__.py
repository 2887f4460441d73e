"""The cluster's loops: decide by `cluster`, record, publish; on Kubernetes only while the Lease is held.

It may import everything but `agent`, `daemon` and `cli`, and touches no kernel, map or BGP session.
"""
