"""Measures operators and training steps on one device. Needs torch, transformers and accelerate alone.

`command` is the script, `operators` and `steps` are what it measures, `results` is the file that they are written to,
and `tables` and `figures` show it.
"""
