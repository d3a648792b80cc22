"""The floors of the house: a file imports only from below its own."""

FLOORS = {
    "types": -1, "errors": -1,  # the ground that every floor stands on
    "machine": 0,
    "space": 1,
    "dicom": 2,
    "datasets": 3, "nets": 3, "losses": 3, "metrics": 3, "pictures": 3,
    "plan": 4, "verify": 4, "phantom": 4, "merge": 4,
    "store": 5, "checkpoints": 5,
    "patches": 6,
    "segmenter": 7,
    "nnunet": 8,
    "training": 9, "inference": 9, "report": 9, "export": 9,
    "experiments": 10,
    "cli": 11,
    "__main__": 12,
}  # fmt: skip
