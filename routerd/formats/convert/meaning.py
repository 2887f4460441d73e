"""Which keys of another maker's object have no meaning here. Pure."""

from __future__ import annotations

from routerd.formats.convert.unread import unread_keys
from routerd.formats.document import Value
from routerd.formats.kinds import BY_NAME, OURS
from routerd.formats.objects import Loaded
from routerd.model import EgressPolicy, PodPool

UNREAD = "has no meaning here and is left out"
_EACH_TOLD = (OURS, "kubeovn.io")  # groups whose readers say of each key what it is
_AS_THEY_ARE = PodPool  # the network's own object: most of what it says is the network's matter


def without_meaning(value: Value, loaded: Loaded) -> list[str]:
    """Beside those of which `loaded`, what the object says, tells why they are left out."""
    kind = BY_NAME.get((value.section.string("apiVersion").rpartition("/")[0], value.section.string("kind")))
    if kind is None or kind.reader is None or kind.group in _EACH_TOLD or not kind.custom or not loaded.entries:
        return []
    found = loaded.entries[0].object
    if isinstance(found, _AS_THEY_ARE) or (isinstance(found, EgressPolicy) and found.refused):
        return []
    told = [each.message for each in loaded.refusals]
    unread = unread_keys(value, kind.reader, "spec")
    return [str(each.error(UNREAD)) for each in unread if not any(one.startswith(str(each.error(""))) for one in told)]
