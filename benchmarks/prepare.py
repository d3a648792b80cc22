"""Volumes prepared per second: ``medseg prepare`` beside ``nnUNetv2_preprocess``, on CT-sized phantoms.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/prepare.py --nnunet ENV/bin
    python benchmarks/prepare.py --nnunet ENV/bin --cases 6 --workers 4 --work /scratch/prepare

One run: the same phantoms, whose spacing varies so that all need resampling, the same number of worker processes, the
two programs one after the other as whole commands, alternately. The plans are checked to agree in spacing and patch;
medseg is given nnU-Net's clipping constants, so that the images may be compared voxel by voxel. Seconds are of the wall
clock and of all processors together; the second is fairer on a busy machine. Memory is the largest sum, over a
program's processes, of what each holds for itself (Pss). The error of the images is the root mean square of the
difference over the standard deviation of nnU-Net's. Dice compares labels brought to the plan's grid and back by each
program's own resampling with the labels in the files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from medseg.datasets.case import Dataset, read_case, read_dataset
from medseg.phantom.phantom import write_phantom
from medseg.plan.fingerprint import fingerprint
from medseg.plan.grid import kept_box
from medseg.plan.plan import Normalisation, Plan, write_plan
from medseg.plan.planning import make_plan
from medseg.space.resample import resample_labels
from medseg.space.volume import Volume
from medseg.store.store import Store

GEOMETRIES = {
    "thin": ((512, 512, 130), (0.8, 0.8, 2.0)),  # blended in all three axes
    "thick": ((512, 512, 90), (0.8, 0.8, 5.0)),  # resampled slice by slice
}
NUMBER = 501  # of the dataset, as nnU-Net counts them

BACK = """
import json, pickle, sys
import blosc2, numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
folder, spacing, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
for case in sys.argv[4:]:
    with open(f"{folder}/{case}.pkl", "rb") as file:
        about = pickle.load(file)
    seg = np.asarray(blosc2.open(f"{folder}/{case}_seg.b2nd")[:]).clip(0)
    shape = about["shape_after_cropping_and_before_resampling"]
    back = resample_data_or_seg_to_shape(seg, shape, spacing, about["spacing"], is_seg=True, order=1, order_z=0)
    whole = np.zeros(about["shape_before_cropping"], dtype=np.uint8)
    whole[tuple(slice(a, b) for a, b in about["bbox_used_for_cropping"])] = back[0]
    np.save(f"{out}/{case}.npy", whole)
"""


@dataclass
class Cost:
    """What a command took."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measured(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command to its end; count its children too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
    watcher.start()
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(perf_counter() - started, cpu, peak[0] / 1024)


def watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Note the largest memory of a process and its descendants in KiB, until it ends."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(own_kib, family(process.pid))))
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    found = [root]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue  # it has just ended
    return found


def own_kib(process: int) -> int:
    """Proportional share of the memory a process holds."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Peer:
    """nnU-Net, its folders and its plan."""

    def __init__(self, binaries: Path, work: Path, workers: int) -> None:
        self.binaries, self.workers = binaries, workers
        self.raw = work / "raw" / f"Dataset{NUMBER}_Phantom"
        self.done = work / "preprocessed" / self.raw.name
        self.environment = {
            "nnUNet_raw": str(work / "raw"),
            "nnUNet_preprocessed": str(work / "preprocessed"),
            "nnUNet_results": str(work / "results"),
        }

    def convert(self, dataset: Dataset) -> None:
        """Lay the files out as nnU-Net wants them, by links."""
        for case in dataset.cases:
            for source, target in (
                (case.images[0], f"imagesTr/{case.id}_0000.nii.gz"),
                (case.label, f"labelsTr/{case.id}.nii.gz"),
            ):
                link = self.raw / target
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(source)).resolve())
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | dataset.labels,
            "numTraining": len(dataset.cases),
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))

    def plan(self) -> dict:
        """Fingerprint and plan; not timed."""
        measured(self._command("nnUNetv2_extract_fingerprint", "-np", str(self.workers)), self.environment)
        measured(self._command("nnUNetv2_plan_experiment"), self.environment)
        return json.loads((self.done / "nnUNetPlans.json").read_text())

    def preprocess(self) -> Cost:
        """The command that medseg is compared with."""
        return measured(
            self._command("nnUNetv2_preprocess", "-c", "3d_fullres", "-np", str(self.workers)), self.environment
        )

    def image(self, case: str) -> np.ndarray:
        """A preprocessed image, axes in nnU-Net's order."""
        import blosc2

        return np.asarray(blosc2.open(str(self.done / "nnUNetPlans_3d_fullres" / f"{case}.b2nd"))[:])[0]

    def labels_back(self, ids: tuple[str, ...], spacing: list[float], out: Path) -> None:
        """Bring its labels back to the files' grid with its own resampling."""
        folder = str(self.done / "nnUNetPlans_3d_fullres")
        measured(
            [str(self.binaries / "python"), "-c", BACK, folder, json.dumps(spacing), str(out), *ids], self.environment
        )

    def _command(self, name: str, *options: str) -> list[str]:
        return [str(self.binaries / name), "-d", str(NUMBER), *options]


def the_same_plan(ours: Plan, theirs: dict) -> tuple[Plan, list[int]]:
    """Our plan with nnU-Net's clipping constants, once they agree; and how its axes lie in the file."""
    full = theirs["configurations"]["3d_fullres"]
    turn = theirs["transpose_forward"]
    ours_turned = [list(reversed(ours.spacing_mm))[axis] for axis in turn]
    patch_turned = [list(reversed(ours.patch_size))[axis] for axis in turn]
    assert np.allclose(ours_turned, full["spacing"], rtol=1e-4), (ours_turned, full["spacing"])
    print(f"patch: ours {patch_turned}, nnU-Net's {full['patch_size']}; batch: {ours.batch_size}, {full['batch_size']}")
    found = theirs["foreground_intensity_properties_per_channel"]["0"]
    how = Normalisation("ct", found["percentile_00_5"], found["percentile_99_5"], found["mean"], found["std"])
    return replace(ours, normalisation=(how,)), turn


def file_axes(array: np.ndarray, turn: list[int]) -> np.ndarray:
    """From nnU-Net's axes (turned k, j, i) to the file's i, j, k."""
    return array.transpose(np.argsort(turn)).transpose(2, 1, 0)


def compare(dataset: Dataset, store: Store, peer: Peer, turn: list[int], spacing: list[float]) -> dict[str, float]:
    """Image error and label Dice of both programs, over all cases."""
    errors, ours, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        peer.labels_back(store.ids, spacing, Path(folder))
        for case in dataset.cases:
            image, labels = read_case(case, dataset)
            expected = Volume(file_axes(peer.image(case.id), turn)[None], image.affine).reoriented("RAS").array[0]
            difference = store.image(case.id)[:][0] - expected
            errors.append(
                float(np.sqrt(np.square(difference, dtype=np.float64).mean()) / expected.std(dtype=np.float64))
            )
            change = store.info(case.id).change
            back = np.zeros(change.source_shape, dtype=np.int16)
            moved = resample_labels(store.labels(case.id)[:], change.size, through_plane=change.through_plane)
            kept_box(back, change)[...] = moved
            values = np.array([0, *store.plan.atoms])
            ours += dice(values[back], labels.array[0], store.plan.atoms)
            theirs += dice(file_axes(np.load(f"{folder}/{case.id}.npy"), turn), labels.array[0], store.plan.atoms)
    return {"error": max(errors), "dice": float(np.mean(ours)), "peer_dice": float(np.mean(theirs)),
            "worst": min(ours), "peer_worst": min(theirs)}  # fmt: skip


def dice(one: np.ndarray, other: np.ndarray, values: tuple[int, ...]) -> list[float]:
    """Dice of every value that is present."""
    found = []
    for value in values:
        a, b = one == value, other == value
        if b.any():
            found.append(2 * float(np.sum(a & b)) / float(a.sum() + b.sum()))
    return found


def race(name: str, options: argparse.Namespace, work: Path) -> list[str]:
    """One geometry: rows of the table."""
    size, spacing = GEOMETRIES[name]
    root = work / "phantom"
    if not (root / "dataset.json").is_file():
        write_phantom(root, options.cases, size=size, spacing_mm=spacing)
    dataset = read_dataset(root)
    peer = Peer(options.nnunet, work, options.workers)
    if not peer.raw.is_dir():
        peer.convert(dataset)
    theirs = peer.plan()
    plan, turn = the_same_plan(make_plan(fingerprint(dataset, options.workers)), theirs)
    write_plan(work / "plan.yaml", plan)
    costs: dict[str, list[Cost]] = {"medseg": [], "nnU-Net": []}
    for attempt in range(options.rounds):
        command = [sys.executable, "-m", "medseg", "prepare", str(root), "--plan", str(work / "plan.yaml")]
        out = work / f"store{attempt}"
        costs["medseg"].append(measured([*command, "--out", str(out), "--workers", str(options.workers)], {}))
        costs["nnU-Net"].append(peer.preprocess())
        print(name, {who: cost[-1] for who, cost in costs.items()}, flush=True)
    found = compare(dataset, Store(out), peer, turn, theirs["configurations"]["3d_fullres"]["spacing"])
    return [row(name, who, cost, len(dataset.cases), found) for who, cost in costs.items()]


def row(name: str, who: str, costs: list[Cost], cases: int, found: dict[str, float]) -> str:
    """A line of the table: the best wall clock, the least processor time, the largest memory of all rounds."""
    wall, cpu = min(cost.wall_s for cost in costs), min(cost.cpu_s for cost in costs)
    ours = who == "medseg"
    mean, worst = (found["dice"], found["worst"]) if ours else (found["peer_dice"], found["peer_worst"])
    error = f"{found['error']:.2%}" if ours else "-"
    peak = max(cost.peak_mib for cost in costs)
    return (
        f"| {name} | {who} | {cases / wall:.3f} | {cpu / cases:.1f} | {peak:.0f} | {error} | {mean:.4f} | {worst:.4f} |"
    )


def main() -> None:
    """Race both geometries and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="folder of nnUNetv2_preprocess and its python")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--geometry", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--work", type=Path, help="folder for the phantoms and stores; kept when given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        rows = [line for name in options.geometry for line in race(name, options, work / name)]
    print("| geometry | program | volumes/s | CPU s/volume | peak MiB | image error | Dice | worst Dice |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
