"""What is wrong with files, and what they are as ours: check, convert."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from routerd import codes
from routerd.cli.command import DEFAULT_CONFIG, Command


def check(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import check_paths

    if arguments.dialect:
        return _check_dialect(arguments)
    named = [arguments.config] if arguments.config not in (None, DEFAULT_CONFIG) else []
    findings = check_paths([*named, *arguments.files])
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


def convert(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import texts_of
    from routerd.formats.convert import convert as converted

    texts, findings = texts_of(arguments.files)
    found = converted(texts)
    sys.stdout.write(found.text)
    lines = [*map(str, findings), *(f"warning: {each}" for each in found.notes), *(f"error: {e}" for e in found.errors)]
    for line in lines:
        print(" ".join(line.split()), file=sys.stderr)
    return codes.REFUSED if found.errors or any(each.severity == "error" for each in findings) else codes.OK


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="manifest, or directory of manifests")


CONVERT = Command(
    "convert",
    "print other makers' pools, policies and BGP ConfigMaps as ours",
    ("routerd convert cilium-policies.yaml >egress-policies.yaml", "routerd convert /etc/routerd/manifests"),
    convert,
    detail="Services, pods and what is ours already stay as they are and are not printed. What has no meaning here is "
    "told as a comment and on stderr, with file, line and key. Exit code 0: all is printed. 1: an object is not.",
    arguments=_convert_arguments,
)
