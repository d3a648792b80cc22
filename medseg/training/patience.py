"""Early stopping that says so, and that a run can go on after."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping

from medseg.errors import UsageError


class StopEarly(EarlyStopping):
    """Stops after so many validations without a better ``val/dice``.

    It decides as soon as a validation is over, before the checkpoint is written, so that a resumed run counts on.

    Args:
        patience: How many.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/dice", mode="max", patience=patience, check_on_train_epoch_end=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to wait for what never comes.

        Raises:
            UsageError: There will be no validation.
        """
        if trainer.limit_val_batches == 0:
            raise UsageError(
                "model.patience waits for a better val/dice, but trainer.limit_val_batches 0 validates nothing",
                "Leave one of the two out",
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide; say it."""
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.should_stop and not trainer.sanity_checking:
            rank_zero_info(
                f"training stops early: val/dice was not above {float(self.best_score):.4f} in the last "
                f"{self.wait_count} validations"
            )
