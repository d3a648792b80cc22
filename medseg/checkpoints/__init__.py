"""Checkpoints as files: read so that no code in them can run, written whole or not at all, signed with their origin."""

from medseg.checkpoints.reading import matching_weights, read_checkpoint

__all__ = ["matching_weights", "read_checkpoint"]
