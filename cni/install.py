"""Puts the plugins' program, under both its names, and its place in the chain onto a host, and takes them away again.

Runtimes take the first configuration of their directory, by name; so do we. Every file is replaced at once, as a
runtime may read at any moment. What is there already costs nothing.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cni.conflist import NotChainable, chained, gives_addresses, is_chained, parsed, rendered, unchained, whole
from cni.wire import CHAINED, IPAM

PROGRAM = Path(__file__).with_name(CHAINED)
CONF_DIR, BIN_DIR = Path("/etc/cni/net.d"), Path("/opt/cni/bin")
RESULTS = Path("/var/lib/cni/results")  # libcni's memory of pods that live; CRI-O ends them by the list noted there
WHOLE = "10-routerd.conflist"
KEPT = ".routerd"  # behind the name of a configuration of one plugin that became a list: no runtime reads it


def install(entry: Mapping[str, Any], conf_dir: Path = CONF_DIR, bin_dir: Path = BIN_DIR) -> list[str]:
    """What was done, a line each. Raises NotChainable, and OSError. The program comes before anybody is led to it."""
    first = next(_configurations(conf_dir), None)
    if first is None:
        raise NotChainable(f"no network configuration in {conf_dir} yet: install it once the CNI is there")
    conflist = first.with_suffix(".conflist")
    try:
        text = first.read_text(encoding="utf-8")
        wanted = chained(text, entry)
        if first != conflist and conflist.exists() and parsed(conflist.read_text(encoding="utf-8")) != parsed(wanted):
            raise NotChainable(f"{conflist} is beside it and no runtime reads it: remove one of the two")
    except UnicodeDecodeError as error:
        raise NotChainable(f"{first}: it is no UTF-8") from error
    except NotChainable as error:
        raise NotChainable(f"{first}: {error}") from error
    done = [*_install_programs(bin_dir)]
    if first != conflist or wanted != text:
        _replace(conflist, wanted.encode(), first.stat().st_mode & 0o777)
        done.append(f"chained {CHAINED} in {conflist}")
    if first != conflist:
        first.rename(f"{first}{KEPT}")  # until now it came first, as its name is shorter
        done.append(f"kept {first} as {first}{KEPT}")
    return done


def install_whole(
    ipam: Mapping[str, Any], entry: Mapping[str, Any], conf_dir: Path = CONF_DIR, bin_dir: Path = BIN_DIR
) -> list[str]:
    """As `install`, where there is no CNI: a configuration of our own, once the agent has an address for the next pod.

    A node is ready as soon as there is a configuration, and pods come then.
    """
    target, text = conf_dir / WHOLE, rendered(whole(ipam, entry))
    first = min((target, *_configurations(conf_dir)))
    if first != target:
        raise NotChainable(f"{first} comes first there: remove it, or run without --whole to be chained in it")
    done = [*_install_programs(bin_dir)]
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") == text:
        return done
    if not target.exists() and (reason := _status(bin_dir / IPAM, ipam)):
        raise NotChainable(reason)
    conf_dir.mkdir(parents=True, exist_ok=True)
    _replace(target, text.encode(), 0o644)
    return [*done, f"wrote {target}"]


def _status(program: Path, ipam: Mapping[str, Any]) -> str:
    """Why the next pod would get no address, one line; "" = it would. Asked as a runtime asks (CNI 1.1, STATUS)."""
    network = {"cniVersion": "1.1.0", "name": "pods", "type": "ptp", "ipam": {"type": IPAM, **ipam}}
    done = subprocess.run(
        [program], input=json.dumps(network), env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(program.parent)},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    if not done.returncode:
        return ""
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(done.stdout).get("msg") or done.stdout)
    return done.stdout or f"{program} ended with {done.returncode}"


def _install_programs(bin_dir: Path) -> Iterator[str]:
    program = PROGRAM.read_bytes()
    for target in (bin_dir / CHAINED, bin_dir / IPAM):
        if not target.exists() or target.read_bytes() != program:
            bin_dir.mkdir(parents=True, exist_ok=True)
            _replace(target, program, 0o755)
            yield f"installed {target}"


def uninstall(conf_dir: Path = CONF_DIR, bin_dir: Path = BIN_DIR, results: Path = RESULTS) -> list[str]:
    """What was done, a line each. Raises OSError. The program goes last, and stays while a runtime will call it."""
    done = []
    for path in _configurations(conf_dir):
        with suppress(NotChainable, UnicodeDecodeError):
            network = parsed(path.read_text(encoding="utf-8"))
            if is_chained(network):
                done += _unchain(path, unchained(network))
    names_ipam = any(gives_addresses(network) for network in _readable(_configurations(conf_dir)))
    kept = f"kept {bin_dir / IPAM}: a network configuration in {conf_dir} names it as its ipam"
    done += [kept] if names_ipam else _remove(bin_dir / IPAM, results, gives_addresses)
    return [*done, *_remove(bin_dir / CHAINED, results, is_chained)]


def _remove(program: Path, results: Path, names: Callable[[dict[str, Any]], bool]) -> list[str]:
    if not program.exists():
        return []
    if _has_pods(results, names):
        return [f"kept {program}: a runtime may end the pods that it made by it; again when they are gone"]
    program.unlink()
    return [f"removed {program}"]


def _unchain(path: Path, without: dict[str, Any]) -> list[str]:
    for kept in (Path(f"{path.with_suffix(suffix)}{KEPT}") for suffix in (".conf", ".json")):
        if kept.exists() and parsed(kept.read_text(encoding="utf-8")) == without:
            before = kept.with_suffix("")
            kept.rename(before)  # it comes first again
            path.unlink()
            return [f"restored {before}"]
    _replace(path, rendered(without).encode(), path.stat().st_mode & 0o777)
    return [f"took {CHAINED} out of {path}"]


def main_plugins(conf_dir: Path = CONF_DIR) -> list[str]:
    """The first plugin of each configuration that can be read, in the order of runtimes. Raises OSError."""
    return [
        str(network["plugins"][0]["type"]) for network in _readable(_configurations(conf_dir)) if network["plugins"]
    ]


def _configurations(directory: Path) -> Iterator[Path]:
    """In the order of runtimes, which pass over directories."""
    if directory.is_dir():
        named = (path for path in sorted(directory.iterdir()) if path.suffix in (".conf", ".conflist", ".json"))
        yield from (path for path in named if not path.is_dir())


def _readable(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with suppress(NotChainable, UnicodeDecodeError, OSError):
            yield parsed(path.read_text(encoding="utf-8"))


def _has_pods(results: Path, names: Callable[[dict[str, Any]], bool]) -> bool:
    return results.is_dir() and any(_names(path, names) for path in results.iterdir())


def _names(path: Path, names: Callable[[dict[str, Any]], bool]) -> bool:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, NotChainable):
        config = base64.b64decode(json.loads(path.read_text(encoding="utf-8"))["config"])
        return names(parsed(config.decode()))
    return False


def _replace(path: Path, content: bytes, mode: int) -> None:
    """At once, and whole after a crash: the name of what is not finished is read by no runtime."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
