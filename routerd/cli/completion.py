"""Completion scripts for bash and zsh, made from any argparse parser. Pure: the parser is read and never run.

A script holds what the parser knew when it was made; make it again after an upgrade.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("bash", "zsh")


@dataclass(frozen=True, slots=True)
class Choice:
    """A word that may come next, and what it means."""

    word: str
    help: str


@dataclass(frozen=True, slots=True)
class Option:
    """An option that wants a value. `choices` is empty where the value is free."""

    words: tuple[str, ...]
    choices: tuple[str, ...]
    is_path: bool


@dataclass(frozen=True, slots=True)
class Place:
    """The parser of one command; `path` is the words that lead to it, joined by blanks, empty for the top."""

    path: str
    choices: tuple[Choice, ...]
    options: tuple[Option, ...]
    subcommands: tuple[str, ...]
    takes_paths: bool


def places(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Place]:
    """The parser and, below it, those of its subcommands."""
    actions = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
    nested = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    positionals = [action for action in actions if not action.option_strings and action not in nested]
    valued = [action for action in actions if action.option_strings and action.nargs != 0]
    yield Place(
        path,
        tuple(choice for action in actions for choice in _choices(action)),
        tuple(Option(tuple(a.option_strings), _values(a), a.type is Path) for a in valued),
        tuple(name for action in nested for name in action.choices),
        any(action.type is Path for action in positionals),
    )
    for action in nested:
        for name, below in action.choices.items():
            yield from places(below, f"{path} {name}".strip())


def _values(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or ())


def _choices(action: argparse.Action) -> Iterator[Choice]:
    """The words by which an action is called: its options, the names of subcommands, the values of a positional."""
    if isinstance(action, argparse._SubParsersAction):
        for row in action._choices_actions:
            yield Choice(row.dest, _one_line(row.help))
    for word in action.option_strings or _values(action):
        if not isinstance(action, argparse._SubParsersAction):
            yield Choice(word, _one_line(action.help))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def function_name(program: str) -> str:
    return "_" + re.sub(r"\W", "_", program)


def bash(parser: argparse.ArgumentParser) -> str:
    """For `source <(PROGRAM completion bash)`, or a file in /etc/bash_completion.d."""
    found, name = list(places(parser)), function_name(parser.prog)
    rows = [
        f"# bash completion for {parser.prog}, made by `{parser.prog} completion bash`",
        f"{name}() {{",
        "    local command='' i word=${COMP_WORDS[COMP_CWORD]}",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        *_indent(2, _walk(found, "${COMP_WORDS[i]}")),
        "    done",
        '    case "$command:${COMP_WORDS[COMP_CWORD-1]}" in',
        *_indent(2, (_bash_values(place, option) for place in found for option in place.options)),
        "    esac",
        '    case "$command" in',
        *_indent(2, map(_bash_words, found)),
        "    esac",
        "}",
        f"complete -o filenames -F {name} {parser.prog}",
    ]
    return "\n".join(rows) + "\n"


def zsh(parser: argparse.ArgumentParser) -> str:
    """For a file `_PROGRAM` in a directory of $fpath, or `source <(PROGRAM completion zsh)` after compinit."""
    found, name = list(places(parser)), function_name(parser.prog)
    rows = [
        f"#compdef {parser.prog}",
        f"# zsh completion for {parser.prog}, made by `{parser.prog} completion zsh`",
        f"{name}() {{",
        "    local command='' i",
        "    local -a found",
        "    for ((i = 2; i < CURRENT; i++)); do",
        *_indent(2, _walk(found, "${words[i]}")),
        "    done",
        '    case "$command:${words[CURRENT-1]}" in',
        *_indent(2, (_zsh_values(place, option) for place in found for option in place.options)),
        "    esac",
        '    case "$command" in',
        *_indent(2, map(_zsh_words, found)),
        "    esac",
        f"    _describe {parser.prog} found",
        "}",
        f'if [[ ${{funcstack[1]}} == {name} ]]; then {name} "$@"; else compdef {name} {parser.prog}; fi',
    ]
    return "\n".join(rows) + "\n"


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """`shell`: one of SHELLS."""
    return {"bash": bash, "zsh": zsh}[shell](parser)


def _indent(depth: int, rows: Iterator[str] | Sequence[str]) -> list[str]:
    return ["    " * depth + row for row in rows]


def _walk(found: Sequence[Place], word: str) -> list[str]:
    """Shell that follows the words before the cursor: the subcommand they lead to, and options' values skipped."""
    rows = [f'case "$command:{word}" in']
    for place in found:
        skipped = [f"{shlex.quote(place.path)}:{word}" for option in place.options for word in option.words]
        if skipped:
            rows.append(f"    {' | '.join(skipped)}) ((i++)) ;;")
        for name in place.subcommands:
            below = shlex.quote(f"{place.path} {name}".strip())
            rows.append(f"    {shlex.quote(place.path)}:{name}) command={below} ;;")
    return [*rows, "esac"]


def _patterns(place: Place, option: Option) -> str:
    return " | ".join(f"{shlex.quote(place.path)}:{word}" for word in option.words)


def _bash_values(place: Place, option: Option) -> str:
    answer = "COMPREPLY=()"
    if option.choices:
        answer = f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$word"))'
    elif option.is_path:
        answer = 'COMPREPLY=($(compgen -f -- "$word"))'
    return f"{_patterns(place, option)}) {answer}; return ;;"


def _bash_words(place: Place) -> str:
    words = shlex.quote(" ".join(choice.word for choice in place.choices))
    files = ' $(compgen -f -- "$word")' if place.takes_paths else ""
    return f'{shlex.quote(place.path)}) COMPREPLY=($(compgen -W {words} -- "$word"){files}) ;;'


def _zsh_values(place: Place, option: Option) -> str:
    answer = "return"
    if option.choices:
        answer = f"compadd -- {' '.join(map(shlex.quote, option.choices))}; return"
    elif option.is_path:
        answer = "_files; return"
    return f"{_patterns(place, option)}) {answer} ;;"


def _zsh_words(place: Place) -> str:
    rows = " ".join(shlex.quote(f"{choice.word}:{choice.help}") for choice in place.choices)
    files = "_files; " if place.takes_paths else ""
    return f"{shlex.quote(place.path)}) {files}found=({rows}) ;;"
