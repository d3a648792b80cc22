"""The command line: one parser for the short commands, Lightning's for training.

Nothing heavy is imported here: ``medseg --help`` answers at once; torch, monai and lightning load with the command
that uses them.
"""

from medseg.cli.main import main

__all__ = ["main"]
