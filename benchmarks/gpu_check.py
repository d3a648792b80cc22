"""One run of eight minutes on a GPU: is medseg right there, and where does the time go?

    python benchmarks/gpu_check.py --out OUT                        # on the first GPU, 480 s at most
    python benchmarks/gpu_check.py --out OUT --device cpu --small   # tries the script itself, in a minute
    python benchmarks/gpu_check.py --out OUT correct network        # some stages

Stages in order of worth, each in a process of its own with a limit; every row is printed and kept as soon as it is
there, so what is cut off has its rows so far in OUT/STAGE.md. Rows that begin with WRONG are faults. Beside ours run
MONAI's DynUNet and loss, and nnU-Net's network (dynamic-network-architectures) where it is installed, on the same
patches.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own abbreviation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.nets import TINY
from support.rehearsal import CELLS, SPEC, crops, example, value_and_gradient

from medseg.inference.predict import Predictor
from medseg.losses import build_loss
from medseg.losses.statistics import sums_by_label
from medseg.nets import NetSpec, build_net, list_nets
from medseg.nets.norm import InstanceNorm3d
from medseg.patches.batch import augmented
from medseg.plan.plan import Normalisation, Plan
from medseg.segmenter import Segmenter, net_spec
from medseg.space.volume import Volume

Row = dict[str, Any]
HALVED = ((1, 1, 1), *[(2, 2, 2)] * 5)
WIDTHS = (32, 64, 128, 256, 320, 320)
LIMITS_S = {"correct": 85, "micro": 60, "network": 100, "fit": 130, "predict": 60, "learn": 30}


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large: with ``small`` so that a CPU is through in seconds."""

    device: torch.device
    small: bool
    out: Path

    def ms(self, work: Callable[[], object]) -> float:
        """The median of some runs, each waited for."""
        taken = []
        for _ in range(2 if self.small else 13):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            taken.append(1000 * (time.perf_counter() - begun))
        return statistics.median(taken[1 if self.small else 3 :])

    def peak_mib(self, work: Callable[[], object]) -> float:
        """What a run takes of the GPU's memory beyond what is held."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def spec(self) -> NetSpec:
        """nnU-Net's U-Net for patches of 128^3."""
        if self.small:
            return NetSpec(1, 2, (16, 16, 16), HALVED[:3], ((3, 3, 3),) * 3, (4, 8, 8))
        return NetSpec(1, 2, (128, 128, 128), HALVED, ((3, 3, 3),) * 6, WIDTHS)


def correct(bench: Bench) -> Iterator[Row]:
    """Losses, networks and augmentation beside the CPU's, in three precisions and in deterministic mode."""
    for name, mode in CELLS[:: 20 if bench.small else 1]:
        logits, target, spacing_mm = example(mode)
        loss = build_loss(name, mode=mode, ignore_index=-1)
        _, wanted = value_and_gradient(loss, logits, target, spacing_mm)
        loss = loss.to(bench.device)
        for dtype, bound in ((torch.float32, 2e-4), (torch.bfloat16, 1e-1), (torch.float16, 2e-2)):
            z = logits.to(bench.device, dtype, copy=True).requires_grad_()
            loss(z, target.to(bench.device), spacing_mm).backward()
            off = float((z.grad.float().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-12))
            rounded = "topk" in name and dtype is not torch.float32  # another voxel at the edge of the hardest
            if not off < (1e-1 if rounded else bound):  # NaN too
                yield {"WRONG": f"{name} {mode}", "dtype": dtype, "gradient off": off}
    for name, repeatable in itertools.product(list_nets()[:: 4 if bench.small else 1], (False, True)):
        yield from network_is_right(bench, name, repeatable=repeatable)
    for preset, number in itertools.product(("light", "moderate", "full"), range(1 if bench.small else 8)):
        batch, geometry, nearest = crops(preset, number)
        wanted = augmented(batch._replace(image=tuple(map(torch.clone, batch.image))), geometry, nearest=nearest)
        moved = {part: [one.to(bench.device) for one in getattr(batch, part)] for part in ("image", "labels")}
        found = augmented(batch._replace(**moved), geometry, nearest=nearest)
        off = float((found.labels.cpu() != wanted.labels).float().mean())
        if off > 1e-3:
            yield {"WRONG": f"augmentation {preset} {number}", "labels that differ": off}
    yield {"losses": len(CELLS), "networks": len(list_nets())}


def network_is_right(bench: Bench, name: str, *, repeatable: bool) -> Iterator[Row]:
    """Outputs are the CPU's, and in deterministic mode two gradients are one."""
    torch.manual_seed(0)
    spec = replace(SPEC, patch_size=(64, 32, 32)) if name == "swin_unetr" else SPEC
    net, image = build_net(name, spec, TINY.get(name, {})).eval(), torch.randn(2, 1, *spec.patch_size)
    wanted = net(image)
    net, image = net.to(bench.device), image.to(bench.device)
    off = float((net(image).cpu() - wanted).norm() / wanted.norm())
    if off > 5e-3:  # convolutions of CUDA round to TF32
        yield {"WRONG": name, "output off": off}
    torch.use_deterministic_algorithms(repeatable)
    gradients = []
    for _ in range(2 if repeatable else 1):
        torch.manual_seed(1)
        net.train().zero_grad()
        net(image).square().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in net.parameters()]))
    torch.use_deterministic_algorithms(False)
    if not all(torch.equal(gradients[0], other) for other in gradients):
        yield {"WRONG": name, "deterministic": "two gradients differ"}


def micro(bench: Bench) -> Iterator[Row]:
    """Sums by label, norm with activation, losses: ours beside the ways they might take."""
    voxels = 2**12 if bench.small else 128**3
    for classes in (2, 14, 105):
        labels = torch.zeros(2, voxels, dtype=torch.int16)
        labels[:, ::8] = torch.randint(1, classes, (2, len(range(0, voxels, 8)))).short()  # 7 of 8 are background
        labels, values = labels.to(bench.device), torch.rand(2, voxels, device=bench.device)
        zeros = torch.zeros(2, classes, device=bench.device, dtype=torch.float64)
        ways = {
            "ours": lambda y=labels, v=values, c=classes: sums_by_label(y, v, c),
            "one double per class": lambda y=labels, v=values, z=zeros: z.scatter_add(1, y.long(), v.double()),
        }
        for way, work in ways.items():
            off = float((work() - sums_by_label(labels.cpu(), values.cpu(), classes).to(bench.device)).abs().max())
            yield {"what": f"sums of {classes} labels", "way": way, "ms": bench.ms(work), "off": off}
    yield from norms(bench)
    yield from losses(bench)


def norms(bench: Bench) -> Iterator[Row]:
    """Instance norm and activation, forward and backward, in both layouts."""
    edge = 8 if bench.small else 128
    for layout, kind in itertools.product(
        (torch.contiguous_format, torch.channels_last_3d), (InstanceNorm3d, torch.nn.InstanceNorm3d)
    ):
        norm = kind(32, affine=True).to(bench.device)
        x = torch.randn(2, 32, edge, edge, edge, device=bench.device, dtype=torch.bfloat16).contiguous(
            memory_format=layout
        )

        def both(norm=norm, x=x):
            y = F.leaky_relu(norm(x.requires_grad_()), 0.01, inplace=True)
            y.backward(y.detach())

        ours = "ours" if kind is InstanceNorm3d else "torch"
        yield {"what": f"norm, {layout}", "way": ours, "ms": bench.ms(both), "MiB": bench.peak_mib(both)}


def losses(bench: Bench) -> Iterator[Row]:
    """Dice and cross-entropy beside MONAI's, and losses of distances."""
    from monai.losses import DiceCELoss

    edge = 16 if bench.small else 128
    ours, theirs = build_loss("dice + cross_entropy"), DiceCELoss(to_onehot_y=True, softmax=True)
    cases = [(classes, way, loss) for classes in (2, 14, 105) for way, loss in (("ours", ours), ("MONAI", theirs))]
    cases += [
        (14, name, build_loss(name)) for name in ("boundary", "hausdorff_dt", "skeleton_recall", "lovasz_softmax")
    ]
    for classes, way, loss in cases:
        z = torch.randn(2, classes, edge, edge, edge, device=bench.device)
        y = torch.zeros(2, 1, edge, edge, edge, dtype=torch.int16, device=bench.device)
        for label in range(1, classes):
            y[:, :, label % edge, edge // 4 : edge // 2, 2:9] = label

        def both(z=z, y=y, loss=loss, way=way):
            options = (y,) if way == "MONAI" else (y[:, 0], torch.ones(3))
            loss(z.requires_grad_(), *options).backward()

        yield {"what": f"loss, {classes} classes", "way": way, "ms": bench.ms(both), "MiB": bench.peak_mib(both)}


def network(bench: Bench) -> Iterator[Row]:
    """Forward and backward of two patches in bf16: ours in both layouts and compiled, beside peers; then windows."""
    spec = bench.spec
    image = torch.randn(2, 1, *spec.patch_size, device=bench.device)
    for way, build in builders(bench).items():
        for layout, quick in itertools.product((torch.contiguous_format, torch.channels_last_3d), (False, True)):
            torch.backends.cudnn.benchmark = quick
            net = build().to(bench.device, memory_format=layout).train()
            x = image.contiguous(memory_format=layout)

            def step(net=net, x=x):
                net.zero_grad(set_to_none=True)
                with torch.autocast(bench.device.type, dtype=torch.bfloat16):
                    levels = net(x)
                sum(
                    level.float().square().mean()
                    for level in (levels if isinstance(levels, tuple | list) else (levels,))
                ).backward()

            told = {"benchmark": quick, "layout": str(layout).rpartition(".")[2]}
            yield {"what": way, **told, "ms": bench.ms(step), "MiB": bench.peak_mib(step)}
    net = builders(bench)["medseg"]().to(bench.device).eval()
    for together in (1, 2, 4):
        windows = image[:1].expand(together, -1, -1, -1, -1).contiguous()
        with torch.inference_mode(), torch.autocast(bench.device.type, dtype=torch.bfloat16):
            yield {"what": f"{together} windows", "ms each": bench.ms(lambda w=windows: net(w)) / together}


def builders(bench: Bench) -> dict[str, Callable[[], torch.nn.Module]]:
    """The same U-Net by name of who wrote it; that of nnU-Net where it is installed."""
    from monai.networks.nets import DynUNet

    spec = bench.spec
    strides, kernels = [list(stride) for stride in spec.strides], [list(kernel) for kernel in spec.kernels]
    found: dict[str, Callable[[], torch.nn.Module]] = {
        "medseg": lambda: build_net("unet", spec, {"deep_supervision": True}),
        "MONAI DynUNet": lambda: DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=spec.features),
    }
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
    except ImportError:
        return found
    stages, options = len(strides), {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}}
    options |= {"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True}
    found["nnU-Net"] = lambda: PlainConvUNet(
        *(1, stages, spec.features, torch.nn.Conv3d, kernels, strides, 2, 2, 2), conv_bias=True, **options
    )
    return found


def fit(bench: Bench) -> Iterator[Row]:
    """`medseg fit` of synthetic CTs on nnU-Net's patch: seconds of a step, and what it waits for."""
    store = make_store(bench)
    workers = ("0",) if bench.small else ("4", "8")
    ways = {f"{n} workers": [f"--data.workers={n}"] for n in workers}
    ways |= {"averaged": [f"--data.workers={workers[-1]}", "--model.ema=0.99"]}
    ways |= {"fp16": [f"--data.workers={workers[-1]}", "--trainer.precision=16-mixed"]} if not bench.small else {}
    for way, words in ways.items():
        run = bench.out / "fit" / way.replace(" ", "_")
        begun = time.perf_counter()
        status = medseg("fit", *fit_words(bench, store, run), *words)
        yield {"what": "fit", "way": way, "status": status, "wall s": time.perf_counter() - begun, **last_row(run)}


def fit_words(bench: Bench, store: Path, run: Path) -> list[str]:
    """The options of a short training with nnU-Net's plan."""
    steps = 3 if bench.small else 40
    sizes = ["--data.patch_size=[32,32,32]", "--model.net_options={features: [4, 8]}"] if bench.small else []
    return [
        *(f"--data.store={store}", f"--run={run}", "--data.folds=2", "--data.batch_size=2", "--data.cache=disk"),
        *(f"--data.steps_per_epoch={steps}", f"--trainer.max_steps={steps}", "--data.augmentation=full"),
        *("--model.deep_supervision=true", "--trainer.gradient_clip_val=12", "--trainer.limit_val_batches=1"),
        *(f"--trainer.accelerator={'gpu' if bench.device.type == 'cuda' else 'cpu'}", "--trainer.devices=1"),
        *("--trainer.num_sanity_val_steps=0", "--trainer.logger=false", "--trainer.enable_progress_bar=false", *sizes),
    ]


def medseg(*words: str) -> int:
    """The command, in this process."""
    from medseg.cli import main

    return main(list(words))


def last_row(run: Path) -> Row:
    """The costs that a run has logged."""
    import csv

    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        costs = [
            {k: v for k, v in row.items() if k.startswith(("time/", "memory/")) and v} for row in csv.DictReader(file)
        ]
    return {name: float(value) for row in costs for name, value in row.items()}


def make_store(bench: Bench) -> Path:
    """A store of CTs of noise with an ellipsoid, as the phantom draws them."""
    from medseg.phantom.phantom import write_phantom
    from medseg.store.prepare import prepare

    data, store = bench.out / "data", bench.out / "store"
    if not store.exists():
        write_phantom(data, cases=4, size=(48, 48, 40) if bench.small else (256, 256, 192))
        prepare(data, store, workers=1 if bench.small else None)
    return store


def predict(bench: Bench) -> Iterator[Row]:
    """A large volume by parts: preparing, network and going back, cleaning; and memory."""
    shape, edge = ((40, 36, 34), 32) if bench.small else ((512, 512, 300), 128)
    strides, widths = (HALVED[:3], (4, 8, 8)) if bench.small else (HALVED, WIDTHS)
    voxels = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    volume = Volume(array=voxels, affine=np.diag([0.8, 0.8, 1.5, 1.0]))
    for classes in (3,) if bench.small else (2, 14, 105):
        labels = {f"organ {number}": number for number in range(1, classes)}
        kernels = ((3, 3, 3),) * len(strides)
        sizes = ((0.8, 0.8, 1.6), (edge, edge, edge), 2, (Normalisation(),), strides, kernels, widths)
        plan = Plan("check", ("CT",), labels, "RAS", *sizes)
        predictor = Predictor([Segmenter(build_net("unet", net_spec(plan), {}), plan)], device=str(bench.device))
        torch.backends.cudnn.benchmark = True
        moments = [time.perf_counter()]
        prepared = predictor.prepare(volume)
        moments.append(time.perf_counter())
        found: list[Any] = []
        peak = bench.peak_mib(lambda p=predictor, f=found, v=prepared: f.append(p.segment(v)))
        found = found or [predictor.segment(prepared)]
        moments.append(time.perf_counter())
        predictor.clean(found[0], prepared.change)
        moments.append(time.perf_counter())
        parts = dict(zip(("prepare s", "segment s", "clean s"), np.diff(moments).tolist(), strict=True))
        yield {"what": f"{classes} classes", **parts, "MiB": peak}


def learn(bench: Bench) -> Iterator[Row]:
    """Whether the phantom is learnt, for as long as there is time."""
    run = bench.out / "learn"
    words = fit_words(bench, make_store(bench), run)
    more = (
        []
        if bench.small
        else ["--trainer.max_steps=400", "--data.steps_per_epoch=400", "--trainer.max_time=00:00:00:20"]
    )
    status = medseg(
        "fit", *words, "--model.optimizer=adamw", "--model.lr=0.003", *more, "--trainer.limit_val_batches=1.0"
    )
    from medseg.checkpoints.reading import read_checkpoint

    dice = read_checkpoint(run / "checkpoints" / "last.ckpt").scores.get("val/dice", float("nan"))
    yield {"what": "phantom", "status": status, "Dice": dice}


STAGES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    stage.__name__: stage for stage in (correct, micro, network, fit, predict, learn)
}


def run_stage(bench: Bench, name: str) -> bool:
    """Do one stage, row by row; whether nothing is wrong."""
    bench.out.mkdir(parents=True, exist_ok=True)
    right = True
    with (bench.out / f"{name}.md").open("w", encoding="utf-8") as table:
        for row in STAGES[name](bench):
            right &= "WRONG" not in row
            cells = [
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            ]
            line = f"| {name} | {' | '.join(cells)} |"
            print(line, flush=True)
            print(line, file=table, flush=True)
    return right


def main(words: list[str] | None = None) -> int:
    """Run the stages that are named, or all; the exit status is 1 where something is wrong or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], help="of " + ", ".join(STAGES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script")
    options = parser.parse_args(words)
    if len(options.stages) == 1:
        return int(not run_stage(Bench(torch.device(options.device), options.small, options.out), options.stages[0]))
    if options.device == "cuda":
        print(torch.__version__, torch.backends.cudnn.version(), torch.cuda.get_device_name(), flush=True)
    status = 0
    for name in options.stages or STAGES:
        again = [sys.executable, __file__, name, "--out", str(options.out), "--device", options.device]
        try:
            ended = subprocess.run(
                [*again, *["--small"] * options.small], timeout=LIMITS_S[name], check=False
            ).returncode
        except subprocess.TimeoutExpired:
            ended = 1
            print(f"| {name} | cut off after {LIMITS_S[name]} s |", flush=True)
        status = max(status, ended)
    return status


if __name__ == "__main__":
    sys.exit(main())
