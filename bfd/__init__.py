"""BFD: liveness of BGP peers (RFC 5880, 5881). Knows neither routerd, nor BGP, nor the other rooms.

packet.py    a Control packet, bytes to value and back
session.py   one session's state machine: frozen values, time and chance come from outside
table.py     all sessions of a node: whose a packet is, what is due when, what has changed. No I/O
control.py   what is said on the socket between the process and who wants sessions: lines of JSON as values
client.py    the other end of that socket
engine.py    sockets, clock and socket of control: the process

Times are microseconds in packets and settings, as on the wire, and seconds of a monotonic clock elsewhere.
"""
