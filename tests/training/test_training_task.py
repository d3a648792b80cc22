"""The task: budgets, targets, and the machine's own arithmetic."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import nn

from medseg.errors import UsageError
from medseg.machine.hardware import cpu_multiplies_bf16
from medseg.patches.batch import target_of
from medseg.plan.plan import Normalisation, Plan
from medseg.segmenter import Segmenter
from medseg.training.optimise import SCHEDULES, FollowBudget, budget_spent, build_optimizer, schedule_factor
from medseg.training.task import IGNORED, SegmentationTask

PLAN = Plan(
    "toy", ("CT",), {"liver": 1, "spleen": 3}, "RAS", (1.0, 1.0, 1.0), (16, 16, 16), 2, (Normalisation(),),
    ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (4, 8),
)  # fmt: skip
REGIONS = Plan.from_dict(PLAN.to_dict() | {"labels": {"whole": [1, 2], "core": [2]}, "paint_order": [1, 2]})


def task_of(plan, **options):
    return SegmentationTask(plan.to_dict(), **options)


def test_regions_become_masks_and_ignored_voxels_stay_ignored():
    target = target_of(torch.tensor([[[[0, 1, 2, IGNORED]]]]), task_of(REGIONS).membership)
    assert target[0, :, 0, 0].tolist() == [[0, 1, 1, IGNORED], [0, 0, 1, IGNORED]]
    labels = torch.tensor([[[[0, 1, 2, IGNORED]]]])
    assert target_of(labels, None) is labels


def test_decisions_are_the_best_class_or_every_region_above_one_half():
    logits = torch.tensor([0.2, -1.0, 3.0]).reshape(1, 3, 1, 1, 1)
    assert Segmenter(nn.Identity(), PLAN).decide(logits).tolist() == [[[[2]]]]
    assert Segmenter(nn.Identity(), REGIONS).decide(logits[:, :2]).tolist() == [[[[[True]]], [[[False]]]]]


def test_a_task_in_training_segments_as_one_that_is_not_and_goes_on_training():
    task = task_of(PLAN, net_options={"features": [4, 8], "dropout": 0.5}, deep_supervision=True)
    *_, frozen = task.net.modules()
    frozen.eval()
    modes = [module.training for module in task.modules()]
    image = torch.randn(1, 1, 20, 16, 16)
    decided = task.segment(image)
    assert modes == [module.training for module in task.modules()]
    assert task.training
    assert not frozen.training
    assert torch.equal(decided, task.segment(image))
    assert torch.equal(decided, task.eval().segment(image))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (2, 1, 16, 16, 16), (1, 16, 16, 16)])
def test_a_volume_that_is_none_of_the_plans_is_a_sentence(shape):
    with pytest.raises(UsageError, match=r"of the shape \(1, 1, i, j, k\) with the channels CT, got \("):
        task_of(PLAN, net_options={"features": [4, 8]}).segment(torch.zeros(shape))


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_schedules_fall_from_one_and_warm_up_from_almost_nothing(schedule):
    factor = schedule_factor(schedule, warmup=0.1)
    values = [factor(step / 100) for step in range(101)]
    assert max(values) == pytest.approx(1)
    assert values[0] <= 0.01
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))
    assert values[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=1e-12))


class FakeTrainer(pl.Trainer):
    global_step, max_steps, max_epochs, min_steps, min_epochs, world_size = 0, -1, -1, None, None, 1

    def __init__(self, *, steps=0, total=-1, timer=None):
        self.global_step, self.max_steps = steps, total
        self.callbacks = [timer] if timer else []


def test_the_budget_is_steps_or_time_whichever_is_nearer_its_end():
    assert budget_spent(FakeTrainer(steps=25, total=100)) == 0.25
    assert budget_spent(FakeTrainer()) == 0
    timer = Timer(duration="00:00:01:40")
    timer._offset = 60  # as after a resume
    assert budget_spent(FakeTrainer(steps=25, total=100, timer=timer)) == pytest.approx(0.6)
    timer._offset = 600
    assert budget_spent(FakeTrainer(timer=timer)) == 1


def test_time_counts_no_faster_than_the_steps_that_a_training_must_have():
    timer, trainer = Timer(duration="00:00:01:40"), FakeTrainer(steps=3)
    trainer.callbacks, trainer.min_steps, timer._offset = [timer], 40, 600
    assert budget_spent(trainer) == 3 / 40
    trainer.global_step = 40
    assert budget_spent(trainer) == 1


class Adaptive(torch.optim.SGD):
    """As Prodigy, D-Adaptation and schedule-free do: running numbers of its own live in the group."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group |= {"d": 1e-6, "k": 0}

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"], group["d"] = group["k"] + 1, 2 * group["d"]
        return super().step(closure)


def test_going_on_changes_of_an_optimizer_only_what_the_config_has_changed(tmp_path):
    def built(**options):
        optimizer = Adaptive([torch.nn.Parameter(torch.ones(1))], **{"lr": 1.0, "weight_decay": 0.1, **options})
        return optimizer, FollowBudget(optimizer, schedule_factor("linear"), FakeTrainer(steps=25, total=100))

    optimizer, scheduler = built()
    scheduler.take_up(1.0)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5  # by a schedule of somebody's own
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "kept")
    state, told = torch.load(tmp_path / "kept", weights_only=True)
    for before, decay in ((told, 0.2), ({name: value for name, value in told.items() if name != "_asked"}, 0.2)):
        onward, schedule = built(weight_decay=0.2)
        onward.load_state_dict(state)
        schedule.load_state_dict(before)
        schedule.take_up(2.0)
        group = onward.param_groups[0]
        assert (group["weight_decay"], group["lr"]) == (decay, 1.5)
        if before is told:  # a checkpoint of an older version does not say what was asked for
            assert (group["k"], group["d"], group["momentum"]) == (1, 2e-6, 0.5)


class Constant(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(10**6))


class Clock(pl.LightningModule):
    """A module that only records its learning rate against the task's budget."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rates = []

    def training_step(self, batch, index):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.layer(torch.ones(1, 1)).sum() * 0

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = FollowBudget(optimizer, schedule_factor("linear"), self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_the_learning_rate_reaches_zero_when_the_time_is_up(tmp_path):
    clock = Clock()
    trainer = pl.Trainer(
        max_time="00:00:00:01", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(clock, torch.utils.data.DataLoader(Constant()))
    assert clock.rates[0] == 1
    assert clock.rates[-1] < 0.2
    assert all(a >= b for a, b in itertools.pairwise(clock.rates))


def test_biases_and_norms_do_not_decay():
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.InstanceNorm3d(2, affine=True))
    optimizer = build_optimizer("sgd", net.parameters(), lr=0.1, weight_decay=1e-2, options={})
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {5: 1e-2, 1: 0}
    assert optimizer.param_groups[0]["momentum"] == 0.99


def test_optimizer_options_count_for_more_than_the_arguments_of_their_names():
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.InstanceNorm3d(2, affine=True))
    options = {"weight_decay": 0.25, "lr": 0.5, "momentum": 0.1}
    optimizer = build_optimizer("sgd", net.parameters(), lr=0.1, weight_decay=1e-2, options=options)
    found = [(group["weight_decay"], group["lr"], group["momentum"]) for group in optimizer.param_groups]
    assert found == [(0.25, 0.5, 0.1), (0.0, 0.5, 0.1)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 amx_bf16 avx512_bf16", True),
        ("flags\t\t: fpu avx512_bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16", True),
        ("", False),
    ],
)
def test_bf16_units_are_read_from_the_kernels_list(tmp_path: Path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert cpu_multiplies_bf16(tmp_path / "cpuinfo") is expected
    assert not cpu_multiplies_bf16(tmp_path / "missing")


def test_help_answers_without_torch():
    code = "import sys; from medseg.cli.main import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
