"""The Triton backend: fused kernels at memory speed. The only part of the package that imports triton.

Fitted curves have kernels; exact formulas go through `torch.compile`, which on a GPU makes Triton kernels of them.
"""

from .launch import backward, exact_backward, exact_gate_backward, forward, gate_backward, gate_forward

__all__ = ["backward", "exact_backward", "exact_gate_backward", "forward", "gate_backward", "gate_forward"]
