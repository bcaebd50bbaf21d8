"""Finds the blocks of a model, decides what to do with each, does it, and undoes it."""

from .config import InvActConfig
from .errors import PatchingError
from .patch import activation_sites, inverted_activations, patch_model, unpatch_model
from .registration import RegisteredActivation, register_activation
from .registry import register_block
from .report import PatchReport, Site

__all__ = [
    "InvActConfig",
    "PatchReport",
    "PatchingError",
    "RegisteredActivation",
    "Site",
    "activation_sites",
    "inverted_activations",
    "patch_model",
    "register_activation",
    "register_block",
    "unpatch_model",
]
