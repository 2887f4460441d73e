"""The daemon, in wings; imports run from the left to the right only, and `make check` holds it.

    cli > daemon > agent | operator > serve > tell > store | config > node | cluster > formats > model and other words

It composes the rooms (`bgp`, `egress`, `ipam`, `bpf`); none of them may import it.
"""

__version__ = "0.1.0"
