"""Who takes routes away: what networkd is told, by its own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from eni.networkd import KEYS, lacking
from routerd.cli.check import check_texts

CLOUD = "apiVersion: routerd.io/v1alpha1\nkind: Config\ncloud: {provider: aws, cluster: c}\n"
BOTH = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=false\n"


MAIN, VENDOR = "etc__systemd__networkd_conf", "usr__lib__systemd__networkd_conf_d__5_conf"


def host(root: Path, **files: str) -> Path:
    (root / "run/systemd/netif").mkdir(parents=True)
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_where_it_does_not_run_nothing_is_asked(tmp_path: Path) -> None:
    assert lacking(tmp_path) == ()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, KEYS),
        ({MAIN: BOTH}, ()),
        ({MAIN: "[Network]\n#ManageForeignRoutes=no\n"}, KEYS),
        ({MAIN: "[DHCPv4]\nManageForeignRoutes=no\n"}, KEYS),
        ({MAIN: "[Network]\nManageForeignRoutes = Off\n"}, KEYS[1:]),
        ({MAIN: BOTH, VENDOR: "[Network]\nManageForeignRoutes=yes"}, KEYS[:1]),
        ({VENDOR: "[Network]\n", "etc__systemd__networkd_conf_d__5_conf": BOTH}, ()),
    ],
)  # fmt: skip
def test_the_last_word_counts(tmp_path: Path, files: dict[str, str], expected: tuple[str, ...]) -> None:
    assert lacking(host(tmp_path, **files)) == expected


def test_check_asks_for_it_where_a_cloud_gives_addresses() -> None:
    (found,) = check_texts({"c.yaml": CLOUD}, networkd=KEYS)
    assert (found.severity, found.file) == ("warning", "c.yaml")
    assert "ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no" in found.message
    assert check_texts({"c.yaml": CLOUD}) == []
    assert check_texts({"c.yaml": CLOUD.splitlines()[0] + "\nkind: Config\n"}, networkd=KEYS) == []
