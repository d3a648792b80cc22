"""The floors of the house: a file imports only from below its own."""

FLOORS = {
    "types": -1, "errors": -1,  # the ground that every floor stands on
    "machine": 0, "space": 0,
    "datasets": 1, "nets": 1, "losses": 1, "metrics": 1, "pictures": 1,
    "plan": 2, "verify": 2, "phantom": 2,
    "store": 3, "checkpoints": 3,
    "patches": 4,
    "segmenter": 5,
    "inference": 6, "report": 6, "export": 6,
    "training": 7,
    "experiments": 8,
    "cli": 9,
    "__main__": 10,
}  # fmt: skip
