"""The command ``hf-invact``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__
from .environment import describe_installation, render_installation
from .patching import PatchingError
from .planning import OPTIMIZERS, Lora, PlanningError, as_json, plan_memory, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 2 where something that the user gave is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except (PlanningError, PatchingError, ValueError) as error:
        print(f"hf-invact: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-invact", description="Inverted activations for Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"hf_invact {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan",
        help="predict the memory that training needs, with and without",
        description="Predict the memory that training a model needs, plain and with inverted activations. Needs the "
        "model's config alone: no weights, no GPU.",
    )
    plan.set_defaults(run=_plan)
    plan.add_argument("model", metavar="MODEL", help="name on the hub, local folder, or config.json")
    plan.add_argument("--batch-size", type=int, required=True, metavar="B")
    plan.add_argument("--seq-len", type=int, required=True, metavar="S", help="tokens in each sequence")
    plan.add_argument("--dtype", default="bfloat16", help="of the weights: bfloat16 (default), float16, float32")
    plan.add_argument("--autocast", action="store_true", help="run the forward pass under autocast")
    plan.add_argument("--lora", type=_lora, metavar="r=16,dropout=0,targets=all", help="train adapters alone")
    plan.add_argument("--attn", default="sdpa", metavar="sdpa|eager|flash_attention_2", help="attention implementation")
    plan.add_argument(
        "--optimizer",
        default="adamw_fused",
        choices=sorted(OPTIMIZERS),
        help="adamw_fused (default) is the Trainer's; torch's own, adamw, needs temporaries of the weights' size",
    )
    plan.add_argument("--gradient-checkpointing", action="store_true")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    info = commands.add_parser(
        "info",
        help="tell versions, devices, backends and activations, as for a bug report",
        description="Tell the versions of what is installed, the devices, the backend that each gets and why, and the "
        "activations that can be inverted.",
    )
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _info(options: argparse.Namespace) -> int:
    facts = describe_installation()
    print(json.dumps(facts, indent=2) if options.json else render_installation(facts))
    return 0


def _plan(options: argparse.Namespace) -> int:
    plan = plan_memory(
        options.model,
        options.batch_size,
        options.seq_len,
        dtype=options.dtype,
        autocast=options.autocast,
        lora=options.lora,
        attention=options.attn,
        gradient_checkpointing=options.gradient_checkpointing,
        optimizer=options.optimizer,
    )
    print(json.dumps(as_json(plan), indent=2) if options.json else render(plan))
    return 0


def _lora(text: str) -> Lora:
    """``r=16,dropout=0.05,targets=all``, each of which may be left out."""
    kinds: dict[str, Callable[[str], Any]] = {"r": int, "dropout": float, "targets": str}
    values: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in kinds:
            raise argparse.ArgumentTypeError(f"{item!r} is none of r=INT, dropout=FLOAT, targets=all|attention|mlp")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is no value for {key}") from None
    try:
        return Lora(**values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
