"""Weights averaged over the steps, which are validated and kept in place of those that are trained."""

from __future__ import annotations

import warnings

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """Lightning's averaged weights as a moving average, which also come whole out of a validation that is broken off.

    After t steps the decay is ``decay`` or (1 + t) / (10 + t), whichever is less: a training that is shorter than the
    memory of its average would otherwise be judged by the weights it began with. The count of steps is in the
    checkpoint, so that a resumed run goes on alike.

    While a validation runs, the averages are in the network and the trained weights wait in their place. Whatever is
    written after it was broken off must have them the right way round again.

    Args:
        decay: Per step, in [0, 1).
    """

    _swapped = False

    def __init__(self, decay: float) -> None:
        @torch.no_grad()
        def follow(averages: list[Tensor], weights: list[Tensor], steps: Tensor | int) -> None:
            kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
            for average, weight in zip(averages, weights, strict=True):
                if average.is_floating_point():
                    average.lerp_(weight, 1 - kept)
                else:  # a counter of batches
                    average.copy_(weight)

        super().__init__(multi_avg_fn=follow)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the weights; that sharded ones come whole is no news."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*overrides the configure_model.*")
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages into the network."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._swapped = False
        super().on_validation_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, before anybody writes a checkpoint."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)
