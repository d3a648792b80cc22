"""The tensor vocabulary: shapes that cross rooms, named once and checked under pytest.

Axes: ``b`` samples of a batch, ``m`` modalities, ``c`` classes, ``*space`` two or three spatial axes (i, j[, k]).
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Integer
from torch import Tensor

Image = Float[Tensor, "b m *space"]
"""Normalised intensities, one channel per modality."""

Labels = Integer[Tensor, "b *space"]
"""Class indices (0 is background), not the values stored in a file."""

Logits = Float[Tensor, "b c *space"]
"""Raw network outputs, before softmax or sigmoid."""

Levels = tuple[Float[Tensor, "b c ..."], ...]
"""Logits at every level of deep supervision, the finest first, each on its own grid."""

Probabilities = Float[Tensor, "b c *space"]
"""Activated logits in [0, 1]."""

PerClass = Float[Tensor, "b c"]
"""One value per sample and class."""

PerSample = Float[Tensor, " b"]
"""One value per sample."""

PerVoxel = Float[Tensor, "b *space"]
"""One value per sample and voxel."""

Mask = Bool[Tensor, "b *space"]
"""True where a voxel counts."""
