"""Weights averaged over the steps, which are validated and kept in place of those that are trained."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medseg.training.lightning import follow_all


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
        super().__init__()
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the weights; sharded ones are refused by the task."""
        if stage == "fit":
            self._average_model = _Averages(pl_module, trainer.strategy.root_device, self.decay)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with both; the averages are what is judged, where no training goes on."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a training, put the averages into the network; after it they are there."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        if self._swapped:
            self._swapped = False
            super().on_validation_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back, before anybody writes a checkpoint."""
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)


class _Averages(AveragedModel):
    """The average, brought up to date by a few calls for all weights, without a look at the device."""

    def __init__(self, model: LightningModule, device: torch.device, decay: float) -> None:
        super().__init__(model, device=device, use_buffers=True)  # type: ignore[arg-type]  # its own hint
        self.decay = decay
        self.n_averaged = self.n_averaged.cpu()  # or every step would wait for a GPU to tell it

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow; the first time, and the counters of batches always, to the same values."""
        steps = int(self.n_averaged)
        kept = min(self.decay, (1 + steps) / (10 + steps))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for average, weight in zip(_tensors(self.module), _tensors(model), strict=True):
            if steps and average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        follow_all(averages, weights, 1 - kept)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
