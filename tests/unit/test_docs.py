"""What the documents show works: every YAML block passes `routerd check`, every link leads to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from routerd.cli.check import check_texts

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL), 1)
]
GATEWAY = """\
apiVersion: v1
kind: Node
metadata: {name: a-gateway, labels: {routerd.io/egress-gateway: "", rack: a}}
status: {addresses: [{type: InternalIP, address: 10.0.0.254}]}
"""


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_passes_the_check(block: str) -> None:
    found = check_texts({"example.yaml": block, "gateway.yaml": GATEWAY})
    assert [str(finding) for finding in found] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []
