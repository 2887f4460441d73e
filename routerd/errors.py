"""Every exception that routerd raises on purpose. The class says who must act.

    RouterdError
    ├── InputError          the operator: a file that routerd was given is wrong (file, line, key, found, expected)
    ├── EnvironmentFault    the operator: the machine lacks something (privilege, program, device, kernel feature)
    └── StoreError          the store: it cannot be read or written now; what was last good goes on working

A refusal of one object ("no ready endpoint", "pool exhausted") is a value (`routerd.model.Refusal`),
never an exception.
"""

from __future__ import annotations


class RouterdError(Exception):
    """Root of the tree."""


class InputError(RouterdError):
    """A document is wrong. `str()` is one line: `FILE:LINE:COLUMN: KEY: message`, with the parts that are known."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0, key: str = "") -> None:
        self.message = message
        self.file = file
        self.line = line  # 1-based; 0 = unknown
        self.column = column  # 1-based; 0 = unknown
        self.key = key  # dotted path inside the document, "spec.blocks[0].cidr"
        super().__init__(message)

    def __str__(self) -> str:
        place = ":".join([self.file or "<input>", *(str(n) for n in (self.line, self.column) if n)])
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class EnvironmentFault(RouterdError):
    """The machine lacks something; the message names it and says what to do."""


class StoreError(RouterdError):
    """The store cannot be read or written at the moment."""
