"""timm beside a CPU build of PyTorch."""

import pytest
import torchvision_operators  # noqa: F401  before timm, which imports torchvision

timm = pytest.importorskip("timm", reason="timm is the reference of these parity tests")
