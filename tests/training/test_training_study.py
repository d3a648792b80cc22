"""The study of losses: what it records is what a training with that loss would have done, and nothing is disturbed."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from medseg.errors import DataError
from medseg.losses import build_loss, list_losses
from medseg.losses.table import rows
from medseg.training.loss import OwnLoss
from medseg.training.study import TABLE, LossStudy, measure, read_study, study_criteria


class Toy(pl.LightningModule):
    """Two convolutions with batch normalisation: whatever the study did to them would show."""

    def __init__(self, loss="dice", classes=2):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout3d(0.1), nn.Conv3d(4, classes, 1)
        )
        self.loss = build_loss(loss, mode="multiclass", ignore_index=-1)

    def training_step(self, batch, index):
        image, labels = batch
        return self.loss(self.net(image), labels, spacing_mm=[1.0, 1.0, 2.0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(8, 8, 8, 8, dtype=torch.long)
    labels[:, 2:6, 2:6, 3:6] = 1
    labels[:, 0, 0, 0] = -1
    images = labels.unsqueeze(1).clamp(min=0) + 0.3 * torch.randn(8, 1, 8, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=2)


def train(folder, study=None, *, steps=4, seed=0, **options):
    torch.manual_seed(seed)
    module = Toy()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[study] if study else None, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(module, batches())
    return module, trainer


def gradient_norm(module, loss, image, labels):
    """By the book: a forward and a backward pass of its own."""
    parameters = list(module.net.parameters())
    value = build_loss(loss, ignore_index=-1)(module.net(image), labels, [1.0, 1.0, 2.0])
    gradients = torch.autograd.grad(value, parameters)
    return value.item(), math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))


def test_the_readings_are_those_of_a_pass_of_its_own_for_every_loss():
    torch.manual_seed(1)
    module = Toy().eval()
    image, labels = next(iter(batches()))
    criteria = study_criteria(["all"], mode="multiclass", ignore_index=-1)
    logits = module.net(image)
    readings = measure(criteria, logits, labels, [1.0, 1.0, 2.0], weights=list(module.net.parameters()))
    assert [reading.loss for reading in readings] == [r.name for r in rows().values() if "multiclass" in r.modes]
    for reading in readings:
        expected = gradient_norm(module, reading.loss, image, labels)
        assert (reading.value, reading.gradient_norm) == pytest.approx(expected, rel=1e-3, abs=1e-7), reading.loss


def test_the_norm_at_the_logits_of_cross_entropy_has_a_closed_form():
    logits, labels = torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)
    criteria = study_criteria(["cross_entropy"], mode="multiclass", ignore_index=None)
    (reading,) = measure(criteria, logits * 2, labels, weights=[logits])
    assert reading.value == pytest.approx(math.log(2), abs=1e-6)
    assert reading.logit_gradient_norm == pytest.approx(math.sqrt(16 * 2 * (0.5 / 16) ** 2), rel=1e-5)
    assert reading.gradient_norm == pytest.approx(2 * reading.logit_gradient_norm, rel=1e-5)


def test_training_is_not_changed_by_a_bit(tmp_path):
    watched, _ = train(tmp_path, LossStudy())
    alone, _ = train(tmp_path / "alone")
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


def test_the_table_has_a_row_per_loss_and_recorded_step(tmp_path):
    train(tmp_path, LossStudy(["dice", "dice + 0.5 * focal"], every=2))
    readings = read_study(tmp_path)
    assert [(r.step, r.loss) for r in readings] == [
        (s, loss) for s in (0, 2) for loss in ("dice", "dice + 0.5 * focal")
    ]
    assert readings == read_study(tmp_path / TABLE)
    assert all(reading.gradient_norm > 0 for reading in readings)


def test_of_accumulated_batches_the_first_is_recorded(tmp_path):
    train(tmp_path, LossStudy(["dice"]), steps=2, accumulate_grad_batches=2)
    assert [reading.step for reading in read_study(tmp_path)] == [0, 1]


def test_a_resumed_run_forgets_the_steps_that_it_repeats(tmp_path):
    _, trainer = train(tmp_path, LossStudy(["dice"]), steps=4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    with (tmp_path / TABLE).open("a") as file:
        file.write("4,dice,9,9,9\n")  # a step after the checkpoint, before the interruption
    torch.manual_seed(0)
    onward = pl.Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[LossStudy(["dice"])], enable_checkpointing=False,
    )  # fmt: skip
    onward.fit(Toy(), batches(), ckpt_path=tmp_path / "four.ckpt", weights_only=True)
    readings = read_study(tmp_path)
    assert [reading.step for reading in readings] == [0, 1, 2, 3, 4, 5]
    assert readings[4].value < 9


def test_a_vanishing_half_precision_gradient_still_reaches_the_weights():
    """A ten-thousandth of cross-entropy has a gradient that float16 could not hold at the logits."""
    weight = torch.ones(1, dtype=torch.float16, requires_grad=True)
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    image = torch.tensor([1.0, 0.0], dtype=torch.float16).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    readings = [
        measure(study_criteria([loss], mode="multiclass", ignore_index=None), image * weight, labels, weights=[weight])[
            0
        ]
        for loss in ("cross_entropy", "1e-4 * cross_entropy")
    ]
    assert readings[1].gradient_norm == pytest.approx(1e-4 * readings[0].gradient_norm, rel=1e-2)
    assert readings[0].gradient_norm == pytest.approx(1 / (1 + math.e), rel=1e-2)


def test_all_means_those_of_the_mode_once():
    criteria = study_criteria(["dice", "all"], mode="binary", ignore_index=None)
    assert set(criteria) == {row.name for row in rows().values() if "binary" in row.modes}
    assert set(study_criteria(["all"], mode="multiclass", ignore_index=None)) <= set(list_losses())


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda _: LossStudy(every=0), ValueError, "1 step or more"),
        (lambda _: study_criteria(["dcie"], mode="binary", ignore_index=None), ValueError, "'dice'"),
        (lambda folder: read_study(folder / "nowhere.csv"), DataError, "--model.study"),
        (lambda folder: read_study(folder), DataError, "--model.study"),
    ],
)
def test_misuse_is_a_sentence(call, error, word, tmp_path):
    (tmp_path / TABLE).write_text("a,b\n1,2\n")
    with pytest.raises(error, match=word):
        call(tmp_path)


def test_a_loss_of_ones_own_is_studied_beside_others(tmp_path):
    module = Toy()
    module.loss = OwnLoss(lambda logits, labels: nn.functional.cross_entropy(logits, labels, ignore_index=-1))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    study = LossStudy(["cross_entropy"])
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, callbacks=[study], **quiet)
    trainer.fit(module, batches())
    (reading,) = read_study(tmp_path)
    assert reading.gradient_norm > 0


def test_a_module_without_a_criterion_is_refused(tmp_path):
    module = Toy()
    module.loss = nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match="build_loss"):
        LossStudy().on_train_start(pl.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path), module)
