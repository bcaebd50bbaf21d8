"""Starts a script in two processes, and reads the results that each writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.processes.cases import WORLD

ROOT = Path(__file__).parents[2]
SECONDS = 300


def launch(script: Path, folder: Path, *arguments: str) -> list[Any]:
    """Run ``script ARGUMENTS`` under torchrun, and load the ``rank*.pt`` of each process from a folder."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-5000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]
