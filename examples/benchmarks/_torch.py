"""The PyTorch side of the benchmarks, written as PyTorch's users write it."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from _cases import Case
from _harness import num_cores

torch.set_num_threads(num_cores())
Weights = Mapping[str, torch.Tensor]
QKV = ("query", "key", "value")


def torch_program(
    function: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    cotangent: torch.Tensor | None,
    axes: tuple[int, ...],
    weights: Iterable[torch.Tensor] = (),
) -> Callable[[], list[torch.Tensor]]:
    """The output and, if there is a cotangent, the gradients of the inputs.

    The gradients of the weights are computed, too. `axes` permutes results to the layout of JAX.
    """
    moving = [] if cotangent is None else [x.requires_grad_() for x in (*inputs, *weights)]

    def program() -> list[torch.Tensor]:
        if cotangent is None:
            with torch.no_grad():
                return [function(*inputs).permute(axes)]
        for x in moving:
            x.grad = None
        output = function(*inputs)
        output.backward(cotangent)
        return [x.permute(axes) for x in (output, *(x.grad for x in inputs))]

    return program


# ------------------------------------------------------------------------------ attention


def attention(
    library: str, case: Case, inputs: Mapping[str, np.ndarray], dtype: str, work: str
) -> Callable[[], list[torch.Tensor]]:
    """`"torch"`, scaled_dot_product_attention; or `"flex"`, compiled flex_attention."""
    tensors = {
        name: torch.from_numpy(inputs[name]).to(getattr(torch, dtype)).transpose(1, 2).contiguous()
        for name in (*QKV, "cotangent")
    }

    def sees(i: Any, j: Any) -> Any:
        visible = i >= j if case.is_causal else i == i
        return visible if case.window is None else visible & (i - j <= case.window)

    length = tensors["query"].shape[2]
    if library == "flex":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch._dynamo.reset()  # otherwise it stops compiling after a number of shapes
        blocks = create_block_mask(
            lambda b, h, i, j: sees(i, j), None, None, length, length, device="cpu"
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        attend = functools.partial(compiled, block_mask=blocks)
    else:
        mask = None
        if case.window is not None or case.documents:  # these need a dense mask, made beforehand
            mask = sees(torch.arange(length)[:, None], torch.arange(length))
        if case.documents:
            ids = torch.from_numpy(inputs["segment_ids"])
            mask = mask & (ids[:, None, :, None] == ids[:, None, None, :])
        attend = functools.partial(
            F.scaled_dot_product_attention,
            attn_mask=mask,
            is_causal=case.is_causal and mask is None,
            enable_gqa=tensors["query"].shape[1] != tensors["key"].shape[1],
        )
    cotangent = tensors["cotangent"] if work == "fwd+bwd" else None
    return torch_program(attend, [tensors[n] for n in QKV], cotangent, (0, 2, 1, 3))


# ------------------------------------------------------------------------------ vision
# Functions of an image [B, C, H, W] and of weights by the names of our modules.


def pointwise(x: torch.Tensor, w: Weights, name: str) -> torch.Tensor:
    return F.conv2d(x, w[f"{name}.kernel"], w.get(f"{name}.bias"))


def squeeze_excite(x: torch.Tensor, w: Weights) -> torch.Tensor:
    s = F.relu(pointwise(x.mean((2, 3), keepdim=True), w, "reduce"))
    return x * pointwise(s, w, "expand").sigmoid()


def eca(x: torch.Tensor, w: Weights) -> torch.Tensor:
    kernel = w["conv.kernel"]
    s = F.conv1d(x.mean((2, 3)).unsqueeze(1), kernel, padding=kernel.shape[-1] // 2)
    return x * s.sigmoid().transpose(1, 2).unsqueeze(-1)


def global_context(x: torch.Tensor, w: Weights) -> torch.Tensor:
    weights = pointwise(x, w, "score").flatten(2).softmax(-1)
    context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)
    hidden = pointwise(context, w, "reduce")
    shape, scale, bias = hidden.shape, w["norm.scale"], w["norm.bias"]
    hidden = F.layer_norm(hidden.flatten(1), shape[1:2], scale, bias).view(shape)
    return x + pointwise(F.relu(hidden), w, "expand")


def simam(x: torch.Tensor, w: Weights) -> torch.Tensor:
    d = (x - x.mean((2, 3), keepdim=True)).pow(2)
    v = d.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return x * (d / (4 * (v + 1e-4)) + 0.5).sigmoid()


def coordinate_attention(x: torch.Tensor, w: Weights) -> torch.Tensor:
    strips = [x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)]
    y = pointwise(torch.cat(strips, dim=2), w, "reduce")
    norm = [w[f"norm.{n}"] for n in ("mean", "var", "scale", "bias")]
    rows, columns = F.hardswish(F.batch_norm(y, *norm)).split(list(x.shape[2:]), dim=2)
    rows = pointwise(rows, w, "expand_height").sigmoid()
    return x * rows * pointwise(columns.permute(0, 1, 3, 2), w, "expand_width").sigmoid()


def channel_attention(x: torch.Tensor, w: Weights) -> torch.Tensor:
    pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    mean, peak = (pointwise(F.relu(pointwise(s, w, "reduce")), w, "expand") for s in pooled)
    return x * (mean + peak).sigmoid()


def spatial_attention(x: torch.Tensor, w: Weights) -> torch.Tensor:
    pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
    kernel = w["conv.kernel"]
    return x * F.conv2d(pooled, kernel, padding=kernel.shape[-1] // 2).sigmoid()


def cbam(x: torch.Tensor, w: Weights) -> torch.Tensor:
    return spatial_attention(channel_attention(x, part(w, "channel")), part(w, "spatial"))


def part(weights: Weights, owner: str) -> dict[str, torch.Tensor]:
    """The weights of one submodule."""
    start = f"{owner}."
    return {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}


def vision(
    form: str,
    mechanism: str,
    images: list[np.ndarray],
    weights: list[dict[str, np.ndarray]],
    dtype: str,
    work: str,
) -> Callable[[], list[torch.Tensor]]:
    """A mechanism several times in turn; `form` is "nchw", "channels_last" or "compiled"."""
    layout = torch.contiguous_format if form == "nchw" else torch.channels_last
    tensor = functools.partial(torch.tensor, dtype=getattr(torch, dtype))
    x, cotangent = (tensor(a).permute(0, 3, 1, 2).clone(memory_format=layout) for a in images)
    function: Callable[..., torch.Tensor] = globals()[mechanism]
    modules = [{n: tensor(in_torch_layout(n, w)) for n, w in one.items()} for one in weights]
    learned = [w for one in modules for n, w in one.items() if not n.endswith(("mean", "var"))]

    def forward(x: torch.Tensor) -> torch.Tensor:
        for one in modules:
            x = function(x, one)
        return x

    if form == "compiled":
        torch._dynamo.reset()
        forward = torch.compile(forward, dynamic=False)
    given = cotangent if work == "fwd+bwd" else None
    return torch_program(forward, [x], given, (0, 2, 3, 1), learned)


def in_torch_layout(name: str, weight: np.ndarray) -> np.ndarray:
    """(*k, I, O) -> (O, I, *k), where a pointwise kernel has k = (1, 1)."""
    if not name.endswith("kernel"):
        return weight
    spatial = weight.ndim - 2
    weight = weight.transpose(-1, -2, *range(spatial))
    return weight if spatial else weight[..., None, None]
