"""The mechanisms as PyTorch modules, written from their formulas: NCHW images, PyTorch's layers.

The layers bear our parameters' names, so that one walk over a module converts its weights.
"""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the reference of these parity tests")
from torch import nn  # noqa: E402

torch.set_num_threads(1)


def global_mean(x):
    return x.mean(dim=(2, 3), keepdim=True)


def global_max(x):
    return x.amax(dim=(2, 3), keepdim=True)  # like jnp.max, amax splits the gradient over ties


class SqueezeExcite(nn.Module):
    """g = σ(expand(ReLU(reduce(mean x)))), y = g ⊙ x, by 1×1 convolutions or linear layers."""

    def __init__(self, channels, reduction=4, bias=False, linear=False):
        super().__init__()
        layer = nn.Linear if linear else lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias)
        self.reduce = layer(channels, channels // reduction, bias=bias)
        self.expand = layer(channels // reduction, channels, bias=bias)
        self.linear = linear

    def forward(self, x):
        z = global_mean(x)
        z = z.flatten(1) if self.linear else z
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(z))))
        return x * gate.reshape(*x.shape[:2], 1, 1)


class ChannelAttention(nn.Module):
    """g = σ(f(mean x) + f(max x)), y = g ⊙ x."""

    def __init__(self, channels, reduction=4, bias=False):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // reduction, 1, bias=bias)
        self.expand = nn.Conv2d(channels // reduction, channels, 1, bias=bias)

    def forward(self, x):
        def f(z):
            return self.expand(torch.relu(self.reduce(z)))

        return x * torch.sigmoid(f(global_mean(x)) + f(global_max(x)))


class SpatialAttention(nn.Module):
    """g = σ(norm(conv([mean_C x; max_C x]))), y = g ⊙ x."""

    def __init__(self, kernel_size=3, norm=False, max_first=False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        if norm:
            self.norm = nn.BatchNorm2d(1)
        self.max_first = max_first

    def forward(self, x):
        pooled = [x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)]
        mixed = self.conv(torch.cat(pooled[::-1] if self.max_first else pooled, dim=1))
        return x * torch.sigmoid(self.norm(mixed) if hasattr(self, "norm") else mixed)


class CBAM(nn.Module):
    """Channel attention, then spatial attention."""

    def __init__(self, channels, reduction=4, kernel_size=3, bias=False, **spatial):
        super().__init__()
        self.channel = ChannelAttention(channels, reduction, bias)
        self.spatial = SpatialAttention(kernel_size, **spatial)

    def forward(self, x):
        return self.spatial(self.channel(x))


class ECA(nn.Module):
    """g = σ(conv_k(mean x)) along the channels, y = g ⊙ x; k = |(log₂ C + 1) / 2|_odd."""

    def __init__(self, channels, kernel_size=None):
        super().__init__()
        if kernel_size is None:
            kernel_size = int(abs((math.log2(channels) + 1) / 2))
            kernel_size += kernel_size % 2 == 0
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x):
        z = x.mean(dim=(2, 3))
        return x * torch.sigmoid(self.conv(z[:, None, :]))[:, 0, :, None, None]


class CoordinateAttention(nn.Module):
    """f = δ(norm(reduce([mean_W x; mean_H x]))), y = x ⊙ σ(expand_h f_h) ⊙ σ(expand_w f_w)."""

    def __init__(self, channels, reduction=32, min_features=8):
        super().__init__()
        hidden = max(min_features, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.BatchNorm2d(hidden)
        self.expand_height = nn.Conv2d(hidden, channels, 1)
        self.expand_width = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        rows = x.mean(dim=3, keepdim=True)
        columns = x.mean(dim=2, keepdim=True).transpose(2, 3)
        f = self.norm(self.reduce(torch.cat([rows, columns], dim=2)))
        f_rows, f_columns = nn.functional.hardswish(f).split(x.shape[2:], dim=2)
        height = torch.sigmoid(self.expand_height(f_rows))
        width = torch.sigmoid(self.expand_width(f_columns.transpose(2, 3)))
        return x * height * width


class BAM(nn.Module):
    """y = x ⊙ (1 + σ(M_c + M_s)), or M_c · M_s as in the released code."""

    def __init__(self, channels, reduction=16, dilation=4, combine="add"):
        super().__init__()
        hidden = channels // reduction
        self.reduce = nn.Linear(channels, hidden)
        self.reduce_norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Linear(hidden, channels)
        dilated = {"padding": dilation, "dilation": dilation}
        self.conv_0 = nn.Conv2d(channels, hidden, 1)
        self.conv_norm_0 = nn.BatchNorm2d(hidden)
        self.conv_1 = nn.Conv2d(hidden, hidden, 3, **dilated)
        self.conv_norm_1 = nn.BatchNorm2d(hidden)
        self.conv_2 = nn.Conv2d(hidden, hidden, 3, **dilated)
        self.conv_norm_2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, 1, 1)
        self.combine = combine

    def forward(self, x):
        channel = self.expand(torch.relu(self.reduce_norm(self.reduce(x.mean(dim=(2, 3))))))
        channel = channel[:, :, None, None]
        u = torch.relu(self.conv_norm_0(self.conv_0(x)))
        u = torch.relu(self.conv_norm_1(self.conv_1(u)))
        u = torch.relu(self.conv_norm_2(self.conv_2(u)))
        spatial = self.project(u)
        joined = channel + spatial if self.combine == "add" else channel * spatial
        return x * (1 + torch.sigmoid(joined))


class SimAM(nn.Module):
    """d = (x − mean x)², v = Σ d / (H W − 1), y = x ⊙ σ(d / (4 (v + λ)) + ½)."""

    def __init__(self, e_lambda=1e-4):
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x):
        d = (x - global_mean(x)).square()
        v = d.sum(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * torch.sigmoid(d / (4 * (v + self.e_lambda)) + 0.5)


def attention(query, key, value, *, bias=None, allowed=None, scale=None):
    """softmax(scale · q kᵀ + bias) v and its LSE on [B, N, T, D], by two matrix products.

    Grouped heads repeat their keys and values. A query that may see no key gives 0.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-1, -2) * scale
    scores = scores if bias is None else scores + bias
    if allowed is None:
        return torch.softmax(scores, dim=-1) @ value, torch.logsumexp(scores, dim=-1)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1) * allowed
    lse = torch.logsumexp(scores, dim=-1).masked_fill(~allowed.any(dim=-1), -math.inf)
    return weights @ value, lse


class MultiHeadAttention(nn.Module):
    """The tutorial's: d_k, d_v, the widths of the three inputs and of the output are all free."""

    def __init__(self, num_heads, widths, d_k, d_v, out_width, *, bias=True, num_kv_heads=None):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.query = nn.Linear(widths[0], num_heads * d_k, bias=bias)
        self.key = nn.Linear(widths[1], num_kv_heads * d_k, bias=bias)
        self.value = nn.Linear(widths[2], num_kv_heads * d_v, bias=bias)
        self.out = nn.Linear(num_heads * d_v, out_width, bias=bias)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads

    def forward(self, inputs_q, inputs_k, inputs_v, allowed=None):
        def split(projected, heads):  # [B, T, N · D] -> [B, N, T, D]
            return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

        query = split(self.query(inputs_q), self.num_heads)
        key = split(self.key(inputs_k), self.num_kv_heads)
        value = split(self.value(inputs_v), self.num_kv_heads)
        heads, _ = attention(query, key, value, allowed=allowed)
        return self.out(heads.transpose(1, 2).flatten(2))


class AdditiveAttention(nn.Module):
    """p = softmax(w · tanh(W_q q + W_k k)), o = p v."""

    def __init__(self, query_width, key_width, hidden):
        super().__init__()
        self.query = nn.Linear(query_width, hidden, bias=False)
        self.key = nn.Linear(key_width, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, query, key, value, allowed=None):
        hidden = torch.tanh(self.query(query)[:, :, None] + self.key(key)[:, None])
        scores = self.score(hidden)[..., 0]
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        return torch.softmax(scores, dim=-1) @ value


def randomize(module, seed=0):
    """Every weight and every statistic random, in float64.

    With the usual initial values (norms of 1 and 0, zero biases, zero last gains) much of a module
    is idle, and a parity test of it proves nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like, deviation):
        return deviation * torch.randn(like.shape, generator=generator, dtype=torch.float64)

    def uniform(like):
        return 0.75 + 0.5 * torch.rand(like.shape, generator=generator, dtype=torch.float64)

    module = module.double()
    with torch.no_grad():
        for layer in module.modules():
            is_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            for name, weight in layer.named_parameters(recurse=False):
                if is_norm and name == "weight":
                    weight.copy_(uniform(weight))
                elif weight.ndim > 1:
                    weight.copy_(normal(weight, weight[0].numel() ** -0.5))
                else:
                    weight.copy_(normal(weight, 0.1))
            if is_norm:
                layer.running_mean.copy_(normal(layer.running_mean, 0.1))
                layer.running_var.copy_(uniform(layer.running_var))
    return module


def keep_biased_variance(module):
    """Let batch normalisation keep the biased running variance, as Flax does.

    PyTorch normalises by the biased variance of the batch, but averages the unbiased one: for n
    values per channel n / (n − 1) times as large, plainly visible where pooled vectors are
    normalised.
    """
    before = {}

    def remember(layer, args):
        before[layer] = layer.running_var.clone()

    def rescale(layer, args, output):
        if layer.training:
            count = output.numel() // output.shape[1]
            kept = (1 - layer.momentum) * before[layer]
            layer.running_var = kept + (layer.running_var - kept) * (count - 1) / count

    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(remember)
            layer.register_forward_hook(rescale)
    return module
