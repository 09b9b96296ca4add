"""Fused loops of recurrent networks and losses, on plain arrays. Nothing here knows of tapes.

`reference.py` says what each computes, step by step in float64; `cpu.py` does it fast in NumPy.
"""
