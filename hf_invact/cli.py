"""The command ``hf-invact``. Slow imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import __version__, launch

WRONG_INPUT, INTERRUPTED, NO_READER = 2, 130, 141  # the last two as shells report SIGINT and SIGPIPE
OPTIMIZERS = ("adafactor", "adamw", "adamw_fused", "sgd")  # of planning, whose import is slow; so the next
QUANTIZATIONS = ("4bit", "8bit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. The exit code is 2 for invalid input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["run"]:  # not parsed here: the script parses its arguments
        return launch.main(arguments[1:])
    try:
        try:
            options = _parser().parse_args(arguments)
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
        finally:
            sys.stdout.flush()  # here, where a BrokenPipeError is handled
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        return NO_READER
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # the terminal has shown ^C
        print(f"{start}hf-invact: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"hf-invact: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-invact", description="Inverted activations for Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"hf_invact {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="start a training script that then understands --use_inverted_activations")
    plan = commands.add_parser(
        "plan",
        help="predict the memory that training needs, with and without inverted activations",
        description="Predict the memory that training a model needs, plain and with inverted activations. Needs only "
        "the model's config: no weights, no GPU.",
    )
    plan.set_defaults(run=_plan)
    plan.add_argument("model", metavar="MODEL", help="name on the hub, local folder, or config.json")
    plan.add_argument("--batch-size", type=int, required=True, metavar="B")
    plan.add_argument("--seq-len", type=int, metavar="S", help="tokens in each sequence (not for models of images)")
    _add_training(plan)
    _add_comparisons(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    info = commands.add_parser(
        "info",
        help="print versions, devices, backends and activations, as for a bug report",
        description="Print the installed versions, the devices, the backend that each uses and why, and the "
        "activations that can be inverted.",
    )
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _add_training(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--dtype", default="bfloat16", help="of the weights: bfloat16 (or bf16, default), float16, float32"
    )
    autocast = plan.add_mutually_exclusive_group()
    for dtype in ("bf16", "fp16"):
        autocast.add_argument(
            f"--{dtype}",
            dest="autocast",
            action="store_const",
            const=dtype,
            default=False,
            help=f"as the Trainer's {dtype}=True: autocast to {dtype}, with weights in --dtype",
        )
    autocast.add_argument("--autocast", action="store_true", help="to fp16 if --dtype is float16, else to bf16")
    plan.add_argument(
        "--lora",
        metavar="r=16,dropout=0,targets=all",
        help="train only adapters; targets are all, attention, mlp, or names of layers: q_proj+v_proj",
    )
    plan.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="linear layers but the head as bitsandbytes holds them (4bit: as in QLoRA)",
    )
    plan.add_argument("--attn", default="sdpa", metavar="sdpa|eager|flash_attention_2", help="attention implementation")
    plan.add_argument(
        "--optimizer",
        default="adamw_fused",
        choices=OPTIMIZERS,
        help="adamw_fused (default) is the Trainer's; torch's default, adamw, needs temporaries of the weights' size",
    )
    plan.add_argument("--gradient-checkpointing", action="store_true")
    plan.add_argument(
        "--padded", action="store_true", help="sequences have different lengths, so attention keeps a mask for padding"
    )


def _add_comparisons(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--compare",
        action="store_true",
        help="compare with a fused activation, an exact gate, activation checkpointing, and for LoRA with what PEFT "
        "has: no casts, and LoRA-FA",
    )
    plan.add_argument(
        "--budget",
        metavar="SIZE",
        help="the fewest layers to checkpoint with which this batch fits into SIZE (24GiB, 24GB, 24g), as the flag's "
        "memory_budget checkpoints them",
    )
    plan.add_argument(
        "--fit",
        metavar="SIZE",
        help="largest batch and longest sequence that fit into SIZE, also with checkpointing",
    )
    plan.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw the saved bytes of all compared variants (needs matplotlib)"
    )


def _plan(options: argparse.Namespace) -> int:
    from .planning.command import run

    return run(options)


def _info(options: argparse.Namespace) -> int:
    from .environment import describe_installation, render_installation

    facts = describe_installation()
    print(json.dumps(facts, indent=2) if options.json else render_installation(facts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
