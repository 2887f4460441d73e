"""Makes the directories that the configuration names; where one cannot be made, the error says which key to change."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from routerd.errors import EnvironmentFault, InputError
from routerd.formats.compose import documents
from routerd.formats.document import Source


def made(directory: Path, file: Path | None, *keys: str) -> None:
    """Makes `directory`, for its owner alone, and those above it; one that is there stays as it is.

    `keys`: dotted keys of the configuration `file` that name it, the strongest first. Raises EnvironmentFault.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the directory {directory}: {error.strerror}"
        raise EnvironmentFault(f"{_place(file, keys)}: {message}") from error


def _place(file: Path | None, keys: tuple[str, ...]) -> str:
    """`FILE:LINE: KEY` of the strongest key that is given; the last one stands for the default."""
    if file is None:
        return f"{keys[-1]} (by default)"
    with suppress(InputError, OSError, UnicodeDecodeError):
        for document in documents(file.read_text(encoding="utf-8"), Source(str(file))):
            for key in keys:
                value = document.section.at(*key.split("."))
                if value is not None:
                    return f"{file}:{value.line}: {key}"
    return f"{file}: {keys[-1]} (by default)"
