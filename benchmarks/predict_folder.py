"""Volumes of a folder per second: `medseg predict`'s belt beside the same steps one after the other.

    python benchmarks/predict_folder.py
    python benchmarks/predict_folder.py --cases 4 --rounds 1 --size 96

Ten CT-sized phantoms, read, brought onto the plan's grid, segmented by a small U-Net of random weights, brought back,
cleaned and written: by the belt, which reads ahead and writes behind the network, and by the same functions in a loop.
Both in one process, alternately, so that other work on the machine meets both; the labels must be equal.
"""

from __future__ import annotations

import argparse
import filecmp
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import torch

from medseg.inference.belt import Belt, Work
from medseg.inference.predict import Predictor
from medseg.nets import build_net
from medseg.phantom.phantom import write_phantom
from medseg.plan.plan import Normalisation, Plan
from medseg.segmenter import Segmenter, net_spec

Cases = dict[str, tuple[Path, ...]]


def predictor(edge: int) -> Predictor:
    """A small network for patches of some voxels, on a grid that every image is resampled to."""
    labels = {f"organ {value}": value for value in range(1, 4)}
    plan = Plan("phantom", ("CT",), labels, "RAS", (1.5, 1.5, 1.5), (edge,) * 3, 2, (Normalisation(),),
                ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 16))  # fmt: skip
    torch.manual_seed(0)
    return Predictor([Segmenter(build_net("unet", net_spec(plan), {}), plan)], device="cpu")


def images(folder: Path, cases: int, size: int) -> Cases:
    """Links to two phantoms, taken in turn: drawing one takes longer than segmenting it."""
    write_phantom(folder / "phantom", 2, size=(size,) * 3, spacing_mm=(1.0, 1.0, 1.0))
    drawn = sorted((folder / "phantom" / "imagesTr").glob("*.nii.gz"))
    (folder / "images").mkdir()
    found: Cases = {}
    for number in range(cases):
        link = folder / "images" / f"case_{number:02}.nii.gz"
        link.symlink_to(drawn[number % 2])
        found[link.name[:-7]] = (link,)
    return found


def one_by_one(work: Work, cases: Cases) -> None:
    """Read, segment, write, and only then the next."""
    for case, files in cases.items():
        work.write(case, files, *work.segment(work.predictor, case, files, work.read(files)))


def on_the_belt(work: Work, cases: Cases) -> None:
    """As `medseg predict` does."""
    failed = [failure for failure in Belt(work, cases, str).run([work.predictor]).values() if failure]
    if failed:
        raise failed[0]


def main() -> None:
    """Race both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ways = {"one by one": one_by_one, "belt": on_the_belt}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        cases = images(Path(folder), options.cases, options.size)
        network = predictor(options.patch)
        for _ in range(options.rounds):
            for way, run in ways.items():
                output = Path(folder) / way
                output.mkdir(exist_ok=True)
                begun = perf_counter(), process_time()
                run(Work(network, output, save_probabilities=False, record=None), cases)
                taken[way].append((perf_counter() - begun[0], process_time() - begun[1]))
                print(way, *(f"{seconds:.1f} s" for seconds in taken[way][-1]), flush=True)
        names = [f"{case}.nii.gz" for case in cases]
        if filecmp.cmpfiles(*(Path(folder) / way for way in ways), names, shallow=False)[0] != names:
            raise SystemExit("the two have written other labels")
    print(f"\n| {options.cases} of {options.size}³ | wall s | processor s | volumes a minute | ratio |")
    print("|---|--:|--:|--:|--:|")
    slowest = statistics.median(wall for wall, _ in taken["one by one"])
    for way, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {way} | {wall:.1f} | {cpu:.1f} | {60 * options.cases / wall:.1f} | {slowest / wall:.2f} |")


if __name__ == "__main__":
    main()
