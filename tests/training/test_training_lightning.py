"""What is not promised by Lightning and torch still means what we take it for."""

import ast
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.strategies.launchers import subprocess_script
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

import medseg.training
from medseg.training import lightning

ROOM = Path(medseg.training.__file__).parent


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(batch).mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ask(pl.Callback):
    """Notes the answers at every batch's end."""

    def __init__(self):
        self.told, self.epochs, self.at_epochs_end = [], [], []

    def on_train_batch_end(self, trainer, *_):
        self.told.append((lightning.between_steps(trainer), lightning.epoch_ends(trainer)))
        self.epochs.append(lightning.epochs_done(trainer))

    def on_train_epoch_end(self, trainer, module):
        self.at_epochs_end.append(lightning.epochs_done(trainer))


def fit(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = DataLoader(torch.ones(4, 1))
    trainer = pl.Trainer(**quiet, enable_checkpointing=False, default_root_dir=tmp_path, **options)
    module = Module()
    trainer.fit(module, loader, DataLoader(torch.ones(2, 1)))
    return trainer, module


def test_where_a_training_is(tmp_path):
    ask = Ask()
    trainer, module = fit(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[ask], num_sanity_val_steps=0)
    assert ask.epochs == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert ask.at_epochs_end == [1, 2]
    epoch = [(False, False), (True, False), (False, False), (False, True)]  # at whose end it is validated
    assert ask.told == epoch * 2
    assert lightning.may_stop(trainer)
    assert not lightning.rehearses(trainer)
    assert lightning.trainer_of(Module()) is None
    assert lightning.trainer_of(module) is trainer
    assert ask in lightning.callbacks_of(trainer)
    lightning.count_steps_right(trainer)
    assert trainer._logger_connector is not None


def test_the_share_of_the_time(tmp_path):
    trainer = pl.Trainer(max_time="00:00:01:40", logger=False, accelerator="cpu", default_root_dir=tmp_path)
    assert lightning.has_clock(trainer)
    assert lightning.time_spent(trainer) == 0
    next(c for c in trainer.callbacks if isinstance(c, Timer))._offset = 50
    assert 0.5 <= lightning.time_spent(trainer) < 0.6
    assert lightning.time_spent(pl.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)) == 0


class BreakOff(pl.Callback):
    """Keeps a checkpoint in the middle of a validation."""

    def __init__(self, path):
        self.path = path

    def on_validation_batch_end(self, trainer, *_):
        if not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        lightning.forget_validation(checkpoint["loops"])


def test_a_validation_that_was_broken_off_begins_anew(tmp_path):
    path = tmp_path / "middle.ckpt"
    fit(tmp_path, max_epochs=1, callbacks=[BreakOff(path)], num_sanity_val_steps=0)
    validated = []

    class Count(pl.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, index, *_):
            validated.append((trainer.global_step, index))

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**quiet, enable_checkpointing=False, max_epochs=1, callbacks=[Count()])
    loaders = DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(2, 1))
    trainer.fit(Module(), *loaders, ckpt_path=path, weights_only=True)
    assert validated == [(4, 0), (4, 1)]
    assert trainer.global_step == 4


def test_the_launcher_can_be_changed():
    strategy = DDPStrategy()
    theirs = object.__new__(lightning.ScriptLauncher)
    strategy._launcher = theirs
    lightning.change_launcher(strategy, lambda launcher: (launcher, "ours"))
    assert strategy.launcher == (theirs, "ours")
    source = Path(subprocess_script.__file__).read_text(encoding="utf-8")  # whose thread we know by name
    assert lightning._OBSERVER in source
    assert "_terminate_all" in source


def test_only_one_file_knows_private_names():
    """An attribute with an underscore of anything but ``self`` is somebody else's."""
    for path in sorted(ROOM.glob("*.py")):
        if path.name == "lightning.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path.name}: {private}"
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert owner in ("self", "os"), f"{path.name}:{node.lineno} {owner}.{node.attr}"
