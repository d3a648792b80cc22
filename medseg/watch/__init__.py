"""What looks on while a network trains."""

from medseg.watch.averages import AveragedWeights
from medseg.watch.clock import StepClock
from medseg.watch.patience import StopEarly
from medseg.watch.randomness import SeedSteps
from medseg.watch.steps import NonFiniteError, SkipBadSteps

__all__ = ["AveragedWeights", "NonFiniteError", "SeedSteps", "SkipBadSteps", "StepClock", "StopEarly"]
