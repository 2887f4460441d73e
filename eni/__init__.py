"""The wiring of a cloud's network interfaces on a node: devices, routes, rules and settings for pods' addresses.

Values, a pure plan and the kernel. It knows no cloud, no pod and no store, and no other room.
"""
