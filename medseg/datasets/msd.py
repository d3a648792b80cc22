"""The ten tasks of the Medical Segmentation Decathlon as a table (Antonelli et al. 2022, arXiv:2106.05735)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medseg.errors import UsageError, meant

MIRROR = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""Where MONAI publishes the archives; the table's MD5 sums are of these files."""


@dataclass(frozen=True)
class MsdTask:
    """One task of the Decathlon.

    Attributes:
        name: Of the archive and of the folder in it.
        md5: Of the archive.
        modalities: As in the task's ``dataset.json``.
        labels: Organ name to value, as in the task's ``dataset.json``.
        cases: Labelled cases.
        spacing_mm: Of a typical case; for phantoms and plans, not for reading.
        size: Voxels of a typical case.
    """

    name: str
    md5: str
    modalities: tuple[str, ...]
    labels: Mapping[str, int]
    cases: int
    spacing_mm: tuple[float, float, float]
    size: tuple[int, int, int]

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return f"{self.name}.tar"


def _task(
    name: str,
    md5: str,
    modalities: str,
    labels: str,
    cases: int,
    spacing_mm: tuple[float, float, float],
    size: tuple[int, int, int],
) -> MsdTask:
    numbered = {label: value for value, label in enumerate(labels.split(", "), start=1)}
    return MsdTask(name, md5, tuple(modalities.split(", ")), numbered, cases, spacing_mm, size)


TASKS: Mapping[str, MsdTask] = {
    task.name: task
    for task in (
        _task(
            "Task01_BrainTumour",
            "240a19d752f0d9e9101544901065d872",
            "FLAIR, T1w, t1gd, T2w",
            "edema, non-enhancing tumor, enhancing tumour",
            484,
            (1.0, 1.0, 1.0),
            (240, 240, 155),
        ),
        _task(
            "Task02_Heart",
            "06ee59366e1e5124267b774dbd654057",
            "MRI",
            "left atrium",
            20,
            (1.25, 1.25, 1.37),
            (320, 320, 115),
        ),
        _task(
            "Task03_Liver",
            "a90ec6c4aa7f6a3d087205e23d4e6397",
            "CT",
            "liver, cancer",
            131,
            (0.77, 0.77, 1.0),
            (512, 512, 432),
        ),
        _task(
            "Task04_Hippocampus",
            "9d24dba78a72977dbd1d2e110310f31b",
            "MRI",
            "Anterior, Posterior",
            260,
            (1.0, 1.0, 1.0),
            (36, 50, 35),
        ),
        _task(
            "Task05_Prostate",
            "35138f08b1efaef89d7424d2bcc928db",
            "T2, ADC",
            "PZ, TZ",
            32,
            (0.62, 0.62, 3.6),
            (320, 320, 20),
        ),
        _task(
            "Task06_Lung",
            "8afd997733c7fc0432f71255ba4e52dc",
            "CT",
            "cancer",
            63,
            (0.79, 0.79, 1.24),
            (512, 512, 252),
        ),
        _task(
            "Task07_Pancreas",
            "4f7080cfca169fa8066d17ce6eb061e4",
            "CT",
            "pancreas, cancer",
            281,
            (0.8, 0.8, 2.5),
            (512, 512, 93),
        ),
        _task(
            "Task08_HepaticVessel",
            "641d79e80ec66453921d997fbf12a29c",
            "CT",
            "Vessel, Tumour",
            303,
            (0.8, 0.8, 5.0),
            (512, 512, 49),
        ),
        _task(
            "Task09_Spleen",
            "410d4a301da4e5b2f6f86ec3ddba524e",
            "CT",
            "spleen",
            41,
            (0.79, 0.79, 5.0),
            (512, 512, 90),
        ),
        _task(
            "Task10_Colon",
            "bad7a188931dc2f6acf72b08eb6202d0",
            "CT",
            "colon cancer primaries",
            126,
            (0.78, 0.78, 5.0),
            (512, 512, 95),
        ),
    )
}
"""By name."""


def find_task(name: str) -> MsdTask:
    """Look a task up by its full name, its number or its organ, in any case.

    Raises:
        UsageError: There is none; names the meant.

    Example:
        >>> find_task("spleen").name, find_task("9").name, find_task("Task09").name
        ('Task09_Spleen', 'Task09_Spleen', 'Task09_Spleen')
    """
    spellings: dict[str, MsdTask] = {}
    for task in TASKS.values():
        number, organ = task.name.removeprefix("Task").split("_")
        spellings |= dict.fromkeys((task.name.lower(), f"task{number}", organ.lower(), number, str(int(number))), task)
    wanted = name.strip().lower()
    if wanted not in spellings:
        problem = f"there is no Decathlon task {name!r}{meant(name, [task.name for task in spellings.values()])}"
        raise UsageError(problem, f"Choose from {', '.join(TASKS)}")
    return spellings[wanted]
