"""The wheel, made from the sdist and installed beside the locked runtime packages alone, works outside the checkout."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from tests.netns.lab.mounts import BPFFS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
CHECK = Path(__file__).with_name("packet_check.py")


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    words = [str(word) for word in command]
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environment}
    done = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT)
    return target


def locked_distributions() -> Iterator[Distribution]:
    """What requirements/runtime.txt names, as it is installed for this test run."""
    lock = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    for name, version in re.findall(r"^([\w.\-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE):
        found = distribution(name)
        assert found.version == version, f"{name} is {found.version}, the lock says {version}: make setup"
        yield found


def link_files(found: Distribution, target: Path) -> None:
    """Hard links: the same files without their cost."""
    for entry in found.files or ():
        source = Path(str(entry.locate()))
        if ".." in entry.parts or "__pycache__" in entry.parts or not source.exists():
            continue
        copy = target / str(entry)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, copy)
        except OSError:  # another file system
            shutil.copy2(source, copy)


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of a virtual environment with the wheel and the runtime packages."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    site = next((venv / "lib").glob("python3*/site-packages"))
    for found in locked_distributions():
        link_files(found, site)
    (wheel,) = built.glob("*.whl")
    uv = Path(sys.executable).with_name("uv")
    run(uv, "pip", "install", "-q", "--offline", "--no-cache", "--python", venv / "bin" / "python", "--no-deps", wheel)
    return venv / "bin"


def test_the_sdist_carries_sources_and_no_object(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    names = run("tar", "-tzf", sdist)
    assert "/bpf/egress.bpf.c" in names
    assert "/cni/routerd-cni.c\n" in names
    assert "/tools/compile_c.py" in names
    assert ".bpf.o" not in names
    assert "/cni/routerd-cni\n" not in names


def test_the_wheel_carries_every_module(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if name.endswith(".py")}
    assert carried == {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    assert "0.1.0" in run(installed / "routerd", "version", cwd=tmp_path)


def test_the_wheel_is_of_this_machine_and_its_plugin_runs(built: Path, installed: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.stem.endswith(f"-py3-none-linux_{platform.machine()}")
    (program,) = (installed.parent / "lib").glob("python3*/site-packages/cni/routerd-cni")
    assert '"supportedVersions"' in run(program, cwd=tmp_path, CNI_COMMAND="VERSION")


@pytest.mark.usefixtures("bpffs")
@pytest.mark.parametrize("loader", ["libbpf", "bcc"])
def test_the_installed_datapath_carries_packets(installed: Path, tmp_path: Path, loader: str) -> None:
    """bcc sees the system's package alone, and the headers that the package carries instead of libbpf's."""
    pins = BPFFS / "wheel"
    headers = ROOT / ".lab" / "cache" / "kernel" / "headers"
    text = run(installed / "python", CHECK, pins, loader, cwd=tmp_path, BCC_KERNEL_SOURCE=str(headers))
    found = json.loads(text)
    assert Path(found["room"]).is_relative_to(installed.parent)
    assert (found["loaded"], found["adopted"]) == (True, True)
    assert found["verdicts"] == [-1, 7, 7, 2]  # left alone, redirected in both families, without a route here
    assert (found["sources"], found["checksums"]) == (["198.51.100.7", "2001:db8:e::7"], [0, 0])
    assert found["counters"] == {"encapsulated": 2, "no_route": 1}
    assert not pins.exists()


@pytest.mark.parametrize(
    ("programs", "headers", "message"),
    [
        ((), True, "clang is missing"),
        (("clang",), True, "llvm-strip is missing"),
        (("clang", "llvm-strip"), False, "a header is missing"),
    ],
)
def test_a_build_without_its_tools_says_which(
    tmp_path: Path, programs: tuple[str, ...], headers: bool, message: str
) -> None:
    for name in ("bpf", "cni", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.o", "__pycache__"))
    if not headers:
        (tmp_path / "bpf" / "parse.h").write_text("#include <bpf/not_installed.h>\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for program in programs:
        (tools / program).symlink_to(shutil.which(program) or "/nonexistent")
    command = [sys.executable, str(tmp_path / "tools" / "compile_c.py")]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "apt-get install clang llvm libbpf-dev" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "bpf" / "egress.bpf.o").exists()
