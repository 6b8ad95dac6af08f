"""Convolutions of channel groups, as several convolutions without groups.

XLA for CPUs computes the gradient of a grouped kernel in a loop over single numbers. A convolution
of 16 groups takes 58 times as long as the rewrite with gradients (jaxlib 0.12.0; 108 times with
0.10.2), and 2 to 4 times without. The selective kernel is 2.4 times as fast with the rewrite, 80
times with gradients; split attention 2 times and 2.4 to 3.9 times.

On several devices the rewrite serves all platforms: for a grouped convolution XLA gathers the whole
batch on each device, for one without groups it keeps the batch divided (seen up to jaxlib 0.12.0,
openxla/xla#47945).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from flax_attn._cpu.rewrites import Convolution, Function, choose_on_cpus, split_axes
from flax_attn._devices import devices_dependent

BLOCK = 32  # channels; narrower groups are cheaper as one convolution


@dataclasses.dataclass(frozen=True)
class Groups:
    """A grouped convolution as convolutions of blocks of groups.

    Groups of less than `BLOCK` channels are joined to blocks. The kernel of a block is zero between
    its groups.
    """

    convolution: Convolution

    def choose(self, plain: Function, rewritten: Function) -> Function:
        elsewhere = functools.partial(devices_dependent, one=plain, several=rewritten)
        return choose_on_cpus(elsewhere, rewritten)

    def value(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = self.convolution.layout(image, kernel)
        groups = self.convolution.feature_group_count
        width = kernel.shape[layout.rhs_spec[1]]
        joined = next(
            n
            for n in range(1, groups + 1)
            if groups % n == 0 and (n * width >= BLOCK or n == groups)
        )
        without_groups = self.convolution._replace(feature_group_count=1)
        blocks = [
            without_groups.plain(channels, _block_diagonal(joined, layout.rhs_spec, kernels))
            for channels, kernels in zip(
                jnp.split(image, groups // joined, axis=layout.lhs_spec[1]),
                jnp.split(kernel, groups // joined, axis=layout.rhs_spec[0]),
                strict=True,
            )
        ]
        return jnp.concatenate(blocks, axis=layout.out_spec[1])

    def by_image(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        return self.value(image, kernel)

    def by_kernel(self, image: jax.Array, kernel: jax.Array) -> jax.Array:
        return self.value(image, kernel)


def rewrite_groups(convolution: Convolution, image: jax.Array, kernel: jax.Array) -> Groups | None:
    """The rewrite, for a convolution of several groups that is not depthwise."""
    layout = convolution.layout(image, kernel)
    groups = convolution.feature_group_count
    out, width = (kernel.shape[axis] for axis in layout.rhs_spec[:2])
    _, channels, *space = layout.lhs_spec
    grouped = groups > 1 and (width > 1 or out > groups)
    return Groups(convolution) if grouped and not split_axes(image) & {channels, *space} else None


def _block_diagonal(groups: int, spec: Sequence[int], kernel: jax.Array) -> jax.Array:
    """The kernel of one group that equals a kernel of several: zero between groups."""
    out, width = spec[:2]
    repeated = jnp.concatenate([kernel] * groups, axis=width)
    index = functools.partial(lax.broadcasted_iota, jnp.int32, repeated.shape)
    input_group = index(width) // kernel.shape[width]
    output_group = index(out) // (kernel.shape[out] // groups)
    return jnp.where(input_group == output_group, repeated, 0)
