"""What the documents show works: every YAML block passes `routerd check`, every link leads to a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bpf.layout import read_reasons
from egress.nftables.frame import COUNTERS
from egress.status import GUARD
from routerd.cli.check import check_texts
from routerd.cli.main import main

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
OVERRIDDEN = """apiVersion: v1
kind: Node
metadata: {name: gw1}
status: {addresses: [{type: InternalIP, address: 10.0.0.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: b, labels: {rack: b}}
status: {addresses: [{type: InternalIP, address: 10.1.0.253}]}
"""


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_passes_the_check(block: str) -> None:
    others = {"overridden.yaml": OVERRIDDEN} if "node-overrides:" in block else {}
    found = check_texts({"example.yaml": block, "gateway.yaml": GATEWAY, **others})
    assert [str(finding) for finding in found] == []


def first_steps() -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"## First steps.*?```yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("kind", "columns", "lines"),
    [
        ("paths", "prefix owners", ["10.168.60.100/32 egress/1", "192.0.2.10/32 svc/default/web"]),
        ("egress-ips", "egress_ip policies active_gateways", ["10.168.60.100 EgressPolicy/billing gw1"]),
        ("policies", "policy gateways pods_here reason", ["EgressPolicy/billing gw1 1 "]),
    ],
)
def test_the_first_steps_of_the_readme_work_as_they_are(
    kind: str, columns: str, lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole configuration: nothing is wrong with it, both addresses are announced, and the pod is selected."""
    (tmp_path / "cluster.yaml").write_text(first_steps())
    assert check_texts({"cluster.yaml": first_steps()}) == []
    assert main(["show", kind, "-o", "json", "--manifests", str(tmp_path), "--node", "gw1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [" ".join(str(row[column]) for column in columns.split()) for row in rows] == lines


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []


def test_every_reason_of_the_datapath_is_told_with_its_meaning() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    section = text.split("## Reasons of the datapath\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))
    guard = {f"{GUARD}{name}" for name in COUNTERS}
    assert {name for name in rows if name.startswith(GUARD)} == guard
    programs = {name: meaning for name, meaning in rows.items() if name not in guard}
    assert programs == {reason.name: reason.text for reason in read_reasons().values()}


def headings(path: Path) -> set[str]:
    """As links name them on GitHub: lower case, blanks as hyphens, no punctuation."""
    found = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_documents_name_headings_that_are_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text())
    inner = [(path.parent / file if file else path, name) for file, name in links if "://" not in file]
    assert [(file.name, name) for file, name in inner if name not in headings(file)] == []


def test_the_glossary_is_in_order_and_of_words_that_are_used() -> None:
    words = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[2:]
    assert words == sorted(words, key=str.lower)
    others = " ".join(path.read_text() for path in DOCUMENTS if path.name != "glossary.md").lower()
    unused = [word for entry in words for word in entry.split(", ") if word.lower() not in others]
    assert unused == []


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in DOCUMENTS[2:] if f"](docs/{path.name}" not in text] == []
