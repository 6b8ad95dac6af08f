"""PyTorch's vision attention, as its users write it: the other side of a `Worker`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _rounds import burst
from _worker import State, serve

FORMS = ("nchw", "channels_last", "compiled")
NAMES = (
    "squeeze_excite",
    "eca",
    "global_context",
    "simam",
    "coordinate_attention",
    "channel_attention",
    "spatial_attention",
    "cbam",
)

Weights = Mapping[str, Any]


class Mechanisms:
    """Each takes an image [B, C, H, W] and weights by the names of our modules, as PyTorch's."""

    def __init__(self, torch: Any) -> None:
        self.torch, self.f = torch, torch.nn.functional

    def pointwise(self, x: Any, w: Weights, name: str) -> Any:
        return self.f.conv2d(x, w[f"{name}.kernel"], w.get(f"{name}.bias"))

    def squeeze_excite(self, x: Any, w: Weights) -> Any:
        s = self.f.relu(self.pointwise(x.mean((2, 3), keepdim=True), w, "reduce"))
        return x * self.pointwise(s, w, "expand").sigmoid()

    def eca(self, x: Any, w: Weights) -> Any:
        s = x.mean((2, 3)).unsqueeze(1)
        kernel = w["conv.kernel"]
        s = self.f.conv1d(s, kernel, padding=kernel.shape[-1] // 2)
        return x * s.sigmoid().transpose(1, 2).unsqueeze(-1)

    def global_context(self, x: Any, w: Weights) -> Any:
        weights = self.pointwise(x, w, "score").flatten(2).softmax(-1)
        context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)
        hidden = self.pointwise(context, w, "reduce")
        shape = hidden.shape
        scale, bias = w["norm.scale"], w["norm.bias"]
        hidden = self.f.layer_norm(hidden.flatten(1), shape[1:2], scale, bias).view(shape)
        return x + self.pointwise(self.f.relu(hidden), w, "expand")

    def simam(self, x: Any, w: Weights) -> Any:
        places = x.shape[2] * x.shape[3]
        d = (x - x.mean((2, 3), keepdim=True)).pow(2)
        v = d.sum((2, 3), keepdim=True) / (places - 1)
        return x * (d / (4 * (v + 1e-4)) + 0.5).sigmoid()

    def coordinate_attention(self, x: Any, w: Weights) -> Any:
        height, width = x.shape[2:]
        strips = [x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)]
        y = self.pointwise(self.torch.cat(strips, dim=2), w, "reduce")
        norm = [w[f"norm.{n}"] for n in ("mean", "var", "scale", "bias")]
        y = self.f.hardswish(self.f.batch_norm(y, *norm))
        rows, columns = y.split([height, width], dim=2)
        rows = self.pointwise(rows, w, "expand_height").sigmoid()
        columns = self.pointwise(columns.permute(0, 1, 3, 2), w, "expand_width").sigmoid()
        return x * rows * columns

    def channel_attention(self, x: Any, w: Weights) -> Any:
        def perceptron(s: Any) -> Any:
            return self.pointwise(self.f.relu(self.pointwise(s, w, "reduce")), w, "expand")

        pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return x * (perceptron(pooled[0]) + perceptron(pooled[1])).sigmoid()

    def spatial_attention(self, x: Any, w: Weights) -> Any:
        pooled = self.torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        kernel = w["conv.kernel"]
        return x * self.f.conv2d(pooled, kernel, padding=kernel.shape[-1] // 2).sigmoid()

    def cbam(self, x: Any, w: Weights) -> Any:
        x = self.channel_attention(x, of(w, "channel"))
        return self.spatial_attention(x, of(w, "spatial"))


def of(weights: Weights, owner: str) -> Weights:
    start = f"{owner}."
    return {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}


def in_torch_layout(name: str, weight: np.ndarray) -> np.ndarray:
    """(*k, I, O) -> (O, I, *k), where a pointwise kernel has k = (1, 1)."""
    if not name.endswith("kernel"):
        return weight
    spatial = weight.ndim - 2
    weight = weight.transpose(-1, -2, *range(spatial))
    return weight if spatial else weight[..., None, None]


class Vision(State):
    """The image, the cotangent and the weights of several modules in turn."""

    def __init__(self, torch: Any) -> None:
        super().__init__()
        self.torch = torch

    def load(self, path: str, dtype: str, name: str, count: int) -> None:
        with np.load(path) as inputs:
            arrays = dict(inputs)
        tensor = functools.partial(self.torch.tensor, dtype=getattr(self.torch, dtype))
        self.images = {n: tensor(arrays.pop(n)).permute(0, 3, 1, 2) for n in ("x", "cotangent")}
        stored = {n: tensor(in_torch_layout(n, w)) for n, w in arrays.items()}
        self.weights = [of(stored, str(i)) for i in range(count)]
        self.mechanism = getattr(Mechanisms(self.torch), name)

    def prepare(self, function: str, backward: bool, path: str) -> None:
        torch = self.torch
        layout = torch.contiguous_format if function == "nchw" else torch.channels_last
        x, cotangent = (
            self.images[n].clone(memory_format=layout).requires_grad_(backward and n == "x")
            for n in ("x", "cotangent")
        )
        statistics = ("mean", "var")
        weights = [
            {
                n: w.clone().requires_grad_(backward and not n.endswith(statistics))
                for n, w in one.items()
            }
            for one in self.weights
        ]
        moving = [x, *(w for one in weights for w in one.values() if w.requires_grad)]

        def whole(x: Any) -> Any:
            for one in weights:
                x = self.mechanism(x, one)
            return x

        forward: Callable[[Any], Any] = whole
        if function == "compiled":
            torch._dynamo.reset()
            forward = torch.compile(whole, dynamic=False)

        def program() -> list[Any]:
            if not backward:
                with torch.no_grad():
                    return [forward(x)]
            for leaf in moving:
                leaf.grad = None
            y = forward(x)
            y.backward(cotangent)
            return [y, x.grad]

        program()
        results = [y.detach().float().permute(0, 2, 3, 1).numpy() for y in program()]
        np.savez(path, *results)
        self.programs[function] = program

    def call(self, function: str) -> dict[str, float]:
        return {"seconds": burst(self.programs[function])}


if __name__ == "__main__":
    serve(Vision)
