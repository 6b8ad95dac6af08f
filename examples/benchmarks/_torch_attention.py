"""PyTorch's attention: the other side of a `Worker`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from _worker import State, serve

FUNCTIONS = ("torch", "flex")  # scaled_dot_product_attention, compiled flex_attention


class Attention(State):
    """The tensors of a case, in PyTorch's own layout [B, N, T, D], and the functions prepared."""

    def __init__(self, torch: Any) -> None:
        super().__init__()
        self.torch = torch

    def load(self, path: str, dtype: str, is_causal: bool, window: int | None) -> None:
        torch = self.torch
        with np.load(path) as inputs:
            arrays = dict(inputs)
        ids = arrays.pop("segment_ids", None)
        self.tensors = {
            name: torch.from_numpy(x).to(getattr(torch, dtype)).transpose(1, 2).contiguous()
            for name, x in arrays.items()
        }
        self.is_causal, self.window = is_causal, window
        self.mask = None
        if window is not None or ids is not None:  # it knows of neither: dense, and built here
            length = self.tensors["query"].shape[2]
            tokens = torch.arange(length)
            self.mask = self.sees(tokens[:, None], tokens)
            if ids is not None:
                ids = torch.from_numpy(ids)
                same = ids[:, None, :, None] == ids[:, None, None, :]
                self.mask = same & self.mask

    def sees(self, i: Any, j: Any) -> Any:
        """Whether query i sees key j, apart from documents."""
        visible = i >= j if self.is_causal else i == i
        return visible if self.window is None else visible & (i - j <= self.window)

    def prepare(self, function: str, backward: bool, path: str) -> None:
        torch = self.torch
        attend = {"torch": self.dot_product, "flex": self.flex}[function]()
        names = ("query", "key", "value")
        moving = [self.tensors[n].clone().requires_grad_(backward) for n in names]

        def program() -> list[Any]:
            if not backward:
                with torch.no_grad():
                    return [attend(*moving)]
            for x in moving:
                x.grad = None
            output = attend(*moving)
            output.backward(self.tensors["cotangent"])
            return [output, *(x.grad for x in moving)]

        program()
        results = [x.detach().float().transpose(1, 2).numpy() for x in program()]
        np.savez(path, *results)
        self.programs[function] = program

    def dot_product(self) -> Callable[..., Any]:
        grouped = self.tensors["query"].shape[1] != self.tensors["key"].shape[1]

        def attend(query: Any, key: Any, value: Any) -> Any:
            return self.torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=self.mask,
                is_causal=self.is_causal and self.mask is None,
                enable_gqa=grouped,
            )

        return attend

    def flex(self) -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.torch._dynamo.reset()  # else it gives up after a number of shapes
        length = self.tensors["query"].shape[2]
        block_mask = create_block_mask(
            lambda b, h, i, j: self.sees(i, j), None, None, length, length, device="cpu"
        )
        compiled = self.torch.compile(flex_attention, dynamic=False)
        return lambda query, key, value: compiled(query, key, value, block_mask=block_mask)


if __name__ == "__main__":
    serve(Attention)
