"""The forms of the norms of PyTorch and Transformers. Classes with other names compute the same: see `recognize`."""

from __future__ import annotations

from .record import NormForm

LAYER_NORM = NormForm("layer_norm", centred=True, function=True)
RMS_NORM = NormForm("rms_norm", function=True)
LLAMA = NormForm("llama", rounds="to input", keeps_dtype=False)
OLMO2 = NormForm("olmo2")  # on a CPU, rms_norm has the same results

FORMS = {
    form.name: form
    for form in (
        LAYER_NORM,
        RMS_NORM,
        LLAMA,
        NormForm("layer_norm_1p", centred=True, function=True, offset=1.0),
        NormForm("olmo", centred=True, function=True, input_is_widened=True),
        OLMO2,
        NormForm("gemma", offset=1.0, weight_is_widened=True),
        NormForm("t5", multiplies_input=True, rounds="to half weight", keeps_dtype=False),
        NormForm("cohere", centred=True, weight_is_widened=True),
        NormForm("deberta", centred=True, divides=True, rounds="to input", keeps_dtype=False),
        NormForm("deepseek_v4", multiplies_input=True, root_is_rounded=True),
    )
}


def form_by_name(name: str) -> NormForm:
    """The form with this name.

    Raises:
        ValueError: no form has it.
    """
    if name not in FORMS:
        raise ValueError(f"unknown form of a norm {name!r}; known: {', '.join(FORMS)}")
    return FORMS[name]
