"""Stories of one moment: manifests in, the state of each node out, as sorted text. One file per story in `node/`.

A story is a text of sections, `-- manifests.yaml --` and others being files, `-- node NAME --` what that node should
have. With an `allocations.yaml` the operator's decision is given; without one it is made. To write what came out into
the stories, for reading it in the diff: UPDATE_STORIES=1 pytest tests/stories/test_node_stories.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from routerd.agent.settings import settings_of
from routerd.cli.offline import snapshot_of, state_of
from routerd.config import Config, StoreConfig
from routerd.daemon.processes import file_store
from routerd.model import Snapshot
from routerd.node.desired import Settings
from routerd.tell.render import refusal_lines, state_lines

STORIES = sorted(Path(__file__).with_name("node").glob("*.txt"))
_SECTION = re.compile(r"^-- (.+) --\n", re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """Title -> text; what comes before the first title is the story's own words."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def written(config: Config, story: dict[str, str]) -> Snapshot:
    """The story's files, read as routerd reads them."""
    for name, text in story.items():
        if not name.startswith("node "):
            (config.store.manifests / name).write_text(text)
    if "allocations.yaml" in story:
        return file_store(config).load()
    return snapshot_of(config.store.manifests, config)


def told(snapshot: Snapshot, config: Config, node: str) -> str:
    settings = Settings(node, settings_of(config).rules)
    state = state_of(snapshot, settings, config)
    return "\n".join([*state_lines(state), *refusal_lines(state.refusals)]) + "\n"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    story = sections(text)
    store = StoreConfig(manifests=tmp_path, allocations=tmp_path / "allocations.yaml", node_reports=())
    config = Config(node_name="nobody", store=store)
    snapshot = written(config, story)
    nodes = {title: title.removeprefix("node ") for title in story if title.startswith("node ")}
    found = {title: told(snapshot, config, node).replace(f"{tmp_path}/", "") for title, node in nodes.items()}
    if os.environ.get("UPDATE_STORIES"):
        for title, lines in found.items():
            text = text.replace(f"-- {title} --\n{story[title]}", f"-- {title} --\n{lines}")
        path.write_text(text)
    assert found == {title: expected for title, expected in story.items() if title.startswith("node ")}


def test_there_are_stories() -> None:
    assert len(STORIES) >= 4
