"""Trains in processes that kill themselves, as in a crash of the machine: one for each model and moment.

Run as `python -m tests.lifetime.killed FOLDER`; prints how each process ended. (Libraries are imported once, and
nothing is computed before the processes fork.)
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hf_invact import InvertedActivationsCallback
from tests.lifetime.small import MODELS, STEPS, train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieInBackward(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == STEPS - 1:
            next(model.parameters()).register_hook(lambda gradient: die())


class DieBeforeOptimizer(Trainer):
    """After the weights of the second checkpoint were written."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == 4:
            assert (Path(output_dir) / "model.safetensors").exists()
            die()
        super()._save_optimizer_and_scheduler(output_dir)


class DieBeforeState(Trainer):
    """Before the second checkpoint's last file."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.state.global_step == 4:
            die()


MOMENTS: dict[str, dict[str, Any]] = {
    "backward": {"callbacks": [DieInBackward]},
    "weights": {"cls": DieBeforeOptimizer},
    "state": {"cls": DieBeforeState},
}


def main(folder: Path) -> None:
    for name in MODELS:
        for moment, options in MOMENTS.items():
            process = os.fork()
            if process == 0:
                torch.set_num_threads(1)  # like the resumed training: the order of sums depends on it
                callbacks = [callback() for callback in options.get("callbacks", ())]
                cls = options.get("cls", Trainer)
                train(name, folder / f"{name}-{moment}", InvertedActivationsCallback(), *callbacks, cls=cls)
                os._exit(1)  # survived
            _, status = os.waitpid(process, 0)
            print(name, moment, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "survived", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
