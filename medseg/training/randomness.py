"""What is random within a step, such as dropout, is a function of seed, step and process: a resumed run repeats it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback


class SeedSteps(Callback):
    """Seeds every generator anew before each step, so that no generator's state needs to be carried along.

    A saved state would be that of one process and one device; a step's seed holds for any number of them. The run's
    own seed is in the checkpoint, for runs that drew theirs by chance.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The seed of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed that the run began with."""
        self.seed = state_dict["seed"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the seed that the process was started with, unless a checkpoint has told another."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch on every device, NumPy and Python."""
        drawn = np.random.SeedSequence((self.seed or 0, trainer.current_epoch, batch_idx, trainer.global_rank))
        seed = int(drawn.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
