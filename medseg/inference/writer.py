"""Predicts the cases of a test loop from their files, as `medseg predict` does, on the grids of their images."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from medseg.errors import MedsegError
from medseg.inference.folder import label_file, predict_case
from medseg.inference.predict import Predictor
from medseg.patches.datamodule import Batch
from medseg.segmenter import Segmenter
from medseg.store.store import Store


class WritePredictions(Callback):
    """Writes the label file of each case of a test loop, the one that `medseg predict --no-cleaning` would write.

    The image is read again from its own file, for the store rounds intensities; and it goes slab by slab, so that no
    more memory is needed than `medseg predict` needs. A case that fails is kept in `failures`, the others go on.

    Args:
        folder: Where to write.
        store: Knows where each case came from.
        segmenter: What to predict with, on the device of the loop.

    Attributes:
        failures: Why some cases of this process have no prediction.
    """

    def __init__(self, folder: Path, store: Store, segmenter: Segmenter) -> None:
        self.folder, self.store, self.segmenter = folder, store, segmenter
        self.failures: list[MedsegError] = []
        self._predictor: Predictor | None = None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: None,  # type: ignore[override]  # Lightning types it as any mapping or tensor
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Predict and write one case."""
        self._predictor = self._predictor or Predictor([self.segmenter], device=str(pl_module.device))
        for case in batch.id:
            images = tuple(Path(image) for image in self.store.info(case).images)
            try:
                predict_case(self._predictor, images, label_file(self.folder, case, images, self.store.plan))
            except MedsegError as failure:
                self.failures.append(failure)
