"""Objects of other makers as objects of ours. Pure.

aggregates.py aggregates that a pool of ours cannot have
manifests.py  the model -> manifests of ours
kube_ovn.py   pods with annotations -> policies
meaning.py    which keys of an object of another maker have no meaning here
unread.py     which keys of an object nobody reads
whole.py      files -> manifests of ours, with what has no meaning here
"""

from routerd.formats.convert.whole import Converted, convert

__all__ = ["Converted", "convert"]
