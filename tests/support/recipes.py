"""Phantoms that only tests draw."""

from medseg.phantom.anatomy import PhantomRecipe, Structure

HEAD_AND_NECK = PhantomRecipe(
    name="HeadAndNeck",
    modalities=("CT",),
    labels={
        "BrainStem": 1,
        "Chiasm": 2,
        "Mandible": 3,
        "OpticNerve_L": 4,
        "OpticNerve_R": 5,
        "Parotid_L": 6,
        "Parotid_R": 7,
        "Submandibular_L": 8,
        "Submandibular_R": 9,
    },
    structures=(
        Structure((0, -0.1, 0), (0.45, 0.45, 6.0), (45,), wander=0.02),  # neck
        Structure((0, 0, 0.3), (0.66, 0.80, 0.80), (40,), wander=0.01),  # face and scalp
        Structure((0, -0.05, 0.45), (0.58, 0.72, 0.56), (900,), wander=0.01, spread=60),  # skull
        Structure((0, -0.05, 0.45), (0.52, 0.66, 0.50), (35,), wander=0.01),  # brain
        Structure((0, -0.30, -0.5), (0.13, 0.12, 0.6), (500,), wander=0.01, spread=40),  # vertebrae
        Structure((0, 0.34, -0.36), (0.42, 0.36, 0.12), (800,), "Mandible", wander=0.02, spread=60),
        Structure((0, 0.24, -0.34), (0.31, 0.33, 0.16), (50,), wander=0.01),  # tongue, which leaves the bone an arch
        Structure((0, -0.10, 0.02), (0.11, 0.11, 0.24), (38,), "BrainStem"),
        Structure((0, 0.16, 0.22), (0.08, 0.06, 0.06), (42,), "Chiasm", wander=0.01),
        Structure((-0.15, 0.36, 0.22), (0.05, 0.16, 0.06), (20,), "OpticNerve_L", wander=0.01),
        Structure((0.15, 0.36, 0.22), (0.05, 0.16, 0.06), (20,), "OpticNerve_R", wander=0.01),
        Structure((-0.48, 0.02, -0.15), (0.12, 0.15, 0.20), (-5,), "Parotid_L", spread=10),
        Structure((0.48, 0.02, -0.15), (0.12, 0.15, 0.20), (-5,), "Parotid_R", spread=10),
        Structure((-0.26, 0.18, -0.58), (0.10, 0.12, 0.10), (60,), "Submandibular_L"),
        Structure((0.26, 0.18, -0.58), (0.10, 0.12, 0.10), (60,), "Submandibular_R"),
    ),
    spacing_mm=(4.0, 4.0, 5.0),
    size=(64, 64, 48),
    unannotated={1: ("Submandibular_L", "Submandibular_R"), 2: ("Chiasm", "OpticNerve_L", "OpticNerve_R")},
)
"""The nine organs at risk of the MICCAI 2015 challenge (Raudaschl et al. 2017), some of them not annotated everywhere.

x grows to the patient's right, so that what is left lies at negative x.
"""

NESTED_TUMOUR = {
    "whole tumour": (1, 2, 3),
    "tumour core": (2, 3),
    "enhancing tumour": (3,),
}
"""Regions of the brain tumour task, for ``replace(recipe_for("BrainTumour"), regions=NESTED_TUMOUR)``."""
