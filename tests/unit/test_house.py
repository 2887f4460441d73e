"""The house keeps its order: contracts name every package, and no wing becomes a corridor."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINTER = PROJECT["tool"]["importlinter"]
PACKAGES = sorted(
    found.parent
    for room in LINTER["root_packages"]
    for found in (ROOT / room).rglob("__init__.py")
)  # fmt: skip


def dotted(package: Path) -> str:
    return ".".join(package.relative_to(ROOT).parts)


def modules(package: Path) -> list[str]:
    there = (path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    return sorted(path.stem for path in there if path.stem != "__init__")


def test_every_package_of_the_wheel_is_under_the_contracts() -> None:
    shipped = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(name.removesuffix("*") for name in shipped) == sorted(LINTER["root_packages"])
    assert sorted(PROJECT["tool"]["mypy"]["packages"]) == sorted([*LINTER["root_packages"], "tests"])


@pytest.mark.parametrize("package", PACKAGES, ids=dotted)
def test_a_new_module_needs_a_place_in_a_contract(package: Path) -> None:
    exhaustive = {name for each in LINTER["contracts"] if each.get("exhaustive") for name in each["containers"]}
    assert len(modules(package)) < 2 or dotted(package) in exhaustive


@pytest.mark.parametrize("package", PACKAGES, ids=dotted)
def test_no_wing_becomes_a_corridor(package: Path) -> None:
    limit = 22 if dotted(package) == "routerd" else 16
    entries = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(entries) <= limit


TEST_MODULE = re.compile(r"^\s*(?:from|import) (tests(?:\.\w+)*\.(?:test_\w+|conftest))\b", re.MULTILINE)


def test_no_test_module_is_imported_by_another() -> None:
    """What several tests use stands in `tests/models`, or in a module that is no test; also in scripts as text."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {str(each.relative_to(ROOT)): TEST_MODULE.findall(each.read_text()) for each in files}
    assert len(files) > 100
    assert {name: modules for name, modules in found.items() if modules} == {}
