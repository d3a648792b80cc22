"""Milliseconds per training step: medseg beside nnU-Net's own trainer, same network, patch and batch.

    python -m venv ENV && ENV/bin/pip install nnunetv2==2.8.1
    python benchmarks/step_time.py --nnunet ENV/bin/python
    python benchmarks/step_time.py --nnunet ENV/bin/python --geometry cube --rounds 2 --steps 2
    python benchmarks/step_time.py --nnunet ENV/bin/python --store STORE --preprocessed nnUNet_preprocessed/Dataset004_X

Every program is a process of its own, started once. They take turns of a few steps, and whoever waits is stopped, its
data workers too. nnU-Net runs ``nnUNetTrainer.train_step`` as it is: on a CPU that is float32 without autocast, on
contiguous memory, not compiled. medseg runs Lightning's loop over `SegmentationTask`, from the moment a batch is there
to the moment the next one is asked for; clipping, deep supervision, loss, optimizer, logging are inside for both. With
``--store`` and ``--preprocessed``, the same dataset prepared by each, the batches come from each program's own loader
and augmentation, whose time counts. The networks differ in nothing but nnU-Net's biases before normalisations.
Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any

GEOMETRIES: dict[str, dict[str, Any]] = {
    "hippocampus": {"patch": [40, 56, 40], "batch": 9, "features": [32, 64, 128, 256]},
    "cube": {"patch": [96, 96, 96], "batch": 2, "features": [32, 64, 128, 256, 320]},
    "tiny": {"patch": [16, 16, 16], "batch": 2, "features": [4, 8, 8]},  # to try the script
}
ORGANS = ("one", "two")
CLIP = 12.0  # nnU-Net's bound on the gradient's norm


@dataclass
class Worker:
    """A program that trains on command, stopped while it waits."""

    process: subprocess.Popen[str]
    parameters: int = 0

    @classmethod
    def start(cls, interpreter: str, program: str, options: argparse.Namespace) -> Worker:
        """Start one and wait until it is ready, its first steps done."""
        words = [interpreter, __file__, "--worker", program, "--options", json.dumps(vars(options))]
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        worker = cls(
            subprocess.Popen(words, text=True, env=os.environ | threads, start_new_session=True, **pipes)  # type: ignore[call-overload]
        )
        worker.parameters = worker.hear()["parameters"]
        worker.steps(options.warmup)
        return worker

    def steps(self, count: int) -> list[float]:
        """Let it go, do so many steps, and stop it; seconds of each."""
        os.killpg(self.process.pid, signal.SIGCONT)
        _pipe(self.process.stdin).write(f"{count}\n")
        _pipe(self.process.stdin).flush()
        seconds: list[float] = self.hear()["seconds"]
        os.killpg(self.process.pid, signal.SIGSTOP)
        return seconds

    def hear(self) -> dict[str, Any]:
        """What it says next."""
        line = _pipe(self.process.stdout).readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End it and its data workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Start all programs, let them take turns, and return what each took."""
    ours = [f"medseg {precision}" for precision in options.precisions]
    programs = [*(["nnU-Net"] if options.nnunet else []), *ours]
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    try:
        for name in programs:
            interpreter = options.nnunet if name == "nnU-Net" else sys.executable
            workers[name] = Worker.start(interpreter, name, options)
        for _ in range(options.rounds):
            for name, worker in workers.items():
                seconds[name] += worker.steps(options.steps)
    finally:
        for worker in workers.values():
            worker.end()
    return {
        name: {
            "milliseconds": round(1000 * statistics.median(each), 1),
            "quartiles": [round(1000 * q, 1) for q in statistics.quantiles(each, n=4)[::2]],
            "steps": len(each),
            "parameters": workers[name].parameters,
        }
        for name, each in seconds.items()
    }


def serve_nnunet(options: argparse.Namespace, answers: IO[str]) -> None:
    """nnU-Net's trainer, a step per command."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(options.preprocessed) if options.preprocessed else _empty_dataset(Path(folder), options)
        os.environ.update(nnUNet_raw=folder, nnUNet_preprocessed=str(data.parent), nnUNet_results=folder)
        import torch
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        torch.set_num_threads(options.threads)
        dataset = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        plans = _nnunet_plans(data.name, options)
        trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
        trainer.initialize()
        if options.preprocessed:
            batches, _ = trainer.get_dataloaders()
        else:
            batches = iter(lambda: _nnunet_batch(options), None)
        trainer.network.train()
        _say(answers, {"parameters": sum(p.numel() for p in trainer.network.parameters())})
        while count := sys.stdin.readline():
            seconds = []
            for _ in range(int(count)):
                batch = None if options.preprocessed else next(batches)
                begun = perf_counter()
                trainer.train_step(next(batches) if batch is None else batch)
                seconds.append(perf_counter() - begun)
            _say(answers, {"seconds": seconds})


def serve_medseg(precision: str, options: argparse.Namespace, answers: IO[str]) -> None:
    """Our task in Lightning's loop, which asks a loader for batches; it waits there for commands."""
    import torch

    from medseg.machine.hardware import keep_freed_memory
    from medseg.patches.datamodule import VolumesDataModule
    from medseg.training.fit import Trainer
    from medseg.training.task import SegmentationTask

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    plan = _plan(options)
    knobs: dict[str, Any] = {"net_options": {"features": options.features}, **options.model}
    task = SegmentationTask(plan.to_dict(), deep_supervision=True, **knobs)
    data = None
    if options.store:
        sizes = {"batch_size": options.batch, "patch_size": tuple(options.patch)}
        data = VolumesDataModule(Path(options.store), augmentation="full", **sizes)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "max_epochs": 1000}
    trainer = Trainer(
        precision=precision if precision == "bf16-mixed" else 32,
        accelerator="cpu",
        gradient_clip_val=CLIP,
        limit_val_batches=0,
        enable_progress_bar=False,
        **quiet,
    )
    _say(answers, {"parameters": sum(p.numel() for p in task.net.parameters())})
    if data is not None:
        data.train_dataloader = lambda load=data.train_dataloader: Commanded(load(), answers, counted=True)  # type: ignore[method-assign, misc]
        trainer.fit(task, datamodule=data)
    else:
        trainer.fit(task, train_dataloaders=Commanded(_medseg_batches(options), answers, counted=False))


class Commanded:
    """Batches on command: so many per line of standard input, after which it tells what each step took.

    Args:
        batches: Where they come from.
        answers: Where the seconds go.
        counted: Whether the time that a batch takes to come counts.
    """

    def __init__(self, batches: Any, answers: IO[str], *, counted: bool) -> None:
        self.batches, self.answers, self.counted = batches, answers, counted

    def __len__(self) -> int:
        """Lightning reads no batch ahead of a loader whose length it knows."""
        return 10**6

    def __iter__(self) -> Iterator[Any]:
        """Yield while there are commands; a step lasts until the next batch is asked for."""
        stream = self._endless()
        while count := sys.stdin.readline():
            seconds = []
            for _ in range(int(count)):
                begun = perf_counter()
                batch = next(stream)
                begun = begun if self.counted else perf_counter()
                yield batch
                seconds.append(perf_counter() - begun)
            _say(self.answers, {"seconds": seconds})

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.batches


def _plan(options: argparse.Namespace) -> Any:
    from medseg.plan.plan import Normalisation, Plan, read_plan

    if options.store:
        return read_plan(Path(options.store) / "plan.yaml")
    stages = len(options.features)
    strides = ((1, 1, 1), *[(2, 2, 2)] * (stages - 1))
    i, j, k = options.patch
    return Plan(
        "bench",
        ("MRI",),
        dict(zip(ORGANS, (1, 2), strict=True)),
        "RAS",
        (1.0, 1.0, 1.0),
        (i, j, k),
        options.batch,
        (Normalisation(),),
        strides,
        ((3, 3, 3),) * stages,
        tuple(options.features),
    )


class _medseg_batches:  # noqa: N801  a function that may be iterated over again
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    def __iter__(self) -> Iterator[Any]:
        import torch

        from medseg.patches.batch import Batch

        image, labels = _patches(self.options)
        ids = ("bench",) * self.options.batch
        while True:
            yield Batch(image.clone(), labels[:, 0].clone(), torch.ones(self.options.batch, 3), ids, None)


def _patches(options: argparse.Namespace) -> tuple[Any, Any]:
    """An image with two brighter blocks for organs, and their labels."""
    import torch

    torch.manual_seed(0)
    labels = torch.zeros(options.batch, 1, *options.patch, dtype=torch.int16)
    i, j, k = (n // 4 for n in options.patch)
    labels[:, :, i : 2 * i, j : 3 * j, k : 2 * k] = 1
    labels[:, :, 2 * i : 3 * i, j : 3 * j, k : 2 * k] = 2
    return labels + torch.randn(labels.shape), labels


def _nnunet_batch(options: argparse.Namespace) -> dict[str, Any]:
    image, labels = _patches(options)
    levels = [labels[:, :, :: 2**d, :: 2**d, :: 2**d].contiguous() for d in range(len(options.features) - 1)]
    return {"data": image, "target": levels}


def plain_unet(features: Sequence[int]) -> dict[str, Any]:
    """The arguments of nnU-Net's plain U-Net with two convolutions a stage, as its planner writes them."""
    stages = len(features)
    return {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _nnunet_plans(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The plans that nnU-Net's planner writes for such a patch, batch and network."""
    network = plain_unet(options.features)
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": options.batch,
        "patch_size": options.patch,
        "median_image_size_in_voxels": options.patch,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"3d_fullres": configuration},
        "continue_training": False,
    }


def _empty_dataset(folder: Path, options: argparse.Namespace) -> Path:
    """What the trainer looks for before it trains: a description, and a file that tells the format."""
    data = folder / "preprocessed" / "Dataset001_Bench"
    (data / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (data / "nnUNetPlans_3d_fullres" / "case.b2nd").touch()
    labels = {"background": 0, **dict(zip(ORGANS, (1, 2), strict=True))}
    described = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    return data


def _say(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ValueError("the process was started without pipes")
    return stream


def _serve(program: str, options: argparse.Namespace) -> None:
    """Answer on standard output alone; whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if program == "nnU-Net":
        serve_nnunet(options, answers)
    else:
        serve_medseg(program.removeprefix("medseg "), options, answers)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nnunet", help="the interpreter of an environment with nnunetv2; left out, only medseg")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="hippocampus")
    parser.add_argument("--precisions", nargs="+", default=["bf16-mixed", "32"])
    parser.add_argument("--model", type=json.loads, default={}, help="further options of the task, as JSON")
    parser.add_argument("--store", help="a store of medseg prepare, for steps with their data")
    parser.add_argument("--preprocessed", help="the same dataset, preprocessed by nnU-Net")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="of each program in a round")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _serve(options.worker, argparse.Namespace(**options.options))
    vars(options).update(GEOMETRIES[options.geometry])
    rows = measure(options)
    peer = rows.get("nnU-Net")
    ratios = {name: round(peer["milliseconds"] / row["milliseconds"], 2) for name, row in rows.items()} if peer else {}
    print(json.dumps({"geometry": options.geometry, "rows": rows, "times faster than nnU-Net": ratios}, indent=1))


if __name__ == "__main__":
    main()
