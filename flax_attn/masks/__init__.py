"""Masks: who may see whom, as relations between the coordinates of queries and keys.

`mask(q, k)` is True where a query attends. Masks combine by `& | ^ ~`; `relation` makes one of a
function. Shapes: B batch, N query heads, T queries, S keys, nq and nk blocks of them. In equations
i is the query's position and j the key's.
"""

from flax_attn.masks._mask import Mask as Mask
from flax_attn.masks._mask import relation as relation
from flax_attn.masks.dense import Dense as Dense
from flax_attn.masks.dense import Selected as Selected
from flax_attn.masks.neighborhood import Neighborhood as Neighborhood
from flax_attn.masks.patterns import Chunked as Chunked
from flax_attn.masks.patterns import Dilated as Dilated
from flax_attn.masks.patterns import Strided as Strided
from flax_attn.masks.plan import Plan as Plan
from flax_attn.masks.plan import make_plan as make_plan
from flax_attn.masks.positional import Causal as Causal
from flax_attn.masks.positional import Empty as Empty
from flax_attn.masks.positional import Full as Full
from flax_attn.masks.positional import Prefix as Prefix
from flax_attn.masks.positional import Window as Window
from flax_attn.masks.tokens import GlobalTokens as GlobalTokens
from flax_attn.masks.tokens import Interval as Interval
from flax_attn.masks.tokens import Overlay as Overlay
from flax_attn.masks.tokens import Padding as Padding
from flax_attn.masks.tokens import SameSegment as SameSegment
from flax_attn.masks.tokens import Tree as Tree
