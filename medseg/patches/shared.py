"""Decoded volumes once per machine: memory without a name that all processes of a training read and fill."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.space.volume import Shape

Arrays = tuple[NDArray[Any], NDArray[Any]]
CAN_SHARE = hasattr(os, "memfd_create")
"""Whether this system has such memory: Linux has; elsewhere every process keeps volumes of its own."""

_ALIGNMENT = 64  # bytes, so that no array begins within a number


@dataclass
class SharedVolumes:
    """Room for the channels (float32) and the labels (int16) of every case, filled by whoever needs a case first.

    The memory is taken when it is written to, is not limited by ``/dev/shm``, and is gone with the last process that
    holds it, however that ends. Two processes that decode a case at once write the same numbers.

    Attributes:
        path: Where processes of the same user open it, as long as the one that made it lives.
        shapes: Voxels of each case.
        channels: Of an image.
        maps: Of labels, one beside the other.
    """

    path: str
    shapes: Mapping[str, Shape]
    channels: int
    maps: int = 1
    _mapped: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None}

    @classmethod
    def make(cls, shapes: Mapping[str, Shape], channels: int, maps: int = 1) -> SharedVolumes:
        """Room for some cases, which takes no memory yet."""
        memory = os.memfd_create("medseg-volumes")
        made = cls(f"/proc/{os.getpid()}/fd/{memory}", shapes, channels, maps)
        os.ftruncate(memory, made._places[1])
        return made

    def arrays(self, case: str, decode: Callable[[], Arrays]) -> Arrays:
        """Image ``(m, i, j, k)`` and labels ``(i, j, k)``, or maps of them, of a case, decoded if nobody has."""
        if self._mapped is None:
            self._mapped = np.memmap(self.path, np.uint8, "r+")
        shape, (number, start) = self.shapes[case], self._places[0][case]
        size = math.prod(shape)
        middle = start + 4 * self.channels * size
        image = self._mapped[start:middle].view(np.float32).reshape(self.channels, *shape)
        labels = self._mapped[middle : middle + 2 * self.maps * size].view(np.int16)
        labels = labels.reshape(shape if self.maps == 1 else (self.maps, *shape))
        if not self._mapped[number]:
            image[...], labels[...] = decode()
            self._mapped[number] = 1
        return image, labels

    @cached_property
    def _places(self) -> tuple[dict[str, tuple[int, int]], int]:
        """The number and the place of each case, behind a byte for each that says whether it is there; and the end."""
        places, end = {}, _aligned(len(self.shapes))
        for number, (case, shape) in enumerate(self.shapes.items()):
            places[case] = number, end
            end = _aligned(end + (4 * self.channels + 2 * self.maps) * math.prod(shape))
        return places, end


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
