"""What of Kube-OVN's objects is read and not done, key by key. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from routerd.formats.document import Section, Value, unknown_key
from routerd.formats.meta import read_meta
from routerd.model import Refusal
from routerd.refs import Ref

NOT_USED = "KeyNotUsed"  # reason of a refusal: a key that changes what Kube-OVN does, and nothing here


@dataclass(frozen=True, slots=True)
class Keys:
    """All that a spec may have."""

    used: Collection[str]
    words: Mapping[str, str]  # what is not done of a key
    network: Collection[str] = ()  # keys of Kube-OVN's own network, told together

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.used, *self.words, *self.network)


def said(section: Section | None, key: str) -> Value | None:
    """None where it is empty."""
    place = section.get(key) if section is not None else None
    return place if place is not None and place.text else None


def not_used(value: Value, keys: Keys) -> Iterator[Refusal]:
    """What the spec of an object says and is not done, and keys that there are not."""
    about, spec = _about(value), value.section.require("spec").section
    for key in spec:
        if key in keys.words and _is_said(spec.get(key)):
            yield Refusal(about, NOT_USED, str(spec.entries[key].error(keys.words[key])))
    if names := ", ".join(key for key in spec if key in keys.network and _is_said(spec.get(key))):
        message = f"keys of Kube-OVN's own network, which change nothing here: {names}"
        yield Refusal(about, NOT_USED, str(spec.value.error(message)))
    yield from unknown(value, spec, keys.known)


def unknown(value: Value, section: Section, known: Collection[str]) -> Iterator[Refusal]:
    """Keys of a section of the object that Kube-OVN does not have, as after a slip."""
    for key in section:
        if key not in known:
            place = section.keys.get(key, section.entries[key])
            message = f"{unknown_key(key, known)}; it is left out"
            yield Refusal(_about(value), NOT_USED, str(place.error(message)))


def _about(value: Value) -> Ref:
    meta = read_meta(value)
    return Ref(meta.kind, meta.namespace_or_default if meta.kind == "VpcEgressGateway" else "", meta.name)


def _is_said(place: Value | None) -> bool:
    if place is None:
        return False
    return place.text not in ("", "false") if place.is_scalar else bool(place.node.value)
