"""The cross-covariance image transformer (XCiT).

El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021, arXiv:2106.09681.
Channels attend to channels, and convolutions mix neighbouring places. Finally, a class token
attends to all places, as in Touvron et al., "Going deeper with Image Transformers", ICCV 2021,
arXiv:2103.17239.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

import flax_attn.nnx
from flax_attn import positions
from vision_models.layers import BatchNorm, ConvStem, LayerNorm, LayerScale, check_images, conv
from vision_models.transformer import Mlp, with_class_token

EPSILON = 1e-6
WAVES = 32  # for each of the axes y and x
gelu = functools.partial(jax.nn.gelu, approximate=False)


class FourierPositions(nnx.Module):
    """A linear map of sines and cosines of the coordinates, which are scaled to 0 ... 2π."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(2 * WAVES, features, rngs=rngs)

    def __call__(self, height: int, width: int) -> jax.Array:
        """The positional encoding of a feature map: `[H, W, C]`."""
        y, x = (
            positions.sinusoidal(2 * math.pi / (size + EPSILON) * jnp.arange(1.0, size + 1), WAVES)
            for size in (height, width)
        )
        shape = (height, width, WAVES)
        y, x = jnp.broadcast_to(y[:, None], shape), jnp.broadcast_to(x[None], shape)
        return self.projection(jnp.concatenate([y, x], axis=-1))


class LocalInteraction(nnx.Module):
    """y = conv2(norm(GELU(conv1(x)))) with depthwise convolutions."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        depthwise = functools.partial(
            conv, features, features, 3, groups=features, use_bias=True, rngs=rngs
        )
        self.conv1 = depthwise()
        self.bn = BatchNorm(features, rngs=rngs)
        self.conv2 = depthwise()

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to the same."""
        return self.conv2(self.bn(gelu(self.conv1(x))))


class Block(nnx.Module):
    """Cross-covariance attention, local interaction, and an MLP."""

    def __init__(self, features: int, num_heads: int, *, rngs: nnx.Rngs):
        norm = functools.partial(LayerNorm, features, epsilon=EPSILON, rngs=rngs)
        self.norm1, self.scale1 = norm(), LayerScale(features)
        self.attention = flax_attn.nnx.CrossCovarianceAttention(
            features, num_heads=num_heads, use_bias=True, rngs=rngs
        )
        self.norm_local, self.scale_local = norm(), LayerScale(features)
        self.local = LocalInteraction(features, rngs=rngs)
        self.norm2, self.scale2 = norm(), LayerScale(features)
        self.mlp = Mlp(features, 4 * features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, H, W, C]` to the same."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        x = x + self.scale_local(self.local(self.norm_local(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class ClassBlock(nnx.Module):
    """The class token attends to all tokens.

    As in the released code, norm1 of each place is added to the place and the place is doubled, and
    in the last sum norm2 of the class token replaces the token (in sizes above nano, of every
    token).
    """

    def __init__(self, features: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(features, epsilon=EPSILON, rngs=rngs)
        self.attention = flax_attn.nnx.MultiHeadAttention(num_heads, features, rngs=rngs)
        self.scale1 = LayerScale(features)
        self.norm2 = LayerNorm(features, epsilon=EPSILON, rngs=rngs)
        self.mlp = Mlp(features, 4 * features, rngs=rngs)
        self.scale2 = LayerScale(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From `[B, 1 + H · W, C]`, the class token first, to the same."""
        y = self.norm1(x)
        y = jnp.concatenate([self.attention(y[:, :1], y), y[:, 1:]], axis=1)
        x = x + self.scale1(y)
        class_token = self.norm2(x[:, :1])
        class_token = class_token + self.scale2(self.mlp(class_token))
        return jnp.concatenate([class_token, 2 * x[:, 1:]], axis=1)


class CrossCovarianceTransformer(nnx.Module):
    """From images `[B, H, W, 3]` to logits `[B, num_classes]`, with patches of 16×16.

    Args:
      features: C, the width of a token.
      depth: Number of blocks before the class token is added.
      num_heads: N, of C / N channels each.
      num_classes: Number of logits.
      rngs: Keys for initialisation.
    """

    def __init__(
        self,
        features: int,
        depth: int,
        num_heads: int,
        *,
        num_classes: int = 1000,
        rngs: nnx.Rngs,
    ):
        widths = (3, features // 8, features // 4, features // 2, features)
        self.stem = ConvStem(widths, (3, 3, 3, 3), (2, 2, 2, 2), gelu, rngs=rngs)
        self.positions = FourierPositions(features, rngs=rngs)
        self.blocks = nnx.List([Block(features, num_heads, rngs=rngs) for _ in range(depth)])
        self.class_token = nnx.Param(jnp.zeros((1, 1, features)))
        self.class_blocks = nnx.List([ClassBlock(features, num_heads, rngs=rngs) for _ in range(2)])
        self.norm = LayerNorm(features, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of normalised images."""
        check_images(self, x)
        x = self.stem(x)
        x = x + self.positions(*x.shape[1:3])[None]
        for block in self.blocks:
            x = block(x)
        x = with_class_token(x, self.class_token[...])
        for block in self.class_blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))

    @property
    def timm_names(self) -> dict[str, str]:
        """The paths of our layers, by timm's names."""
        return {
            **{f"patch_embed.proj.{2 * i}.0": f"stem.convs.{i}" for i in range(4)},
            **{f"patch_embed.proj.{2 * i}.1": f"stem.norms.{i}" for i in range(4)},
            "pos_embed.token_projection": "positions.projection",
            "cls_token": "class_token",
            "cls_attn_blocks": "class_blocks",
            "local_mp": "local",
            "norm3": "norm_local",
            "gamma1": "scale1.gamma",
            "gamma2": "scale2.gamma",
            "gamma3": "scale_local.gamma",
            "attn.q": "attention.query",
            "attn.k": "attention.key",
            "attn.v": "attention.value",
            "attn.proj": "attention.out",
            "attn": "attention",
        }


xcit_nano = functools.partial(CrossCovarianceTransformer, 128, 12, 4)
