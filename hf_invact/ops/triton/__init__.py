"""The Triton backend: fused kernels at memory speed. The only part of the package that imports triton.

Fitted curves have kernels; exact formulas go through `torch.compile`, which on a GPU makes Triton kernels of them.
"""
