"""Writes what a test loop predicts, as label files on the grids of the images."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from medseg.inference.restore import restore
from medseg.patches.datamodule import Batch
from medseg.space.nifti import write_labels
from medseg.store.store import Store
from medseg.task import SegmentationTask
from medseg.types import Logits


class WritePredictions(Callback):
    """Turns the logits of each test step into ``CASE.nii.gz``.

    Args:
        folder: Where to write.
        store: Knows where each case came from.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Logits,  # type: ignore[override]  # Lightning types it as any mapping or tensor
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one case."""
        if not isinstance(pl_module, SegmentationTask):
            raise TypeError(f"expected a SegmentationTask, got {type(pl_module).__name__}")
        info = self.store.info(batch.id[0])
        whole = (slice(0, outputs.shape[2]), outputs[0])
        values = restore([whole], info.change, pl_module.plan)
        write_labels(self.folder / f"{batch.id[0]}.nii.gz", values, like=Path(info.images[0]))
