"""Checkpoints as files: read so that no code in them can run, written whole or not at all, signed with their origin."""
