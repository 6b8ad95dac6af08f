"""Attention by NVIDIA's cuDNN, where it computes exactly what was asked for.

inputs   the arrays and numbers that cuDNN is given
limits   what it declines, and what it leaves to others
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from flax_attn._jax.cudnn import cudnn_backward, cudnn_forward
from flax_attn.attention import _registry
from flax_attn.attention._core.batch import merge_batch, split_batch
from flax_attn.attention._core.implementation import Implementation, Results, Target
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem
from flax_attn.attention._figures import reason_to_defer
from flax_attn.attention.cudnn.inputs import Inputs, reach_of
from flax_attn.attention.cudnn.limits import no_attention, no_gradients

FEW_SCORES = 64**2
"""Of one head: less than a tile of cuDNN. No figures are published for so few."""


@dataclasses.dataclass(frozen=True)
class Cudnn(Implementation):
    """Attention by the kernels of NVIDIA's cuDNN, with memory O(T + S).

    It takes `Full`, `Causal` and `Window` masks and their conjunctions, lengths, and a bias that is
    an array over queries and keys; bfloat16 and float16; grouped heads; head sizes that are
    multiples of 8, up to 128, or 256 on Hopper and Blackwell. It declines everything else, with the
    reason. cuDNN 9.10.2 or newer must be installed.

    The gradients of query, key and value are cuDNN's too. Those of a bias, of the LSE, and forward
    mode are those of the best other implementation, from the float32 LSE.

    Three things differ from other implementations:

    * cuDNN's gradients are summed in an order that varies, unless XLA is given the flag
      `--xla_gpu_deterministic_ops`. With `backward=False` they are always the same.
    * Keys and values that a causal mask, a window or a bias of −∞ hides must be finite: NaN and
      infinity may reach queries of the same tile, as 0 · NaN. Those beyond a length need not be.
    * The output is rounded to the query's dtype before a sink is applied or parts are merged.

    Attributes:
      backward: Whether cuDNN computes gradients. If False, another implementation does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_attn import attention
      >>> x = jax.ShapeDtypeStruct((1, 1024, 8, 64), jnp.bfloat16)
      >>> def attend(q):
      ...     return attention.dot_product_attention(
      ...         q, q, q, is_causal=True, implementation=attention.Cudnn(backward=False)
      ...     )
      >>> program = jax.jit(attend).trace(x).lower(lowering_platforms=("cuda",))
      >>> "__cudnn$fmhaSoftmax" in program.as_text()
      True

    References:
      Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning", 2014, arXiv:1410.0759; Dao,
      "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", ICLR 2024,
      arXiv:2307.08691.
    """

    backward: bool = True
    name: ClassVar[str] = "cudnn"

    def declines(self, problem: Problem, target: Target) -> str | None:
        """Declines what cuDNN cannot honour, and targets that do not have it."""
        return no_attention(problem, target)

    def defers(self, problem: Problem, target: Target) -> str | None:
        """It is left alone where there is next to nothing to do, and in what is serialized."""
        length_q, length_k, _, _ = problem.sizes
        if length_q * length_k <= FEW_SCORES:
            return f"{length_q} × {length_k} scores a head are few enough to be computed at once."
        if target.is_exported:
            return (
                "jax.export does not serialize calls of cuDNN by default. Ask for 'cudnn', with "
                "jax.export's disabled_checks."
            )
        return reason_to_defer(self.name, "blockwise", problem, target)

    def remarks(self, problem: Problem, target: Target) -> list[str]:
        """Who computes the derivatives, whether they are deterministic, what must be finite."""
        other = _registry.other_than(self, problem, target).name
        reason = self._no_gradients(
            problem, target._replace(lse_cotangent=False), (QUERY, KEY, VALUE)
        )
        if reason is None:
            lines = [
                "gradients of query, key and value by cuDNN: deterministic only with XLA's flag "
                "--xla_gpu_deterministic_ops, and always with attention.Cudnn(backward=False)",
                f"gradients of a bias or through the LSE, and forward mode, by {other}",
            ]
        else:
            lines = [f"derivatives by {other}: {reason}"]
        if reach_of(problem) != (None, None) or problem.score_mod is not None:
            lines.append(
                "keys and values that the mask or the bias hides must be finite: NaN and infinity "
                "may reach queries of the same tile"
            )
        return lines

    def forward(self, problem: Problem, target: Target) -> Results:
        """Output and LSE."""
        del target
        inputs = Inputs.of(problem)
        output, lse_BNT = cudnn_forward(*inputs.arrays, inputs.band)
        lse = jnp.swapaxes(lse_BNT, -1, -2)
        if inputs.sees is not None:
            output = jnp.where(inputs.sees[..., None], output, 0)
            lse = jnp.where(inputs.sees, lse, -jnp.inf)
        output = output.astype(problem.output_dtype)
        return split_batch(output, problem.batch), split_batch(lse, problem.batch)

    def tangent(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        tangents: Mapping[int, jax.Array],
    ) -> Results:
        """The derivatives of output and LSE along tangents of some leaves, by another."""
        other = _registry.other_than(self, problem, target)
        return other.tangent(problem, target, results, tangents)

    def transpose(
        self,
        problem: Problem,
        target: Target,
        results: Results,
        cotangents: Results,
        active: tuple[int, ...],
    ) -> Sequence[jax.Array]:
        """The cotangents of the leaves `active`, by cuDNN or by another."""
        if self._no_gradients(problem, target, active) is not None:
            other = _registry.other_than(self, problem, target)
            return other.transpose(problem, target, results, cotangents, active)
        inputs = Inputs.of(problem)
        output, d_output = (
            merge_batch(x, "btnd", problem.batch).astype(problem.dtype)
            for x in (results[0], cotangents[0])
        )
        lse = merge_batch(results[1], "btn", problem.batch)
        if inputs.sees is not None:  # a row without keys: its weights are finite, and count nothing
            lse = jnp.where(inputs.sees, lse, 0)
            d_output = jnp.where(inputs.sees[..., None], d_output, 0)
        found = inputs.only_valid(
            *cudnn_backward(
                *inputs.arrays, inputs.band, jnp.swapaxes(lse, -1, -2), output, d_output
            )
        )
        return [split_batch(found[leaf], problem.batch) for leaf in active]

    def _no_gradients(
        self, problem: Problem, target: Target, active: tuple[int, ...]
    ) -> str | None:
        """Why another implementation computes some gradients; None if cuDNN does."""
        if not self.backward:
            return "those of cuDNN are turned off by backward=False."
        return no_gradients(problem, target, active)
