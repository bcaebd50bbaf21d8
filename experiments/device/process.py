"""Starts a worker, reads its messages, and ends it with all that it has started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.masking import masked_text

ROOT = Path(__file__).parents[2]
OUTPUT_LINES = 100  # deep enough for where a compiler hangs
# No hub, and no threads that compete for the cores while they wait.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
_POLL, _TO_EXIT = 0.5, 5.0  # seconds


class TimeIsOver(Exception):
    """No message came until then."""


class Worker:
    """A process of `worker.main`, as a context that kills it when it is left.

    Args:
        request: its argument, but for the pipe.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._pipe, writer = os.pipe()
        command = [sys.executable, "-m", f"{__package__}.worker", json.dumps({**request, "pipe": writer})]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            start_new_session=True,  # a process group of its own
            cwd=ROOT,
            env={**os.environ, **_ENVIRONMENT},
        )
        os.close(writer)
        self._received = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._pipe)
        self._log.close()

    def receive(self, until: float) -> dict[str, Any] | None:
        """The next message; None when there will be no more.

        Raises:
            TimeIsOver: `time.monotonic` has passed `until`.
        """
        while b"\n" not in self._received:
            wait = until - time.monotonic()
            if wait <= 0:
                raise TimeIsOver
            has_ended = self._process.poll() is not None
            if select.select([self._pipe], [], [], min(wait, _POLL))[0]:
                chunk = os.read(self._pipe, 1 << 16)
                if not chunk:
                    return None
                self._received += chunk
            elif has_ended:  # and a process that it has left behind holds the pipe open
                return None
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def fault(self) -> str | None:
        """Why it ended, after its last message; None if it did as planned."""
        try:
            code = self._process.wait(_TO_EXIT)
        except subprocess.TimeoutExpired:
            return "it did not exit"
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        return f"it ended with exit code {code}" if code else None

    def output(self) -> list[str]:
        """The last lines that it has written to standard output and standard error."""
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), 1 << 15, max(0, size - (1 << 15)))
        lines = tail.decode(errors="replace").splitlines()
        return [masked_text(line) for line in lines if line.strip()][-OUTPUT_LINES:]
