"""What the modules share: what they say to those who know the NNX modules."""

import dataclasses
from typing import Any, Self

from flax import linen as nn


class Module(nn.Module):
    """`flax.linen.Module`, which says that it infers the channels of its input."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Refuse the arguments of the NNX module, and a normalisation that is made already."""
        fields = [
            field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")
        ]
        named_only = args and all(field.kw_only for field in fields)
        foreign = [
            name
            for name in ("in_features", "features", "rngs")
            if name in options and name not in {field.name for field in fields}
        ]
        if named_only or foreign:
            got = ", ".join([*map(repr, args), *(f"{name}=" for name in foreign)])
            raise TypeError(
                f"{cls.__name__}: options are passed by name, and the channels are inferred from "
                f"the input, got {got}. Write {cls.__name__}(); the keys go to init."
            )
        if isinstance(options.get("norm"), nn.Module):
            raise TypeError(
                f"{cls.__name__}: norm must make the normalisation, got one, "
                f"{type(options['norm']).__name__}. Pass the class, or "
                f"functools.partial(nn.BatchNorm, use_running_average=not train)."
            )
        return super().__new__(cls)
