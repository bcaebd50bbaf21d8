"""The plain PyTorch backend, and the reference for the others."""
