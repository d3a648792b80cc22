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
    "training": 7, "inference": 7, "report": 7, "export": 7,
    "experiments": 8,
    "cli": 9,
    "__main__": 10,
}  # fmt: skip
