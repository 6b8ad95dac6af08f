"""Rewrites of computations that XLA compiles badly for CPUs.

One rewrite per file, beside its plain formula: the same mathematics, written as one would without
the rewrite. Other platforms compile the plain formula or an equal one. Each file says what XLA does
with the plain formula, the jaxlib version it was seen with, and what the rewrite gains. A test in
`tests/workarounds/` fails when the plain formula has become as good, so that the file can go.

`disabled()` turns all rewrites off, for tests and measurements.
"""

from flax_attn._cpu.switch import disabled as disabled

__all__ = ["disabled"]
