"""timm beside a CPU build of PyTorch."""

import pytest
from torch_reference import torch

# timm imports torchvision, whose CUDA wheel registers these operators only where CUDA is, and fails
# at import where they are missing. The library must stay referenced.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor a, Tensor b, float t) -> Tensor")

timm = pytest.importorskip("timm", reason="timm is the reference of these parity tests")
