"""The speaker's process: checks ExaBGP, prepares its environment and configuration, and runs it in this process.

    python -m bgp.launcher RUN_DIR [--log FILE]   runs until SIGTERM; one per run directory
    … --check FILE                                loads a configuration as ExaBGP would, and says what is wrong with it

Files in the run directory: `speaker.pid` (locked while the speaker runs), `exabgp.conf` (mode 0600: it holds
passwords), `relay.sock` (served by the agent). The last valid configuration is adopted at the next start.
It must not know what is announced; that is the agent's business.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import json
import os
import pwd
import signal
import socket
import sys
from pathlib import Path
from typing import TextIO

from bgp import EXABGP, relay
from bgp.inside import patches

PID_FILE = "speaker.pid"

# No log below WARNING, no command-line pipes, no daemon, no socket that listens but those of peers (`listening.py`);
# `reactor.speed` as it is: a faster loop burns a core. `show adj-rib`, which is asked where the table is not ours,
# prints one JSON object per route.
_ENVIRONMENT = {
    "exabgp_log_level": "WARNING",
    "exabgp_log_destination": "stderr",
    "exabgp_api_ack": "true",
    "exabgp_api_cli": "false",
    "exabgp_api_respawn": "true",
    "exabgp_api_terminate": "false",
    "exabgp_api_encoder": "json",
    "exabgp_api_chunk": "50",
    "exabgp_api_show-routes-format": "v2",
    "exabgp_daemon_daemonize": "false",
    "exabgp_daemon_drop": "false",
    "exabgp_daemon_pid": "",
    "exabgp_reactor_speed": "1.0",
    "exabgp_tcp_attempts": "0",
    "exabgp_tcp_bind": "",
    "exabgp_tcp_delay": "0",
    "EXABGP_ENVFILE": "/dev/null",
}


class LauncherError(Exception):
    """The speaker cannot start; the message says who must do what."""


def main(argv: list[str]) -> int:
    """Exit status: 0 stopped or already running, 1 cannot start, 2 wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m bgp.launcher", description="Run ExaBGP for the agent of this node."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run_dir", metavar="RUN_DIR", nargs="?", type=Path, help="directory of its socket and files")
    what.add_argument("--check", metavar="FILE", type=Path, help="only say what is wrong with an ExaBGP configuration")
    parser.add_argument("--log", metavar="FILE", type=Path, help="log there, rotated; otherwise to standard error")
    asked = parser.parse_args(argv)
    if asked.check is not None:
        return _check(asked.check)
    try:
        return _run(asked.run_dir.resolve(), asked.log.resolve() if asked.log is not None else None)
    except (LauncherError, OSError) as error:
        print(f"speaker: error: {error}", file=sys.stderr)
        return 1


def _ends_at_sigterm() -> None:
    """Until ExaBGP has its own handlers. The first process of a container has no default action: it would be lost.

    Whoever became the launcher by exec held the signal back until here.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def exabgp_version() -> str:
    """Raises LauncherError unless exactly the supported release can be imported."""
    try:
        version = importlib.metadata.version("exabgp")
    except importlib.metadata.PackageNotFoundError:
        raise LauncherError(
            f"ExaBGP is not installed for {sys.executable}: install routerd with its dependencies (exabgp=={EXABGP})"
        ) from None
    if version != EXABGP:
        raise LauncherError(
            f"ExaBGP {version} is installed, but this routerd drives exactly {EXABGP}: "
            f"install exabgp=={EXABGP} for {sys.executable}"
        )
    return version


def name_host() -> None:
    """Tells ExaBGP the host's name, before its other modules are imported.

    One of them asks the resolver at import, and where none answers that takes 10 s of a restart.
    """
    from exabgp.util import dns

    host, _, domain = socket.gethostname().partition(".")
    vars(dns).update({"__host_name": host or "localhost", "__domain_name": domain or "localdomain"})


def set_environment(run_dir: Path, log: Path | None = None) -> None:
    """For ExaBGP (read at its first import), and for the relay and its checks, which inherit it."""
    for name in [name for name in os.environ if name.lower().startswith(("exabgp_", "exabgp."))]:
        del os.environ[name]  # a host's own ExaBGP settings are not ours
    os.environ.update({**_ENVIRONMENT, "exabgp_daemon_user": _user()})
    if log is not None:
        os.environ["exabgp_log_destination"] = str(log)  # noqa: SIM112 - ExaBGP's own spelling
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    os.environ[relay.RUN_VARIABLE] = str(run_dir)
    os.environ[relay.CHECK_VARIABLE] = json.dumps([sys.executable, "-m", "bgp.launcher", "--check"])


def _user() -> str:
    """A user that exists: ExaBGP insists on one, though nothing is dropped."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return next(iter(pwd.getpwall())).pw_name


def _check(file: Path) -> int:
    error = configuration_error(file)
    if error:
        print(relay.without_passwords(error), file=sys.stderr)
    return 1 if error else 0


def configuration_error(file: Path) -> str:
    """What ExaBGP has against a configuration file, "" for nothing. The environment must be set."""
    name_host()
    from exabgp.configuration.configuration import Configuration
    from exabgp.environment import getenv
    from exabgp.logger import log

    log.init(getenv())
    patches.mend_parser()
    configuration = Configuration([str(file)])
    return "" if configuration.reload() is True else str(configuration.error).strip() or "no configuration"


def lock(run_dir: Path) -> TextIO | None:
    """The locked pid file with our pid in it, or None when another speaker has the directory. Keep the object."""
    file = (run_dir / PID_FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a record lock: others can ask who holds it
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _run(run_dir: Path, log: Path | None) -> int:
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = lock(run_dir)
    if held is None:
        print(f"speaker: already running in {run_dir}", file=sys.stderr)
        return 0
    with held:
        version = exabgp_version()
        set_environment(run_dir, log)
        file = run_dir / relay.CONFIGURATION
        prepare_configuration(file)
        return _reactor(file, version)


def prepare_configuration(file: Path) -> None:
    """Leaves a valid configuration at `file`: the peers of the last one, or no peers."""
    process = relay.configuration_text(sys.executable, str(Path(relay.__file__).resolve()), "")
    last = file.read_text(encoding="utf-8") if file.exists() else ""
    peers = last[last.index("# peer ") :] if "# peer " in last else ""
    relay.write_private(file, process + peers)
    error = configuration_error(file)
    if error and peers:
        reason = relay.without_passwords(error)
        print(f"speaker: warning: {file} is not valid, starting with no peers: {reason}", file=sys.stderr, flush=True)
        relay.write_private(file, process)


def _reactor(file: Path, version: str) -> int:
    """ExaBGP itself, as its own `server` command runs it."""
    name_host()
    from exabgp.bgp.message.update.attribute import Attribute
    from exabgp.configuration.configuration import Configuration
    from exabgp.environment import getenv
    from exabgp.reactor.loop import Reactor

    Attribute.caching = getenv().cache.attributes
    patches.install(file, version)
    return int(Reactor(Configuration([str(file)])).run())


if __name__ == "__main__":
    _ends_at_sigterm()
    sys.exit(main(sys.argv[1:]))
