"""The vision mechanisms in float64 NumPy, from the papers' equations.

Each takes an image `[N, H, W, C]` (and its other inputs, if it has any) and the parameter tree of
the module, statistics included, as nested dictionaries, and nothing of the library.
"""

from tests.oracles.vision._layers import conv2d as conv2d
from tests.oracles.vision._layers import hard_swish as hard_swish
from tests.oracles.vision._layers import linear as linear
from tests.oracles.vision._layers import norm as norm
from tests.oracles.vision._layers import relu as relu
from tests.oracles.vision._layers import sigmoid as sigmoid
from tests.oracles.vision._layers import softmax as softmax
from tests.oracles.vision.gates import bam as bam
from tests.oracles.vision.gates import cbam as cbam
from tests.oracles.vision.gates import channel_attention as channel_attention
from tests.oracles.vision.gates import coordinate_attention as coordinate_attention
from tests.oracles.vision.gates import eca as eca
from tests.oracles.vision.gates import simam as simam
from tests.oracles.vision.gates import spatial_attention as spatial_attention
from tests.oracles.vision.gates import squeeze_excite as squeeze_excite
