"""The build's one step that pyproject.toml cannot say: clang compiles the eBPF object first."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from compile_bpf import CompileError, compile_object


class BuildWithObject(build_py):
    """build_py after clang."""

    def run(self) -> None:
        try:
            compile_object()
        except CompileError as error:
            sys.exit(f"routerd: error: {error}")
        super().run()


setup(cmdclass={"build_py": BuildWithObject})
