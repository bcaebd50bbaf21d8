"""A training script that knows nothing of inverted activations. It writes what it saw to a JSON file.

`kept` counts what the second training step kept for its backward pass, in its own way.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


class CountingTrainer(Trainer):
    kept = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.kept or self.state.global_step == 0:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights)
        return loss


def train(args):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    rows = torch.randint(3, 64, (8, 16))
    trainer = CountingTrainer(model, args, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.train()
    return {"kept": trainer.kept, "logs": [entry for entry in trainer.state.log_history if "loss" in entry]}


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    seen = {"argv": sys.argv, "path": sys.path[0], "world_size": args.world_size, **train(args)}
    rank = os.environ.get("RANK", "0")
    (Path(args.output_dir) / f"seen-{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    if torch.distributed.is_initialized():
        # Without this PyTorch sometimes aborts at the end (pytorch#190489). The wrapped model has to be gone before:
        # a group that it owns alone joins its threads without releasing the interpreter, which they may wait for.
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
