"""Reads what others have on the node: traces of CNIs, and rules that use packets' marks. Decides nothing.

Legacy iptables can only be read with CAP_NET_RAW and its own program. Where it has tables that cannot be read, not all
is known (`Traces.is_whole`).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from egress.host import marks
from egress.host.enforcement import MarkUse, Surroundings, Traces, surroundings

CNI_CONFIG = Path("/etc/cni/net.d")
DEVICES = Path("/sys/class/net")
LEGACY = (
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
)
_NFT_NAMES = re.compile(r"^(?:table \w+ (\S+)|\s+chain (\S+)) \{", re.MULTILINE)
_IPTABLES_NAMES = re.compile(r"^:(\S+)", re.MULTILINE)


def survey(devices: frozenset[str], config: Path = CNI_CONFIG) -> Surroundings:
    """`devices`: names of those that are there."""
    ruleset = _output("nft", "-s", "-n", "list", "ruleset")
    saved = [_output(program) if _has_tables(path) else "" for path, program in LEGACY]
    legacy = [text for text in saved if text]
    names = {table or chain for table, chain in _NFT_NAMES.findall(ruleset or "")}
    names.update(name for text in legacy for name in _IPTABLES_NAMES.findall(text))
    traces = Traces(devices, frozenset(names), frozenset(plugins(config)), ruleset is not None and None not in saved)
    return surroundings(traces, _mark_uses(ruleset or "", legacy))


def _mark_uses(ruleset: str, legacy: list[str]) -> Iterator[MarkUse]:
    yield from marks.of_nft(ruleset)
    for text in legacy:
        yield from marks.of_iptables(text)
    for family in ("-4", "-6"):
        yield from marks.of_rules(json.loads(_output("ip", "-j", family, "rule") or "[]"))


def readable_traces(config: Path = CNI_CONFIG) -> Traces:
    """What anybody may read."""
    devices = frozenset(path.name for path in DEVICES.iterdir()) if DEVICES.is_dir() else frozenset[str]()
    return Traces(devices, plugins=frozenset(plugins(config)))


def plugins(config: Path) -> Iterator[str]:
    """Types of plugins in the network configuration that runtimes take: the first one. A damaged one says nothing."""
    with suppress(OSError, ValueError, RecursionError):
        files = sorted(path for path in config.iterdir() if path.suffix in (".conf", ".conflist", ".json"))
        document = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
        listed = document.get("plugins", [document]) if isinstance(document, dict) else []
        named = listed if isinstance(listed, list) else []
        yield from (str(each["type"]) for each in named if isinstance(each, dict) and "type" in each)


def _has_tables(path: str) -> bool:
    with suppress(OSError):
        return bool(Path(path).read_text(encoding="ascii").strip())
    return False


def _output(*command: str) -> str | None:
    """None = it is not there, or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
