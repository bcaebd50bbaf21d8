"""A Trainer that passes other objects to its callbacks than that of Transformers, like SetFit's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

from hf_invact import InvActTrainingArguments, InvertedActivationsCallback, PatchingError
from tests.models import tiny_model
from tests.trainer.helpers import SAVED, arguments, is_patched, losses, make_trainer, training_logs


class HoldingTrainer(Trainer):
    """Its callbacks get an object around the model, and arguments of another class."""

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, *, holder: Any, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        handler = self.callback_handler
        own = SimpleNamespace(output_dir=args.output_dir, num_epochs=1)

        def call_event(event: str, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
            for callback in handler.callbacks:
                given = {"model": holder, "st_args": args, **kwargs}
                # Transformers' callbacks need its own arguments.
                first = own if isinstance(callback, InvertedActivationsCallback) else args
                control = getattr(callback, event)(first, state, control, **given) or control
            return control

        handler.call_event = call_event
        handler.on_init_end(self.args, self.state, self.control)


@pytest.mark.parametrize(
    "parts",
    [{"head": object()}, {"head": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2)), "training": True}],
    ids=["a head that is no module", "a head that is one"],
)
def test_what_an_object_holds_is_patched_and_measured(parts: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    callback = InvertedActivationsCallback()
    args = arguments(tmp_path, TrainingArguments)
    holder = SimpleNamespace(body=model, **parts)
    trainer = make_trainer(model, args, callback, cls=HoldingTrainer, holder=holder)
    assert is_patched(model)
    trainer.train()
    assert not is_patched(model)
    plain = make_trainer(tiny_model("llama"), args)
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-5)
    assert callback.report is not None
    patched = [site.kind for site in callback.report.sites if site.is_patched]
    assert patched.count("activation") == (3 if isinstance(parts["head"], nn.Module) else 2)
    assert patched.count("norm") == 5
    assert all(entry[SAVED] > 0 for entry in training_logs(trainer))
    assert json.loads((tmp_path / "inverted_activations.json").read_text())["saved_activation_bytes"] > 0


def test_without_the_flag_an_object_that_holds_no_module_is_left_alone(tmp_path: Path) -> None:
    callback, holder = InvertedActivationsCallback(), SimpleNamespace(a=1)
    args = arguments(tmp_path, InvActTrainingArguments, use_inverted_activations=False)
    trainer = make_trainer(tiny_model("llama"), args, callback, cls=HoldingTrainer, holder=holder)
    trainer.train()
    assert len(losses(trainer)) == 3
    assert callback.report is None


def test_an_object_that_holds_no_module_is_refused_in_a_sentence(tmp_path: Path) -> None:
    args = arguments(tmp_path, TrainingArguments)
    with pytest.raises(PatchingError, match=r"is a SimpleNamespace, which is not a torch.nn.Module and has none among"):
        make_trainer(
            tiny_model("llama"), args, InvertedActivationsCallback(), cls=HoldingTrainer, holder=SimpleNamespace(a=1)
        )
