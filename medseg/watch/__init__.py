"""What looks on while a network trains."""

from medseg.watch.clock import StepClock
from medseg.watch.steps import NonFiniteError, SkipBadSteps

__all__ = ["NonFiniteError", "SkipBadSteps", "StepClock"]
