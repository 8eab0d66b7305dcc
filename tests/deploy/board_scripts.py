"""A folder that stands for a board, and a way to run the scripts for boards in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
JETSON = REPOSITORY / "deploy" / "jetson"


def script(path: Path, *lines: str) -> Path:
    """Write a shell script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/bash", *lines, "")), "utf-8")
    path.chmod(0o755)
    return path


class Board:
    """A folder with the state and the programs of a board.

    `bin` comes before all else in the PATH of scripts, so that what a test puts there
    stands for programs of the system that this machine does not have.
    """

    def __init__(self, root: Path):
        self.root = root
        self.state = root / "state"
        self.bin = root / "bin"
        self.programs = root / "programs"
        self.state.mkdir()
        self.bin.mkdir()
        script(self.programs / "python", f'exec {sys.executable} "$@"')
        for name, module in (
            ("edgeloc-run", "edgeloc.cli.run"),
            ("edgeloc-build", "edgeloc_tools.cli.build"),
        ):
            script(self.programs / name, f'exec {sys.executable} -m {module} "$@"')

    def run(self, name: str, *arguments, **environment):
        """Run a script of deploy/jetson."""
        return subprocess.run(
            [str(JETSON / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.root,
            env={
                **os.environ,
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "EDGELOC_STATE": str(self.state),
                "EDGELOC_BIN": str(self.programs),
                **environment,
            },
        )
