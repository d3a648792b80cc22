"""Predicts the cases of a test loop from their files, as `medseg predict` does, on the grids of their images."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from medseg.errors import MedsegError
from medseg.inference.folder import predict_files
from medseg.inference.predict import Predictor
from medseg.patches.datamodule import Batch
from medseg.segmenter import Segmenter
from medseg.store.store import Store


class WritePredictions(Callback):
    """Writes the label file of each case of a test loop, in the precision of its trainer.

    It is the one that `medseg predict --no-cleaning` would write, which takes the best precision of its device.

    The loop deals the cases to the processes; when it is over, each predicts its own from their files, for the store
    rounds intensities, as `medseg predict` does. A case that fails is kept in `failures`, the others go on.

    Args:
        folder: Where to write.
        store: Knows where each case came from.
        segmenter: What to predict with, on the device of the loop.
        console: Where the first process shows how far it is; None shows nothing.

    Attributes:
        failures: Why some cases of this process have no prediction.
    """

    def __init__(self, folder: Path, store: Store, segmenter: Segmenter, console: Console | None = None) -> None:
        self.folder, self.store, self.segmenter, self.console = folder, store, segmenter, console
        self.failures: tuple[MedsegError, ...] = ()
        self._cases: list[str] = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: None,  # type: ignore[override]  # Lightning types it as any mapping or tensor
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the case."""
        self._cases += batch.id

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Predict and write them."""
        cases = {case: tuple(map(Path, self.store.info(case).images)) for case in self._cases}
        predictor = Predictor([self.segmenter], device=str(pl_module.device), precision=str(trainer.precision))
        console = self.console if trainer.is_global_zero else None
        self.failures = predict_files([predictor], cases, self.folder, console=console)
