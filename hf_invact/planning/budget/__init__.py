"""Chooses how many layers are checkpointed, for an amount of memory."""
