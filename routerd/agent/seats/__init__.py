"""Rooms in their seats (`agent/room.py`), beside egress: BFD and its probes, routes to other nodes."""
