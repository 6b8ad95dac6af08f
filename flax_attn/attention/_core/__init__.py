"""From the arguments of an attention call to the implementation that computes it.

arguments   checks what the user passed
problem     the normalised call, and how it is built from the arguments
trial       traces masks and score modifiers once, so that user errors surface early
selection   which implementation computes a problem, and why the others do not
primitive   attention as JAX primitives: derivatives, batching, lowering
partition   how XLA splits these primitives over devices
"""
