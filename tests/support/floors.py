"""The floors of the house: a file imports only from below its own."""

FLOORS = {
    "types": -1, "errors": -1,  # the ground that every floor stands on
    "machine": 0,
    "space": 1,
    "dicom": 2,
    "datasets": 3, "nets": 3, "losses": 3, "metrics": 3, "pictures": 3,
    "plan": 4, "verify": 4, "phantom": 4,
    "store": 5, "checkpoints": 5,
    "patches": 6,
    "segmenter": 7,
    "training": 8, "inference": 8, "report": 8, "export": 8,
    "experiments": 9,
    "cli": 10,
    "__main__": 11,
}  # fmt: skip
