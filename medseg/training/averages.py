"""Weights averaged over the steps, which are validated and kept in place of those that are trained."""

from __future__ import annotations

import warnings

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Lightning's moving average, which also comes whole out of a validation that is broken off.

    While a validation runs, the averages are in the network and the trained weights wait in their place. Whatever is
    written after it was broken off must have them the right way round again.
    """

    _swapped = False

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
