"""What cuDNN declines, and which gradients it leaves to others.

The limits are those of JAX's `jax/_src/cudnn/fused_attention_stablehlo.py` (0.10.2 to 0.12.0) and
of NVIDIA's cudnn-frontend 1.32, `sdpa_support_surface.h` and
`scaled_dot_product_flash_attention.h`.
"""

import math

import jax.numpy as jnp
from jax import lax

from flax_attn._jax.cudnn import cudnn_version
from flax_attn.attention._core.implementation import Target
from flax_attn.attention._core.problem import KEY, QUERY, VALUE, Problem
from flax_attn.attention.cudnn.inputs import reach_of, valid_tokens
from flax_attn.normalizers import Softmax
from flax_attn.scores import Bias

AMPERE, HOPPER, BLACKWELL = 8, 9, 10
"""First numbers of compute capabilities. Blackwell GPUs for workstations have 12."""
OLDEST = 91002
"""cuDNN 9.10.2. NVIDIA withdrew 9.10.0 and 9.10.1; older ones refuse some windows."""
TILE = 128
"""Keys that its kernels take at a time."""


def no_attention(problem: Problem, target: Target) -> str | None:
    """Why cuDNN cannot compute a problem on a target; None if it can."""
    return (
        _wrong_arguments(problem)
        or _wrong_mask(problem)
        or _wrong_bias(problem)
        or _wrong_sizes(problem, target)
        or _wrong_target(target)
    )


def no_gradients(problem: Problem, target: Target, active: tuple[int, ...]) -> str | None:
    """Why cuDNN does not compute the gradients of some leaves; None if it does."""
    length_q, length_k, _, _ = problem.sizes
    head_size, value_size = (x.values.shape[-1] for x in (problem.query, problem.value))
    most = max(head_size, value_size)
    if target.lse_cotangent:
        return "cuDNN takes no gradient through the LSE."
    if not {*active} <= {QUERY, KEY, VALUE}:
        # https://github.com/jax-ml/jax/issues/30593
        return "cuDNN's gradient of a bias is right for one batch element only."
    if target.is_part:
        return "gradients of parts of the keys are added up in float32, and cuDNN rounds them."
    if length_q % 2 or length_k % 2:  # as jax.nn
        return f"cuDNN takes even lengths for gradients, and they are {length_q} and {length_k}."
    if problem.score_mod is not None and (length_q % TILE or length_k % TILE):
        # https://github.com/pytorch/pytorch/issues/196678
        return (
            f"with a bias, cuDNN's gradients may be NaN where a length is no multiple of {TILE}, "
            f"and they are {length_q} and {length_k}."
        )
    if most > 128 and _generation(target) != HOPPER:
        return f"cuDNN takes heads of {most} for gradients on Hopper only."
    if most > 128 and head_size != value_size and (head_size, value_size) != (192, 128):
        return f"for gradients, cuDNN takes no D = {head_size} with Dv = {value_size}."
    return None


def _wrong_arguments(problem: Problem) -> str | None:
    if problem.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"it takes bfloat16 and float16, and the query is {problem.dtype}. Convert query, key "
            f"and value: x.astype(jnp.bfloat16)."
        )
    if not isinstance(problem.normalizer, Softmax):
        return f"it has a softmax only, and the normaliser is {problem.normalizer!r}."
    if problem.drop is not None:
        return "its random bits for dropout are others than those of this library."
    if not isinstance(problem.scale, int | float):
        return "it needs to know the scale when it is compiled. Give a Python number."
    given = problem.precision if isinstance(problem.precision, tuple) else (problem.precision,)
    if any(x not in (None, "default", lax.Precision.DEFAULT) for x in given):
        return f"it has one precision, and {problem.precision!r} was asked for. Leave it out."
    return None


def _wrong_mask(problem: Problem) -> str | None:
    length_q, length_k, _, _ = problem.sizes
    if not all(isinstance(size, int) for size in problem.sizes):
        return "a length is symbolic."
    if 0 in (*problem.batch, *problem.sizes, problem.value.values.shape[-1]):
        return "there is nothing to compute: an axis has size 0."
    reach = reach_of(problem)
    if reach is None:
        return (
            f"it knows Full, Causal, Window with Python integers, and conjunctions of them; not "
            f"the mask {problem.mask!r}."
        )
    has_lengths = any(valid is not None for valid in valid_tokens(problem))
    if not problem.in_order and (reach != (None, None) or has_lengths):
        return (
            "it counts positions from 0 on both sides, which coordinates, a placement, or queries "
            "that jit splits over devices may not do. Leave coordinates out, and give lengths as "
            "query_seq_lengths and key_value_seq_lengths."
        )
    if reach.right not in (None, 0):
        return f"its windows end at the query itself, and this one at {reach.right:+}."
    if reach.left is None:
        return None
    if reach.right is None:
        return "its windows are causal. Add & Causal(), or leave the left side open."
    if reach.left < 0:
        return f"its windows hold the query itself, and this one begins at {-reach.left:+}."
    if length_q > length_k:
        return f"with a window it takes at most as many queries as keys, {length_k}."
    if problem.score_mod is not None:
        return "it does not take a bias and a window together."
    return None


def _wrong_bias(problem: Problem) -> str | None:
    modifier = problem.score_mod
    if modifier is None:
        return None
    if not isinstance(modifier, Bias):
        return f"of score modifiers it has only a Bias, and this is {modifier!r}."
    bias = modifier.values.values
    if bias.dtype != problem.dtype:
        return (
            f"it takes a bias of the query's dtype {problem.dtype}, and this one is {bias.dtype}. "
            f"Convert it: bias.astype(query.dtype)."
        )
    length_q, length_k, _, _ = problem.sizes
    if bias.shape[-2:] != (length_q, length_k):
        return (
            f"it takes a bias of all [T, S] = [{length_q}, {length_k}], and this one is "
            f"{list(bias.shape[-2:])}. Broadcast it."
        )
    if bias.shape[:-3] != problem.batch and math.prod(bias.shape[:-3]) > 1:
        return "it takes a bias that differs between all batch elements or none. Broadcast it."
    return None


def _wrong_sizes(problem: Problem, target: Target) -> str | None:
    head_size, value_size = (x.values.shape[-1] for x in (problem.query, problem.value))
    most = max(head_size, value_size)
    if head_size % 8 or value_size % 8:
        return (
            f"it takes head sizes that are multiples of 8, and they are D = {head_size} and "
            f"Dv = {value_size}. Pad them by zeros."
        )
    if most > 256:
        return f"it takes head sizes up to 256, and there is one of {most}."
    if target.platform != "cuda" or _generation(target) in (HOPPER, BLACKWELL):
        return None
    if most > 128:
        return (
            f"it takes head sizes above 128 on Hopper and Blackwell only, and there is one of "
            f"{most} on {_describe(target)}."
        )
    if head_size != value_size:
        return (
            f"it takes Dv = {value_size} and D = {head_size} on Hopper and Blackwell only, and "
            f"not on {_describe(target)}. Pad the smaller by zeros."
        )
    return None


def _wrong_target(target: Target) -> str | None:
    if target.platform is None:
        return None
    if target.platform != "cuda":
        return f"it runs on NVIDIA GPUs, and the program is compiled for {target.platform}."
    generation = _generation(target)
    if generation is not None and generation < AMPERE:
        return f"it needs Ampere or newer, and the program is compiled for {_describe(target)}."
    if target.partitioned:
        return (
            "XLA would gather all arrays on every device. Use shard_map over all axes of the mesh, "
            "or jit with Shardy."
        )
    version = cudnn_version()
    if version is not None and version < OLDEST:
        found = ".".join(map(str, (version // 10_000, version // 100 % 100, version % 100)))
        return f"it needs cuDNN 9.10.2 or newer, and the version that is installed is {found}."
    return None


def _generation(target: Target) -> int | None:
    return None if target.compute_capability is None else target.compute_capability[0]


def _describe(target: Target) -> str:
    if target.device is None:
        return "a GPU that is not known"
    if target.compute_capability is None:
        return f"{target.device}, whose compute capability is not known"
    major, minor = target.compute_capability
    return f"{target.device} (compute capability {major}.{minor})"
