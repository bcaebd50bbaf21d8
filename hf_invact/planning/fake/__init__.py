"""Tensors without memory, which keep for the backward pass what the tensors of a device would keep."""
