"""The "compile" backend: the formulas through PyTorch's compiler."""
