"""From the arguments of an attention call to the implementation that computes it.

normalize       checks the arguments, builds the problem, traces mask and modifiers once
arguments       checks what the user passed
parts           checks the arrays inside masks and score modifiers
problem         the normalised call, and how it is built from the arguments
selection       which implementation computes a problem, and why the others do not
implementation  what an implementation is
placement       what a placement on several devices is, which is an implementation, too
primitive       attention as JAX primitives: derivatives, batching, lowering
partition       how XLA splits these primitives over devices
scores, finite, heads: formulas that implementations share
"""
