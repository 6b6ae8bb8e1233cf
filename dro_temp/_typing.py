"""Shape aliases: `n` rows, `m` outcomes in a row's support, `d` features."""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Scores: TypeAlias = Float[Tensor, "n m"]
Mask: TypeAlias = Bool[Tensor, "n m"]
PerRow: TypeAlias = Float[Tensor, "n"]
RowMask: TypeAlias = Bool[Tensor, "n"]
RowIndex: TypeAlias = Int[Tensor, "n"]
Features: TypeAlias = Float[Tensor, "n d"]
Scalar: TypeAlias = Float[Tensor, ""]
