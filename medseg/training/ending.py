"""How a training ends: its budget is spent or nothing gets better, and its last weights are validated."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, EarlyStopping

from medseg.errors import UsageError
from medseg.training.lightning import epoch_ends, goes_on_behind_an_epoch, may_stop


class ValidateTheEnd(Callback):
    """Stops when the steps, the epochs or the time are spent, for every budget alike: with a last validation."""

    def __init__(self) -> None:
        self._interval: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know the interval; an epoch that was validated out of turn is over, or Lightning would train a step more."""
        self._interval = trainer.check_val_every_n_epoch
        if goes_on_behind_an_epoch(trainer):
            trainer.check_val_every_n_epoch = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next epoch is validated in its turn."""
        trainer.check_val_every_n_epoch = self._interval

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where the budget is spent; where somebody stops, have the epoch validated whose turn it is not."""
        if steps_spent(trainer) or (epoch_ends(trainer) and _last_epoch(trainer)):
            trainer.should_stop = True
        if trainer.should_stop and may_stop(trainer):
            trainer.check_val_every_n_epoch = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The interval is the user's again."""
        trainer.check_val_every_n_epoch = self._interval


def steps_spent(trainer: Trainer) -> bool:
    """Whether the last of ``max_steps`` is done."""
    return 0 < trainer.max_steps <= trainer.global_step


def training_ends(trainer: Trainer) -> bool:
    """Whether there will be no other step: a checkpoint of this moment would never see its validation."""
    return trainer.should_stop or steps_spent(trainer)


def _last_epoch(trainer: Trainer) -> bool:
    return trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1


class StopEarly(EarlyStopping):
    """Stops after so many validations without a better ``val/dice``.

    It decides as soon as a validation is over, before the checkpoint is written, so that a resumed run counts on.

    Args:
        patience: How many.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/dice", mode="max", patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on, with the patience of this config."""
        super().load_state_dict({**state_dict, "patience": self.patience})

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
