"""Exit codes of `routerd`. They are documented in `--help` and docs/cli.md; scripts rely on them."""

from __future__ import annotations

OK = 0
REFUSED = 1  # bad input, or the daemon says no
USAGE = 2  # argparse's own
ENVIRONMENT = 3
UNREACHABLE = 4
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

MEANINGS = {
    OK: "done",
    REFUSED: "bad input, or refused: the message names the file, line and key, or the reason",
    USAGE: "the command line is wrong",
    ENVIRONMENT: "the machine lacks something: a privilege, a program, a device, a kernel feature, the store",
    UNREACHABLE: "the daemon does not answer",
}
