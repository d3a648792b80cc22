"""The floors of the house: a file imports only from below its own."""

FLOORS = {
    "types": -1, "errors": -1,  # the ground that every floor stands on
    "machine": 0,
    "space": 1,
    "datasets": 2, "nets": 2, "losses": 2, "metrics": 2, "pictures": 2,
    "plan": 3, "verify": 3, "phantom": 3,
    "store": 4, "checkpoints": 4,
    "patches": 5,
    "segmenter": 6,
    "nnunet": 7,
    "training": 8, "inference": 8, "report": 8, "export": 8,
    "experiments": 9,
    "cli": 10,
    "__main__": 11,
}  # fmt: skip
