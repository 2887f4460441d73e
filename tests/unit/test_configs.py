"""Every file under configs/ parses, and the examples fit together."""

from pathlib import Path

import pytest
import yaml

from routerd.cli.check import check_paths
from routerd.config import Config, load_config
from routerd.store.embedded.disk import is_manifest

CONFIGS = Path(__file__).parents[2] / "configs"
ORIGINAL = Path(__file__).parent / "data" / "examples"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_parses(path: Path) -> None:
    if path.is_dir():
        return
    if is_manifest(path.name):
        assert list(yaml.safe_load_all(path.read_text()))
    assert path.read_text().isprintable() or "\n" in path.read_text()


def test_commented_configuration_shows_the_defaults() -> None:
    assert load_config(CONFIGS / "routerd.yaml") == Config()


def test_examples_together_have_nothing_to_find() -> None:
    assert [str(finding) for finding in check_paths([CONFIGS / "examples", CONFIGS / "routerd.yaml"])] == []


@pytest.mark.parametrize("name", sorted(path.name for path in ORIGINAL.iterdir()))
def test_what_users_bring_is_there_as_it_is(name: str) -> None:
    assert (CONFIGS / "examples" / name).read_text() == (ORIGINAL / name).read_text()
    assert check_paths([ORIGINAL / name]) == []
