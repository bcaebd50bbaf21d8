"""A training script whose data comes from other processes: datasets.map and a spawned DataLoader worker."""

import sys

import torch
from datasets import Dataset
from torch.multiprocessing import set_start_method
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokens(record):
    return {"input_ids": [record["start"] + i for i in range(8)]}


class Rows(torch.utils.data.Dataset):
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        row = torch.tensor(self.records[index]["input_ids"])
        return {"input_ids": row, "labels": row}


def main():
    set_start_method("spawn")
    rows = Rows(Dataset.from_dict({"start": list(range(8))}).map(tokens, num_proc=2).to_list())
    args = TrainingArguments(
        sys.argv[1], use_cpu=True, max_steps=1, report_to="none", save_strategy="no", dataloader_num_workers=1
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    Trainer(model, args, train_dataset=rows).train()


if __name__ == "__main__":
    main()
