"""Which bits of a packet's mark the rules of a node look at or change, read from what nft, iptables-save and ip(8) say.
Pure.

What copies a connection's mark does not count: packets of ours are not tracked, and such a rule leaves them alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from egress.host.enforcement import MarkUse

ALL = (1 << 32) - 1
OWN_PROTOCOL = "203"  # of rules and routes of routerd's, whichever room made them
OWN_TABLE = re.compile(r"routerd(_\w+)?")  # so are these of nft
_STRING = re.compile(r'"[^"]*"')
_NFT_SET = re.compile(r"(?<!ct )(?:meta )?(?<![\w-])mark set (.*)")
_NFT_OWN = re.compile(r"(?:meta )?mark((?: (?:&|and|\||or|\^|xor) 0x[0-9a-f]+)+)")
_NFT_STEP = re.compile(r"(&|and|\||or|\^|xor) 0x([0-9a-f]+)")
_NFT_MATCH = re.compile(r"(?<!ct )(?<!\. )(?<![\w-])mark(?![\w-]| \.)(?: (?:&|and) 0x([0-9a-f]+))?")
_IPTABLES = re.compile(r"--(?:mark|set-xmark) (0x[0-9a-f]+)(?:/(0x[0-9a-f]+))?")
_CONNECTION = re.compile(r"-m connmark (?:! )?--mark \S+|-j CONNMARK .*")


def of_nft(ruleset: str) -> Iterator[MarkUse]:
    """Of `nft -n list ruleset`, of tables that are not ours."""
    inside = False
    for line in ruleset.splitlines():
        if line.startswith("table "):
            inside = OWN_TABLE.fullmatch(line.split()[2]) is not None
        bits = 0 if inside or "mark" not in line else _nft_bits(_STRING.sub("", line))
        if bits:
            yield MarkUse(bits, " ".join(line.split()))


def _nft_bits(line: str) -> int:
    found = 0
    changed = _NFT_SET.search(line)
    if changed:
        found |= _changed(changed[1])
        line = line[: changed.start()]
    for match in _NFT_MATCH.finditer(line):
        found |= int(match[1], 16) if match[1] else ALL
    return found


def _changed(expression: str) -> int:
    own = _NFT_OWN.match(expression)
    if own is None:
        return 0 if expression.startswith("ct mark") else ALL
    steps = ((word, int(number, 16)) for word, number in _NFT_STEP.findall(own[1]))
    bits = 0
    for word, number in steps:
        bits |= ALL & ~number if word in ("&", "and") else number
    return bits


def of_iptables(saved: str) -> Iterator[MarkUse]:
    """Of `iptables-legacy-save`: --mark VALUE/MASK, --set-xmark VALUE/MASK."""
    for line in saved.splitlines():
        bits = 0
        for value, mask in _IPTABLES.findall(_CONNECTION.sub("", line)):
            bits |= (int(value, 16) | int(mask, 16)) if mask else ALL
        if bits:
            yield MarkUse(bits, line.strip())


def of_rules(rules: Iterable[Mapping[str, Any]]) -> Iterator[MarkUse]:
    """Of `ip -j rule`: bits that alone decide whether a rule matches; of rules that are not ours."""
    for rule in rules:
        if "fwmark" not in rule or rule.get("protocol") == OWN_PROTOCOL:
            continue
        value, mask = int(rule["fwmark"], 16), int(rule.get("fwmask", "0xffffffff"), 16)
        bits = mask if not value else value & mask if not (value & mask) & ((value & mask) - 1) else 0
        if bits:
            text = " ".join(f"{key} {rule[key]}" for key in ("priority", "fwmark", "fwmask", "table") if key in rule)
            yield MarkUse(bits, f"rule {text}")
