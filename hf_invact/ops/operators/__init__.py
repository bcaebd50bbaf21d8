"""The operators as PyTorch knows them: one file for each operation, and one of the same name for each backend."""

from . import activation_derivatives as activation_derivatives  # registers the operators and their derivatives
from . import norm_derivatives as norm_derivatives
