"""What systemd-networkd of this host is told about routes and rules of others: networkd.conf(5) and its drop-ins.

Where it runs and is told nothing, it takes away what it has not made when it restarts or a device changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

KEYS = ("ManageForeignRoutes", "ManageForeignRoutingPolicyRules")  # systemd 246 and 249; without them: yes
OFF = ("no", "false", "n", "f", "off", "0")
PLACES = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")  # a later one hides an earlier one


def lacking(root: Path = Path("/")) -> tuple[str, ...]:
    """Of KEYS, those that are not off; () where it does not run."""
    if not (root / "run/systemd/netif").is_dir():
        return ()
    told = dict(line for path in _files(root) for line in _settings(path))
    return tuple(key for key in KEYS if told.get(key, "yes").lower() not in OFF)


def _files(root: Path) -> Iterator[Path]:
    """In the order in which they count: the last word is the valid one."""
    whole = [root / place / "networkd.conf" for place in PLACES]
    yield from [path for path in whole if path.is_file()][-1:]
    parts = {path.name: path for place in PLACES for path in sorted((root / place / "networkd.conf.d").glob("*.conf"))}
    yield from (parts[name] for name in sorted(parts))


def _settings(path: Path) -> Iterator[tuple[str, str]]:
    section = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        text = line.strip()
        if text.startswith("["):
            section = text
        key, sign, value = text.partition("=")
        if sign and section == "[Network]" and not text.startswith(("#", ";")):
            yield key.strip(), value.strip()
