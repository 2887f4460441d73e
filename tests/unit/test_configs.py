"""Every file under configs/ parses, and the examples fit together."""

from pathlib import Path

import pytest

from routerd.cli.check import check_paths
from routerd.config import Config, load_config
from routerd.errors import InputError
from routerd.formats.compose import documents
from routerd.formats.document import Value
from routerd.store.embedded.disk import is_manifest

CONFIGS = Path(__file__).parents[2] / "configs"
ORIGINAL = Path(__file__).parent / "data" / "examples"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_parses(path: Path) -> None:
    if path.is_dir():
        return
    if is_manifest(path.name):
        values = documents(path.read_text())
        assert values
        for value in values:
            refuse_repeated_keys(value)
    assert path.read_text().isprintable() or "\n" in path.read_text()


def refuse_repeated_keys(value: Value) -> None:
    """Most YAML libraries take the last of them; an API server that decodes strictly takes none."""
    if value.is_mapping:
        for inner in value.section.entries.values():
            refuse_repeated_keys(inner)
    elif value.is_list:
        for inner in value.items():
            refuse_repeated_keys(inner)


def test_a_repeated_key_would_be_found_in_any_depth() -> None:
    (value,) = documents("a: [{b: 1, c: {d: 1, d: 2}}]")
    with pytest.raises(InputError, match='repeated key "d"'):
        refuse_repeated_keys(value)


def test_commented_configuration_shows_the_defaults() -> None:
    assert load_config(CONFIGS / "routerd.yaml") == Config()


def test_examples_together_have_nothing_to_find() -> None:
    assert [str(finding) for finding in check_paths([CONFIGS / "examples", CONFIGS / "routerd.yaml"])] == []


@pytest.mark.parametrize("name", sorted(path.name for path in ORIGINAL.iterdir()))
def test_what_users_bring_is_there_as_it_is(name: str) -> None:
    assert (CONFIGS / "examples" / name).read_text() == (ORIGINAL / name).read_text()
    assert check_paths([ORIGINAL / name]) == []
