"""Patches every model type of the installed Transformers, and compares it with the unpatched one."""
