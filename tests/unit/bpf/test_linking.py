"""Code in which maps and callbacks are numbers becomes a program; what is asked of bcc's output."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from bpf import bcc_compile, bcc_loader, linking
from bpf.loader import LoadError

EXIT = bytes.fromhex("9500000000000000")


def load_64(kind: int, number: int) -> bytes:
    """r1 = a number of 64 bits, marked as `kind`."""
    return bytes([0x18, kind << 4 | 1, 0, 0]) + struct.pack("<i", number) + bytes(8)


def immediate(code: bytes, instruction: int) -> int:
    value: int = struct.unpack_from("<i", code, instruction * 8 + 4)[0]
    return value


def test_maps_get_their_descriptors_and_plain_numbers_stay() -> None:
    code = load_64(linking.MAP, 1) + load_64(0, 1) + load_64(linking.MAP, 0) + EXIT
    linked = linking.link("main", code, [], {0: 30, 1: 31})
    assert [immediate(linked.code, n) for n in (0, 2, 4)] == [31, 1, 30]
    assert linked.functions == ((0, "main"),)


def test_callbacks_are_appended_once_and_pointed_at() -> None:
    code = load_64(linking.FUNCTION, 1) + load_64(linking.FUNCTION, 1) + EXIT
    linked = linking.link("main", code, [("unused", EXIT * 9), ("used", EXIT)], {})
    assert linked.functions == ((0, "main"), (5, "used"))
    assert linked.code == load_64(linking.FUNCTION, 4) + load_64(linking.FUNCTION, 2) + EXIT + EXIT


def test_callbacks_of_callbacks_come_too() -> None:
    inner, outer = load_64(linking.MAP, 0) + EXIT, load_64(linking.FUNCTION, 0) + EXIT
    linked = linking.link("main", load_64(linking.FUNCTION, 1) + EXIT, [("inner", inner), ("outer", outer)], {0: 9})
    assert linked.functions == ((0, "main"), (3, "outer"), (6, "inner"))
    assert (immediate(linked.code, 0), immediate(linked.code, 3), immediate(linked.code, 6)) == (2, 2, 9)


def test_an_offset_within_a_number_is_no_instruction() -> None:
    """The second half of a wide load may look like anything."""
    tricky = bytes([0x18, 0, 0, 0]) + bytes(4) + bytes([0, 0, 0, 0]) + struct.pack("<i", 0x1018) + EXIT
    assert linking.link("main", tricky, [], {}).code == tricky


def test_function_types_name_every_function() -> None:
    content = linking.function_types(["main", "used"])
    magic, _version, _flags, header, _offset, types, strings_at, strings = linking.BTF_HEADER.unpack_from(content)
    assert (magic, header + types + strings) == (0xEB9F, len(content))
    assert types == strings_at == 3 * 12  # one prototype, two functions
    assert content.endswith(b"\0main\0used\0")
    linked = linking.Linked(EXIT * 6, ((0, "main"), (5, "used")))
    assert struct.unpack("<4I", linking.function_rows(linked)) == (0, 2, 5, 3)


SOURCE = """
static long count_one(struct bpf_map *map, const void *key,
                      void *value, void *context)
{
	return 0;
}
int walk(void) { return bpf_for_each_map_elem(&flows, count_one, &round, 0); }
"""


def test_callbacks_are_found_with_their_parameters() -> None:
    found = bcc_compile.callbacks([SOURCE])
    assert found == {"count_one": "struct bpf_map *map, const void *key, void *value, void *context"}


def test_a_callback_without_a_definition_is_refused() -> None:
    with pytest.raises(bcc_compile.CompileError, match="lost"):
        bcc_compile.callbacks(["x = bpf_loop(3, lost, &y, 0);"])


def test_the_projects_sources_have_maps_and_callbacks() -> None:
    texts = [path.read_text() for path in bcc_compile.SOURCES.glob("*.[ch]")]
    assert bcc_compile.callbacks(texts).keys() >= {"try_port", "collect_flow"}
    assert {"flows", "scratch", "settings"} <= {name for text in texts for name in bcc_compile.MAP.findall(text)}


def test_without_the_package_the_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(bcc_compile.CompileError, match="python3-bpfcc"):
        bcc_compile.import_bcc(tmp_path)


def test_without_headers_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path / "named"))
    with pytest.raises(LoadError, match=r"named: .*linux-headers"):
        bcc_loader.check_headers(tmp_path, tmp_path / "none")
    monkeypatch.delenv("BCC_KERNEL_SOURCE")
    with pytest.raises(LoadError, match="BCC_KERNEL_SOURCE"):
        bcc_loader.check_headers(tmp_path, tmp_path / "none")


@pytest.mark.parametrize("part", ["build", "source"])
def test_installed_headers_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, part: str) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)
    headers = tmp_path / os.uname().release / part / "include" / "linux"
    headers.mkdir(parents=True)
    (headers / "kconfig.h").touch()
    bcc_loader.check_headers(tmp_path, tmp_path / "none")
