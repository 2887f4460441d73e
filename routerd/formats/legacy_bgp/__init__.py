"""The BGP ConfigMap of Cilium 1.10 and MetalLB up to 0.12, decided exactly as their own parsers decided.

golang.py     Go's durations, numbers, addresses and quoting, with the wording of its errors
scalars.py    which type a scalar has for yaml.v2
structure.py  which keys a document may have: the structures of the two parsers, and ours
decode.py     strict decoding into these structures
peers.py, addresses.py, export.py, communities.py, pools.py, bfd.py   the checks of each section
labels.py     selectors of nodes and services
parse.py      the order of it all; the entry points
"""

from routerd.formats.legacy_bgp.parse import LegacyConfig, as_json, parse, parse_document
from routerd.formats.legacy_bgp.structure import Dialect

__all__ = ["Dialect", "LegacyConfig", "as_json", "parse", "parse_document"]
