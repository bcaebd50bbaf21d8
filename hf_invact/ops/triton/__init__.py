"""The Triton backend: fused kernels at memory speed. The only part of the package that imports triton."""
