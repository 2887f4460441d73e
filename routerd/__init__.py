"""The daemon: command line, configuration, sources and formats, the agent's and the operator's loops.

This room composes the others (`bgp`, `egress`, `ipam`, `bpf`); none of them may import it.
"""

__version__ = "0.1.0"
