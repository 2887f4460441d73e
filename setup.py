"""What pyproject.toml cannot say: clang compiles what is C first, and the wheel names the machine that it is for."""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from compile_c import CompileError, compile_all


class BuildWithObjects(build_py):
    """build_py after clang."""

    def run(self) -> None:
        try:
            compile_all()
        except CompileError as error:
            sys.exit(f"routerd: error: {error}")
        super().run()


class WheelOfMachine(bdist_wheel):
    """Any Python 3, and this machine: the CNI plugin is a program. It is static, so any libc will do."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", sysconfig.get_platform().replace("-", "_")


setup(cmdclass={"build_py": BuildWithObjects, "bdist_wheel": WheelOfMachine})
