"""What the budget of a training is spent on: how often it is validated, and whether its steps are too few or many."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import STEP_OUTPUT

from medseg.datasets.case import counted
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.stitch import tile_starts
from medseg.plan.budget import FEWEST_STEPS
from medseg.space.volume import Shape
from medseg.training.lightning import has_clock, time_budget_s, time_spent
from medseg.training.optimise import budget_spent

PASSES_A_STEP = 3
"""Of a patch through the network: forward, and twice as much backward."""

FEW_WINDOWS = 64
"""So many are validated after every epoch, however short it is."""

_STEPS_TO_JUDGE_BY = 10

MANY_STEPS = 2500
MANY_PASSES = 30
"""From here on the hippocampus lost Dice on held-out cases (benchmarks/RESULTS.md, "More steps than it needs")."""

ENOUGH_PASSES = 20
"""Over the cases; within the 9 to 30 where it was best."""

LEAST_VALIDATIONS = 5
"""Of a training whose epochs are known: with fewer there would be no best one among several."""


class ShareTime(Callback):
    """Validates all cases after every n-th epoch, where after every one it would take more than a share of the time.

    The share is counted in passes of a patch through the network, not measured: a run that goes on, or is repeated,
    validates after the same epochs. Whoever sets one of Lightning's own options for this has decided; the end of a
    training is always validated.

    Args:
        share: Of the time.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose n; say so where it is not 1."""
        data = getattr(trainer, "datamodule", None)
        asked = (
            trainer.check_val_every_n_epoch,
            getattr(trainer, "val_check_interval", None),
            trainer.limit_val_batches,
        )
        if not isinstance(data, VolumesDataModule) or asked != (1, 1.0, 1.0):
            return
        plan, overlap = data.plan, float(pl_module.hparams["overlap"])
        windows = count_windows(data.validation_shapes, plan.patch_size, overlap) / trainer.world_size
        passes = float(PASSES_A_STEP * data.steps_per_epoch * plan.batch_size)
        every = min(epochs_between(windows, passes, self.share), _most(trainer, data.steps_per_epoch))
        if every > 1:
            trainer.check_val_every_n_epoch = every
            rank_zero_info(
                f"validation costs as much as {windows / passes:.1f} epochs, so it comes after every {every} epochs: "
                f"{windows / (windows + every * passes):.0%} of the time, see model.validation_share"
            )


def count_windows(shapes: Iterable[Shape], patch: Shape, overlap: float) -> int:
    """Windows that whole volumes are segmented by.

    Example:
        >>> count_windows([(128, 128, 128), (192, 128, 64)], (128, 128, 128), 0.5)
        3
    """
    return sum(
        math.prod(len(tile_starts(max(n, m), m, overlap=overlap)) for n, m in zip(shape, patch, strict=True))
        for shape in shapes
    )


def epochs_between(windows: float, passes: float, share: float) -> int:
    """Epochs from one validation to the next that leave it a share of the time.

    Args:
        windows: Passes of one validation.
        passes: Of one epoch.
        share: In (0, 1]; 1 is every epoch.

    Example:
        >>> [epochs_between(windows, 1500.0, share) for windows, share in ((8918.0, 0.1), (50.0, 0.1), (8918.0, 1.0))]
        [54, 1, 1]
    """
    return 1 if share >= 1 else math.ceil(windows / max(FEW_WINDOWS, passes * share / (1 - share)))


def _most(trainer: Trainer, steps: int) -> int:
    """Epochs between validations that leave a training `LEAST_VALIDATIONS`."""
    epochs = [trainer.max_epochs] if trainer.max_epochs is not None and trainer.max_epochs > 0 else []
    if trainer.max_steps > 0:
        epochs.append(math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / steps))
    return max(1, min(epochs) // LEAST_VALIDATIONS) if epochs else 10**9


class TellBudget(Callback):
    """Says, early and once, that a budget holds too few steps to learn, or enough to learn the cases by heart."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to look."""
        self._began: tuple[int, float, float] | None = None
        self._judged = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """See how many steps there will be once the first, which are slower, are over, or a tenth of the time is."""
        if self._judged:
            return
        step, time, budget = now = trainer.global_step, time_spent(trainer), budget_spent(trainer)
        if self._began is None:
            self._began = now if step >= 1 else None
            return
        done, time_before, budget_before = step - self._began[0], *self._began[1:]
        if done >= _STEPS_TO_JUDGE_BY or (done and time >= time_before + 0.1):
            self._judged = True
            by_time, by_budget = step + _more(done, time_before, time), step + _more(done, budget_before, budget)
            told = _too_few(by_time, trainer, "at this pace trainer.max_time holds about")
            if told := told or _too_many(by_budget, trainer):
                rank_zero_info(told)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it now, where the time was over before anything could be judged."""
        spent = not self._judged and time_spent(trainer) >= 1
        if spent and (told := _too_few(trainer.global_step, trainer, "trainer.max_time held")):
            rank_zero_info(told)


def _more(steps: int, before: float, after: float) -> float:
    """How many steps there will be, by what share of a budget was spent before and after the last so many."""
    return steps * (1 - after) / (after - before) if after > before else math.inf


def _too_few(steps: float, trainer: Trainer, held: str) -> str:
    """What a budget of time should be told that holds so many steps; mostly nothing."""
    if not has_clock(trainer) or steps >= FEWEST_STEPS:
        return ""
    data, minutes = getattr(trainer, "datamodule", None), time_budget_s(trainer) / 60
    dataset = data.dataset_folder if isinstance(data, VolumesDataModule) else None
    plan = shlex.join(
        ["medseg", "plan", str(dataset or "DATASET"), "--minutes", f"{minutes:.3g}", "--out", "quick.yaml"]
    )
    holds = f"{held} {counted(round(steps), 'step')}; with fewer than {FEWEST_STEPS} a network learns little"
    return f"{holds}: {plan} chooses one for that time on this machine, and says what to type next"


def _too_many(steps: float, trainer: Trainer) -> str:
    """What a training of so many steps should be told of its augmentation; mostly nothing."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VolumesDataModule) or not MANY_STEPS <= steps < math.inf:
        return ""
    patches = steps * trainer.accumulate_grad_batches * trainer.world_size * data.plan.batch_size
    passes, cases = patches / len(data.cases.train), counted(len(data.cases.train), "case")
    if passes < MANY_PASSES or data.unmoved <= 0.5:
        return ""
    enough = round(steps * ENOUGH_PASSES / passes)
    return (
        f"this training makes about {steps:.0f} steps, {passes:.0f} passes over {cases}, and {data.unmoved:.0%} of its "
        f"patches are neither turned, scaled, bent nor flipped: from some {MANY_PASSES} on the hippocampus lost Dice "
        f"on unseen cases; --trainer.max_steps {enough} ends it after {ENOUGH_PASSES}, and for days there is "
        "--data.augmentation full"
    )
