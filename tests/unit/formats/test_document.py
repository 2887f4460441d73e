"""Documents with places: typing on demand, and errors that name file, line, column, key, found and expected."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.compose import documents, first_document, inner_source, quoted, value_of
from routerd.formats.document import Source, Value


def load(text: str) -> Value:
    return documents(text, Source("f.yaml"))[0]


def read(text: str, reader: Callable[[Value], object]) -> object:
    return reader(load(f"a:\n  b: {text}\n").section.require("a").section.entries["b"])


def test_scalars_stay_text() -> None:
    section = load("{community: 64512:1, password: 0123, version: 1e3, answer: yes}").section
    assert {key: value.text for key, value in section.entries.items()} == {
        "community": "64512:1",
        "password": "0123",
        "version": "1e3",
        "answer": "yes",
    }


@pytest.mark.parametrize(
    ("text", "reader", "message"),
    [
        ("[1]", Value.string, "found a list, expected a string"),
        ("~", Value.items, "found nothing, expected a list"),
        ("{}", Value.items, "found a mapping, expected a list"),
        ("x", lambda value: value.section, 'found "x", expected a mapping'),
        ("'5'", lambda value: value.integer(1, 9), 'found the string "5", expected an integer from 1 to 9'),
        ("10", lambda value: value.integer(1, 9), 'found "10", expected an integer from 1 to 9'),
        ("0x5", lambda value: value.integer(1, 9), 'found "0x5", expected an integer from 1 to 9'),
        ("yes", Value.boolean, 'found "yes", expected true or false'),
        ("'true'", Value.boolean, 'found the string "true", expected true or false'),
        ("TCPP", lambda value: value.choice("TCP", "UDP"), 'found "TCPP", expected TCP or UDP; did you mean "TCP"?'),
        ("tor1", Value.address, 'found "tor1", expected an IP address'),
        ("fe80::1%eth0", Value.address, 'found "fe80::1%eth0", expected an IP address'),
        ("192.0.2.0/33", Value.network, 'found "192.0.2.0/33", expected a CIDR such as 192.0.2.0/24'),
        ("192.0.2.0/255.255.255.0", Value.network,
         'found "192.0.2.0/255.255.255.0", expected a CIDR such as 192.0.2.0/24'),
        ("192.0.2.7/24", Value.network, 'found "192.0.2.7/24", expected a CIDR without host bits: 192.0.2.0/24'),
    ],
)  # fmt: skip
def test_wrong_types_are_named(text: str, reader: Callable[[Value], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text, reader)
    assert str(caught.value) == f"f.yaml:2:6: a.b: {message}"


def test_host_bits_can_be_cleared() -> None:
    assert str(read("192.0.2.7/24", lambda value: value.network(host_bits=True))) == "192.0.2.0/24"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\t- b\n",
         "f.yaml:2:1: not YAML: found character that cannot start any token (a tab? indent with spaces)"),
        ("a: [1\nb: 2\n", "f.yaml:2:2: not YAML: did not find expected ',' or ']'"),
        ("a: *b\n", "f.yaml:1:4: not YAML: unknown anchor 'b' referenced"),
        ("a: 1\na: 2\n", 'f.yaml:2:1: a: repeated key "a", first on line 1'),
        ("? [a]\n: 1\n", "f.yaml:1:3: found a key that is a list or a mapping, expected a string"),
        ("a: &x [*x]\n", "f.yaml:1:8: not YAML: an alias refers to a value that holds it"),
        ("a: \0\n", "f.yaml:1: not YAML: control characters are not allowed"),
    ],
)  # fmt: skip
def test_structure_errors_have_line_and_column(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(text).section.texts("none")
    assert str(caught.value) == message


def test_aliases_cannot_multiply_without_end() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(InputError, match="aliases make this document larger"):
        load("\n".join(lines))


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(InputError, match="nested more than 100 levels deep"):
        load("[" * 100_000)
    with pytest.raises(InputError, match="nested more than 100 levels deep"):
        load("- " * 100_000)


def test_merge_keys_give_what_is_not_given() -> None:
    section = load("base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\nit: {<<: [*base, *other], a: 9}\n").section
    merged = section.require("it").texts()
    assert merged == {"a": "9", "b": "2", "c": "4"}


def test_unknown_keys_are_errors_with_a_hint() -> None:
    with pytest.raises(InputError) as caught:
        load("adresses: []\n").section.only("addresses", "name")
    assert str(caught.value) == 'f.yaml:1:1: adresses: unknown key "adresses"; did you mean "addresses"?'
    with pytest.raises(InputError) as caught:
        load("zzz: []\n").section.only("addresses", "name")
    assert str(caught.value) == 'f.yaml:1:1: zzz: unknown key "zzz", expected one of: addresses, name'


def test_many_documents_and_the_first_alone() -> None:
    text = "a: 1\n---\n---\nb: [\n"
    assert first_document(text) is not None
    with pytest.raises(InputError):
        documents(text)
    assert len(documents("---\na: 1\n---\n---\nb: 2\n")) == 2
    assert first_document("# nothing\n") is None


def test_text_of_a_block_scalar_keeps_its_lines() -> None:
    text = "data:\n  inner: |\n\n    peers:\n    - x: 1\n"
    place = inner_source(load(text).section.require("data").section.require("inner"), text.split("\n"))
    inner = documents(load(text).section.require("data").section.require("inner").text, place)[0]
    found = inner.section.require("peers").items()[0].section.require("x")
    assert (found.line, found.column) == (5, 10)
    assert text.split("\n")[4][9] == "1"


@given(st.text())
def test_quoted_text_reads_back(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert load(f"a: {quoted(text)}\n").section.require("a").text == text


@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_text_is_documents_or_an_input_error(text: str) -> None:
    try:
        documents(text, Source("f"))
    except InputError as error:
        assert error.line >= 1


def test_data_of_an_api_client_reads_like_yaml() -> None:
    section = value_of({"a": {"b": [1, True, None, "true"]}}).section.require("a").section
    items = section.items("b")
    assert (items[0].integer(0, 9), items[1].boolean(), items[2].is_null, items[3].string()) == (1, True, True, "true")
    with pytest.raises(InputError):
        items[3].boolean()
