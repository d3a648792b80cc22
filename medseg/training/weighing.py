"""Class weights by a word, ``cross_entropy(weight=balanced)``: numbers from the cases that are trained on."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from medseg.errors import UsageError
from medseg.losses.class_weights import class_weights, words_in


class WeighClasses(Callback):
    """Tells a loss the numbers behind its words, and keeps them in the hyperparameters: in every checkpoint.

    A resumed run goes on with those it began with, whatever cases have come since.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count the voxels of the training cases.

        Raises:
            UsageError: Nobody can count them.
        """
        options = pl_module.hparams
        words = [word for word in words_in(options["loss"]) if word not in (options["class_weights"] or {})]
        if not words:
            return
        count = getattr(getattr(trainer, "datamodule", None), "class_counts", None)
        if count is None:
            raise UsageError(
                f"the loss weighs classes by {words[0]}, but no datamodule counts the voxels of the training cases",
                "Give model.class_weights, as medseg.losses.class_weights tells them from your counts",
            )
        counts = count()
        weights = {word: class_weights(counts, word) for word in words}
        for word, numbers in weights.items():
            told = ", ".join(f"{number:.4g}" for number in numbers)
            rank_zero_info(f"class weights {word}, from {len(counts)} training cases: {told}")
        _tell(pl_module, weights)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what the run began with."""
        _tell(pl_module, checkpoint["hyper_parameters"].get("class_weights") or {})


def _tell(task: LightningModule, weights: dict[str, list[float]]) -> None:
    """Add to what the loss and the hyperparameters know."""
    if weights:
        task.hparams["class_weights"] = known = {**(task.hparams["class_weights"] or {}), **weights}
        task.loss.set_class_weights(known)  # type: ignore[operator, union-attr]  # a Criterion
