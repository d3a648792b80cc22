"""Seconds of training until a Dice on held-out cases: medseg beside nnU-Net's own trainer, on the hippocampus.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/time_to_dice.py medseg --store STORE --steps 400 --out ours.csv
    python benchmarks/time_to_dice.py nnunet --store STORE --bin ENV/bin --dataset Task04_Hippocampus --out theirs.csv
    python benchmarks/time_to_dice.py table ours.csv theirs.csv

Both train on the 166 cases of fold 0 and are judged on its 42 others, on the grid they train on (1 mm, as the images).
medseg follows configs/msd/task04_hippocampus.yaml with ``--trainer.max_steps``; nnU-Net plans for itself and runs
``nnUNetTrainer.train_step`` as it is, its data loader in the same process. Every few steps the clock is stopped and all
held-out cases are segmented, by nnU-Net's predictor without its mirroring and, the last time, also with it. Two clocks:
the wall's, and the processor's divided by the number of threads, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKS = (0.80, 0.85, 0.87, 0.88, 0.885)
COLUMNS = ("program", "step", "wall_s", "processor_s", "dice", "dice_mirrored")


class Clock:
    """Counts the seconds of training, not those of judging."""

    def __init__(self, program: str, out: Path, threads: int) -> None:
        self.program, self.out, self.threads = program, out, threads
        self.wall_s = self.processor_s = 0.0
        out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        self.go_on()

    def go_on(self) -> None:
        """Training begins or goes on."""
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Training waits."""
        self.wall_s += time.perf_counter() - self._wall
        self.processor_s += (time.process_time() - self._processor) / self.threads

    def note(self, step: int, dice: float, mirrored: float | None = None) -> None:
        """Write down what was reached."""
        second = "" if mirrored is None else f"{mirrored:.4f}"
        row = (self.program, str(step), f"{self.wall_s:.1f}", f"{self.processor_s:.1f}", f"{dice:.4f}", second)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(",".join(row) + "\n")


def run_medseg(options: argparse.Namespace) -> None:
    """Our command, with a clock in it."""
    import torch
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import Callback

    from medseg.cli.training import build_fit
    from medseg.machine.hardware import keep_freed_memory

    torch.set_num_threads(options.threads)
    clock = Clock(f"medseg, {options.steps} steps", options.out, options.threads)

    class Judge(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            clock.wall_s = clock.processor_s = 0.0
            clock.go_on()

        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            clock.stop()

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                clock.note(trainer.global_step, float(trainer.callback_metrics["val/dice"]))
            clock.go_on()

    keep_freed_memory()
    words = ["fit", "--config", str(options.config), "--data.store", str(options.store), "--run", str(options.run)]
    lengths = ["--trainer.max_steps", str(options.steps), "--data.steps_per_epoch", str(options.every)]
    built = build_fit([*words[1:], *lengths])
    trainer = built.trainer()
    trainer.callbacks.append(Judge())  # type: ignore[attr-defined]  # set by Lightning's connector
    trainer.fit(built.task, built.data)


def run_nnunet(options: argparse.Namespace) -> None:
    """Prepare with nnU-Net's commands, then train in its interpreter."""
    folders = {name: str(options.work.resolve() / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    environment = os.environ | folders | {"nnUNet_results": str(options.work.resolve() / "nnUNet_results")}
    environment |= {"OMP_NUM_THREADS": str(options.threads)}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    prepared = Path(folders["nnUNet_preprocessed"]) / "Dataset004_Hippocampus"
    if not (prepared / "nnUNetPlans.json").exists():
        _nnunet_raw(options.dataset, Path(folders["nnUNet_raw"]) / prepared.name)
        command = [options.bin / "nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres"]
        subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.DEVNULL)
    from medseg.patches.datamodule import VolumesDataModule  # only here: nnU-Net's interpreter has no medseg

    held_back = VolumesDataModule(options.store).cases
    split = [{"train": list(held_back.train), "val": list(held_back.val)}]
    (prepared / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")
    own = ["--steps", options.steps, "--every", options.every, "--threads", options.threads, "--out", options.out]
    words = [options.bin / "python", __file__, "trainer", "--prepared", prepared, *own]
    subprocess.run(list(map(str, words)), env=environment | {"nnUNet_n_proc_DA": "0"}, check=True)


def _nnunet_raw(root: Path, raw: Path) -> None:
    """Links under the names that nnU-Net wants."""
    from medseg.datasets.case import read_dataset

    dataset = read_dataset(root)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in dataset.cases:
        (raw / "imagesTr" / f"{case.id}_0000.nii.gz").symlink_to(case.images[0].resolve())
        (raw / "labelsTr" / f"{case.id}.nii.gz").symlink_to(Path(str(case.label)).resolve())
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **dataset.labels}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(described | {"numTraining": len(dataset.cases)}), encoding="utf-8")


def run_trainer(options: argparse.Namespace) -> None:
    """nnU-Net's trainer with a clock; runs in its interpreter."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(options.threads)
    plans = json.loads((options.prepared / "nnUNetPlans.json").read_text(encoding="utf-8"))
    described = json.loads((options.prepared / "dataset.json").read_text(encoding="utf-8"))
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, described, torch.device("cpu"))
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    judge = _nnunet_judge(trainer, described)
    clock = Clock("nnU-Net 2.8.1", options.out, options.threads)
    for step in range(1, options.steps + 1):
        if (step - 1) % trainer.num_iterations_per_epoch == 0:
            trainer.lr_scheduler.step((step - 1) // trainer.num_iterations_per_epoch)
        trainer.network.train()
        trainer.train_step(next(batches))
        if step % options.every == 0:
            clock.stop()
            clock.note(step, judge(mirrored=False), judge(mirrored=True) if step == options.steps else None)
            clock.go_on()


def _nnunet_judge(trainer: Any, described: dict[str, Any]) -> Callable[..., float]:
    import numpy as np
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    _, validation = trainer.get_tr_and_val_datasets()
    cases = [
        (np.asarray(data), np.asarray(labels)[0])
        for data, labels, *_ in map(validation.load_case, validation.identifiers)
    ]

    def judge(*, mirrored: bool) -> float:
        import torch

        predictor = nnUNetPredictor(use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False)
        manual = (trainer.plans_manager, trainer.configuration_manager, None, described, "nnUNetTrainer")
        trainer.set_deep_supervision_enabled(False)
        trainer.network.eval()
        predictor.manual_initialization(trainer.network, *manual, trainer.inference_allowed_mirroring_axes)
        scores = []
        for data, labels in cases:
            decided = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)).argmax(0).numpy()
            for value in described["labels"].values():
                if value != 0:
                    found, truth = decided == value, labels == value
                    scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
        trainer.set_deep_supervision_enabled(True)
        return float(np.mean(scores))

    return judge


def show(options: argparse.Namespace) -> None:
    """The table of seconds until each mark."""
    out = ["| program | clock |" + "".join(f" {mark:g} |" for mark in MARKS) + " best | after |"]
    out.append("|---|---|" + "--:|" * (len(MARKS) + 2))
    for path in options.results:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        out += _lines(rows)
    sys.stdout.write("\n".join(out) + "\n")


def _lines(rows: list[dict[str, str]]) -> list[str]:
    lines = []
    best = max(float(row["dice"]) for row in rows)
    mirrored = rows[-1]["dice_mirrored"]
    last = f"{best:.3f}" + (f" ({float(mirrored):.3f} mirrored)" if mirrored else "")
    for clock in ("wall_s", "processor_s"):
        reached = [next((row[clock] for row in rows if float(row["dice"]) >= mark), None) for mark in MARKS]
        cells = "".join(f" {float(seconds):.0f} |" if seconds else " – |" for seconds in reached)
        lines.append(f"| {rows[0]['program']} | {clock[:-2]} |{cells} {last} | {float(rows[-1][clock]):.0f} s |")
    return lines


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("medseg", run_medseg), ("nnunet", run_nnunet), ("trainer", run_trainer)):
        command = commands.add_parser(name)
        command.set_defaults(run_command=run)
        command.add_argument("--steps", type=int, default=400)
        command.add_argument("--every", type=int, default=25, help="steps from one judgement to the next")
        command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
        command.add_argument("--out", type=Path, required=True)
        if name == "trainer":
            command.add_argument("--prepared", type=Path, required=True)
            continue
        command.add_argument("--store", type=Path, required=True)
        if name == "medseg":
            command.add_argument("--config", type=Path, default=Path("configs/msd/task04_hippocampus.yaml"))
            command.add_argument("--run", type=Path, default=Path("data/runs/time_to_dice"))
        else:
            command.add_argument("--bin", type=Path, required=True)
            command.add_argument("--dataset", type=Path, required=True)
            command.add_argument("--work", type=Path, default=Path("data/nnunet"))
    table = commands.add_parser("table")
    table.set_defaults(run_command=show)
    table.add_argument("results", type=Path, nargs="+")
    options = parser.parse_args()
    options.run_command(options)


if __name__ == "__main__":
    main()
