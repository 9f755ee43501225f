"""Copies of values and gradients, packed together in a few large pieces of memory."""

import math

import numpy as np
import torch

PIECE = 1 << 23
"""Bytes of one piece; what is larger than an eighth of it gets memory of its own."""

SMALL = 1 << 12
"""Up to so many bytes memory of its own costs less than a place in a piece."""

ALIGNMENT = 64
"""Every copy begins at a multiple of so many bytes: any number format may."""


class Copies:
    """Makes the copies of a watched step.

    Copies of middling size that live on, one here and one there between the step's own
    short-lived tensors, keep the allocator from giving those the same memory again in
    the next step: each step would touch fresh memory, which costs as much as the step.

    Args:
        most: up to how many entries of a tensor are kept, if these are not all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, values: torch.Tensor, *known: torch.Tensor | None) -> torch.Tensor:
        """Return a copy of a tensor; of a large one, of evenly spread entries.

        Args:
            values: any shape.
            known: earlier copies. One of them is returned if it is equal to the bit, so
                that a value that stays is held once, however often it is looked at.
        """
        found = values.detach()
        if found.numel() > self._most:
            found = found.reshape(-1)[:: math.ceil(found.numel() / self._most)]
        for copy in known:
            alike = copy is not None and copy.dtype == found.dtype
            if alike and torch.equal(copy, found):
                return copy
        return self._copy(found)

    def _copy(self, values: torch.Tensor) -> torch.Tensor:
        size = values.numel() * values.element_size()
        ordinary = values.device.type == "cpu" and values.layout == torch.strided
        if not ordinary or not SMALL < size <= PIECE // 8:
            return values.clone()
        if self._used + size > len(self._piece):
            # The full one is held by the copies in it, for as long as these are.
            # numpy asks for large pages where the system has them. Memory touched for
            # the first time costs most of a copy, and half of that with large pages.
            self._piece = torch.from_numpy(np.empty(PIECE, dtype=np.uint8))
            self._used = 0
        place = self._piece[self._used : self._used + size]
        self._used += math.ceil(size / ALIGNMENT) * ALIGNMENT
        return place.view(values.dtype).view(values.shape).copy_(values)
