"""What a speaker does at SIGTERM: a restart of its own keeps its paths, a shutdown of its host ends them.

Graceful restart (RFC 4724) has peers keep the paths of a session that closes without a word, for up to two minutes.
That is right when ExaBGP comes back, and wrong when the host does not. A NOTIFICATION ends it (RFC 4724, section 4.2;
unless both have sent the N bit of RFC 8538, which we do not), so the peers withdraw everything at once. A host goes
down when

    RUN_DIR/shutdown    is there: whoever stops the host has made it. The directory is in /run, so it is gone at boot
    systemd             says that it is stopping: shutdown.target is active or queued, for every reboot, halt and kexec

Runs inside ExaBGP's process; standard library and ExaBGP only. What is announced it does not know.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "shutdown"  # a file in the run directory
CEASE, TOO_MANY_PREFIXES, ADMINISTRATIVE_SHUTDOWN = 6, 1, 2  # RFC 4486, section 4
ASK_TIMEOUT = 2.0  # seconds for systemd's answer
SAY_TIMEOUT = 2.0  # seconds for the peers to take the NOTIFICATION
LINGER = 1.0  # seconds that this process lives on: the host's network does, too, and peers move traffic away meanwhile


def host_goes_down(run_dir: Path) -> str:
    """What says that this host is going down; "" = nothing does. Raises nothing: no answer is no shutdown."""
    marker = run_dir / MARKER
    if marker.exists():
        return f"{marker} is there"
    return "systemd is stopping the host" if _systemd_state() == "stopping" else ""


def _systemd_state() -> str:
    """One word of systemctl(1), is-system-running; "" where there is no systemd, or it does not answer."""
    command = ["systemctl", "is-system-running"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT, check=False).stdout.strip()
    return ""


def farewell(stock: Callable[..., Any], run_dir: Path) -> Callable[..., Any]:
    """ExaBGP's own shutdown, with a NOTIFICATION to every peer before it where the host goes down."""

    def shutdown(reactor: Any) -> None:
        reason = host_goes_down(run_dir)
        if reason:
            print(f"speaker: {reason}: ending graceful restart", file=sys.stderr, flush=True)
            say_goodbye([peer for peer in reactor._peers.values() if peer.established()])
            time.sleep(LINGER)
        stock(reactor)

    return shutdown


def say_goodbye(peers: list[Any]) -> None:
    """Ends established sessions with Cease/Administrative Shutdown. A peer that takes nothing is not waited for."""
    from exabgp.reactor.peer import ACTION

    for peer in peers:
        peer.neighbor["capability"]["graceful-restart"] = False  # else stock ExaBGP closes without a word
        peer.teardown(ADMINISTRATIVE_SHUTDOWN, restart=False)
    deadline = time.monotonic() + SAY_TIMEOUT
    while peers and time.monotonic() < deadline:
        peers = [peer for peer in peers if peer.run() != ACTION.CLOSE]
