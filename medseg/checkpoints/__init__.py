"""Checkpoints as files: read so that no code in them can run, written whole or not at all, signed with their origin."""

from medseg.checkpoints.keep import KeepCheckpoints
from medseg.checkpoints.reading import matching_weights, read_checkpoint
from medseg.checkpoints.writing import CheckpointFiles

__all__ = ["CheckpointFiles", "KeepCheckpoints", "matching_weights", "read_checkpoint"]
