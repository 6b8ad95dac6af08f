"""Makes torchvision importable beside a CPU build of PyTorch, for timm and transformers."""

from torch_reference import torch

# torchvision's CUDA wheel registers these operators only where CUDA is, and fails at import where
# they are missing. The library must stay referenced.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor a, Tensor b, float t) -> Tensor")
