"""Netlink as bytes, for the rooms that read or change much of the kernel at once. It knows what none of it means."""
