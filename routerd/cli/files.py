"""What is wrong with files: check."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from routerd import codes
from routerd.cli.command import Command


def check(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import check_paths

    if arguments.dialect:
        return _check_dialect(arguments)
    findings = check_paths(arguments.files)
    errors = sum(finding.severity == "error" for finding in findings)
    if arguments.output == "json":
        print(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding)
        print(f"errors: {errors}, warnings: {len(findings) - errors}")
    return codes.REFUSED if errors else codes.OK


def _check_dialect(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import check_dialect
    from routerd.store.embedded.disk import read_text

    if len(arguments.files) != 1:
        print("routerd: check --dialect takes one file", file=sys.stderr)
        return codes.USAGE
    result = check_dialect(read_text(arguments.files[0]), arguments.dialect)
    if arguments.output == "json":
        print(json.dumps(result))
    else:
        print(f"{arguments.files[0]}: {result.get('error', 'ok')}")
    return codes.REFUSED if "error" in result else codes.OK


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="manifest, legacy ConfigMap, or directory of them"
    )
    parser.add_argument(
        "--dialect",
        choices=("cilium-1.10", "metallb-0.12"),
        help="read one bare BGP document, or a ConfigMap with one, exactly as that program does",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print (default: text)")


CHECK = Command(
    "check",
    "say what is wrong with files before they are applied",
    (
        "routerd check /etc/routerd",
        "routerd check bgp-config.yaml policies.yaml",
        "routerd check -o json configs/examples",
        "routerd check --dialect cilium-1.10 --output json config.yaml",
    ),
    check,
    detail="Every mistake of every object, a line each with file, line, key and reason; warnings are of what would be "
    "taken and perhaps is not meant. Exit code 0: no error. 1: something would be refused.",
    arguments=_check_arguments,
)
