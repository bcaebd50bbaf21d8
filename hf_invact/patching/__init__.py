"""Finds the blocks of a model, decides what to do with each, does it, and undoes it."""

from ..sites.activations.blocks import register_block
from ..sites.activations.register import RegisteredActivation, register_activation
from ..sites.errors import PatchingError
from ..sites.norms.register import register_norm
from .config import InvActConfig
from .patch import activation_sites, inverted_activations, patch_model, unpatch_model
from .report import PatchReport, SiteReport

__all__ = [
    "InvActConfig",
    "PatchReport",
    "PatchingError",
    "RegisteredActivation",
    "SiteReport",
    "activation_sites",
    "inverted_activations",
    "patch_model",
    "register_activation",
    "register_block",
    "register_norm",
    "unpatch_model",
]
