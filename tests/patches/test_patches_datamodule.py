import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support.toys import write_nifti
from torch.utils.data._utils import signal_handling

from medseg.errors import DataError, UsageError
from medseg.patches import loader
from medseg.patches.batch import Batch, Crops, augmented, packed
from medseg.patches.cutting import TrainingCrops
from medseg.patches.datamodule import VolumesDataModule
from medseg.patches.loader import EpochOrder
from medseg.patches.spatial import centre
from medseg.plan.plan import Normalisation, Plan
from medseg.store.prepare import prepare

PLAN = Plan(
    "rooms",
    ("MRI",),
    {"kidney": 1, "node": 2},
    "RAS",
    (1.0, 1.0, 1.0),
    (12, 16, 12),
    3,
    (Normalisation("none"),),
    ((1, 1, 1), (2, 2, 2)),
    ((3, 3, 3), (3, 3, 3)),
    (4, 8),
    mirror_axes=(0, 1),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eight cases, smaller and larger than a patch; number 7 has no organ; the node is a single voxel."""
    root = tmp_path_factory.mktemp("rooms")
    entries = []
    for index in range(8):
        shape = (20 + index, 18, 10 + index)
        labels = np.zeros(shape, np.uint8)
        if index < 7:
            labels[4:12, 3:9, 2:8] = 1
            labels[15, 14, 8] = 2
        image = np.random.default_rng(index).normal(labels * 100.0 + 10 * index, 1).astype(np.float32)
        write_nifti(root / "imagesTr" / f"case_{index}.nii.gz", image, np.eye(4))
        write_nifti(root / "labelsTr" / f"case_{index}.nii.gz", labels, np.eye(4))
        entries.append({"image": f"./imagesTr/case_{index}.nii.gz", "label": f"./labelsTr/case_{index}.nii.gz"})
    labels = {"0": "background", "1": "kidney", "2": "node"}
    manifest = {"name": "rooms", "modality": {"0": "MRI"}, "labels": labels, "training": entries, "test": []}
    (root / "dataset.json").write_text(json.dumps(manifest))
    prepare(root, root / "store", PLAN, workers=1)
    return root / "store"


def module(store, **options):
    defaults = {"folds": 4, "steps_per_epoch": 6, "workers": 0, "augmentation": "full"}
    return VolumesDataModule(store, **(defaults | options))


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def batches(data, epochs=1):
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from (data.on_after_batch_transfer(crops, 0) for crops in loader)


def test_a_batch_is_what_the_task_expects(store):
    data = module(store)
    batch = next(batches(data))
    assert isinstance(batch, Batch)
    assert batch.image.shape == (3, 1, 12, 16, 12)
    assert batch.image.dtype == torch.float32
    assert batch.labels.shape == (3, 12, 16, 12)
    assert set(batch.labels.unique().tolist()) <= {-1, 0, 1, 2}
    assert batch.spacing_mm.tolist() == [[1.0, 1.0, 1.0]] * 3
    assert set(batch.id) <= set(data.cases.train)
    assert batch.class_mask is None
    assert data.plan == PLAN


def test_batches_repeat_for_a_seed_and_differ_for_another(store):
    first, again, other = (list(batches(module(store, seed=seed))) for seed in (0, 0, 1))
    assert all(map(same, first, again))
    assert not any(map(same, first, other))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(store, workers):
    alone = list(batches(module(store), epochs=2))
    helped = list(batches(module(store, workers=workers, cache="disk"), epochs=2))
    assert len(helped) == 12
    assert all(map(same, alone, helped))


def test_batches_are_the_same_from_memory_and_from_disk(store):
    memory, disk = (list(batches(module(store, cache=cache))) for cache in ("memory", "disk"))
    assert all(map(same, memory, disk))


def test_ranks_see_different_data_and_every_case_once(store):
    seen, drawn = [], []
    for rank in range(2):
        data = module(store, batch_size=2, steps_per_epoch=3, oversample_foreground=0.0)
        data._place = lambda rank=rank: (rank, 2)
        crops = list(data.train_dataloader())
        seen += [name for crop in crops for name in crop.id]
        drawn.append(crops[0].draw)
    assert sorted(seen)[:: len(seen) // 6] == sorted(data.cases.train)
    assert drawn[0].changes != drawn[1].changes


def test_organs_are_guaranteed_in_every_batch_and_the_tiny_one_is_seen(store):
    data = module(store, augmentation="none", steps_per_epoch=40)
    nodes = 0
    for batch in batches(data):
        assert (batch.labels[-1] > 0).any()
        nodes += bool((batch.labels[-1] == 2).any())
    assert nodes > 15


def test_patches_are_cut_where_image_and_labels_agree(store):
    data = module(store, augmentation="none")
    for batch in batches(data):
        number = torch.tensor([int(name[-1]) for name in batch.id])[:, None, None, None]
        expected = batch.labels * 100 + 10 * number
        known = batch.labels >= 0
        assert (batch.image[:, 0] - expected)[known].abs().max() < 6
        assert not batch.image[:, 0][~known].any()


def test_a_margin_read_only_where_needed_changes_nothing(store):
    data = module(store, augmentation="full")
    dataset = data.train_dataloader().dataset
    assert dataset.crop_size > dataset.geometry.patch_size
    for number in range(6):
        crops = dataset[number]
        for sample, slot in enumerate(dataset.schedule.batch(0, number)):
            image, labels = dataset._crop(slot, (0, 0, number), dataset.crop_size)
            if not crops.draw.spatial[sample]:
                image, labels = (centre(crop, dataset.geometry.patch_size) for crop in (image, labels))
            assert torch.equal(crops.image[sample], image)
            assert torch.equal(crops.labels[sample], labels)


def test_validation_shows_every_case_once_and_whole(store):
    data = module(store)
    shown = list(data.val_dataloader())
    assert [batch.id for batch in shown] == [(name,) for name in data.cases.val]
    assert all(batch.image.shape[2:] == batch.labels.shape[1:] for batch in shown)
    assert data.on_after_batch_transfer(shown[0], 0) is shown[0]
    assert same(shown[0], next(iter(data.test_dataloader())))
    assert same(shown[0], next(iter(data.predict_dataloader())))


def test_ranks_share_validation_without_repeats_even_if_some_get_none(store):
    shares = []
    for rank in range(3):
        data = module(store)
        data._place = lambda rank=rank: (rank, 3)
        loader = data.val_dataloader()
        shares.append([case for batch in loader for case in batch.id])
        assert len(loader) == max(
            1, len(shares[-1])
        )  # Lightning leaves a rank out that has no batch, even an empty one
    assert sorted(itertools.chain(*shares)) == list(data.cases.val)
    assert shares[2] == []


class Recorder(pl.LightningModule):
    """Learns nothing and writes down what it was shown."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.shown, self.stop_after = [], stop_after

    def training_step(self, batch, batch_index):
        self.shown.append((self.current_epoch, batch.id, float(batch.image.double().sum())))
        if len(self.shown) == self.stop_after:
            self.trainer.save_checkpoint(self.checkpoint)
        return self.weight.square().sum()

    def on_train_batch_end(self, outputs, batch, batch_index):
        if len(self.shown) == self.stop_after:
            self.trainer.save_checkpoint(self.checkpoint)
            self.trainer.should_stop = True

    def validation_step(self, batch, batch_index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Witness(Recorder):
    """Writes down per rank, in a file, what it was shown."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def note(self, kind, batch):
        with (self.folder / f"{kind}_{self.global_rank}").open("a") as file:
            file.writelines(f"{name}\n" for name in batch.id)

    def training_step(self, batch, batch_index):
        self.note("train", batch)
        return self.weight.square().sum()

    def validation_step(self, batch, batch_index):
        self.note("val", batch)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_share_the_cases(store, tmp_path):
    data = module(store, batch_size=1, steps_per_epoch=3, oversample_foreground=0.0, split=None, folds=2)
    fit(Witness(tmp_path), data, tmp_path, max_epochs=1, strategy="ddp_spawn", devices=2)
    shown = {
        name: [(tmp_path / f"{name}_{rank}").read_text(encoding="utf-8").split() for rank in range(2)]
        for name in ("train", "val")
    }
    assert [len(part) for part in shown["train"]] == [3, 3]
    assert len({*shown["train"][0], *shown["train"][1]}) == 4  # every case in the six, none left out for another
    assert sorted(shown["val"][0] + shown["val"][1]) == list(data.cases.val)


def fit(task, data, folder, *, ckpt_path=None, weights_only=None, **options):
    options = {"max_epochs": 3, "devices": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=weights_only)


@pytest.mark.parametrize("stop_after", [4, 6, 8])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_continues_with_the_patch_that_would_have_come_next(store, tmp_path, stop_after, workers):
    whole = Recorder()
    fit(whole, module(store), tmp_path)
    assert len(whole.shown) == 18
    begun = Recorder(stop_after)
    begun.checkpoint = tmp_path / "last.ckpt"
    fit(begun, module(store, workers=workers), tmp_path)
    resumed = Recorder()
    fit(resumed, module(store, workers=workers), tmp_path, ckpt_path=begun.checkpoint, weights_only=True)
    assert begun.shown[:stop_after] + resumed.shown == whole.shown


def test_state_makes_a_round_trip_without_a_trainer(store):
    data = module(store)
    assert data.state_dict() == {}
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    stream = iter(loader)
    head = [next(stream) for _ in range(4)]
    state = data.state_dict()
    assert state == {"epoch": 2, "batch": 4}
    tail = list(stream)
    later = module(store)
    later.load_state_dict(state)
    assert later.state_dict() == state
    resumed = later.train_dataloader()
    resumed.sampler.set_epoch(2)
    assert [crops.id for crops in resumed] == [crops.id for crops in tail]
    assert len(list(resumed)) == 6  # the interruption is over
    resumed.sampler.set_epoch(2)
    assert head[0].id == next(iter(resumed)).id


@pytest.mark.sweep(7)
@pytest.mark.parametrize("workers", [0, 1])
def test_each_pass_of_a_loop_of_ones_own_is_the_epoch_that_a_trainer_would_have_set(store, workers):
    loader, told = module(store, workers=workers).train_dataloader(), module(store).train_dataloader()
    passes = [[crops.draw.flips.tolist() for crops in loader] for _ in range(3)]
    for epoch, own in enumerate(passes):
        told.sampler.set_epoch(epoch)
        assert own == [crops.draw.flips.tolist() for crops in told]
    assert passes[0] != passes[1] != passes[2]
    told.sampler.set_epoch(1)
    assert passes[1] == [crops.draw.flips.tolist() for crops in told]


def test_an_epoch_that_was_finished_is_not_begun_in_the_middle():
    order = EpochOrder(5)
    order.interrupted = (1, 5)
    order.set_epoch(1)
    assert list(order) == [5, 6, 7, 8, 9]
    order.interrupted = (1, 3)
    assert list(order) == [8, 9]
    order.set_epoch(2)
    assert list(order) == [10, 11, 12, 13, 14]


def test_sizes_may_be_numbers_of_numpy(store):
    data = module(store, batch_size=np.int64(3), patch_size=np.array([16, 16, 8]))
    assert Plan.from_dict(data.plan.to_dict()) == module(store, batch_size=3, patch_size=(16, 16, 8)).plan
    assert type(data.plan.batch_size) is int


def copy_with_damage(store, tmp_path, data):
    """The same store, one training case cut short on disk."""
    damaged = tmp_path / "store"
    shutil.copytree(store, damaged)
    case = data.cases.train[0]
    (folder,) = (damaged / "cases").glob(f"{case}.*")
    file = next(path for path in folder.iterdir() if path.name.startswith("image"))
    file.write_bytes(file.read_bytes()[:200])
    return damaged, case


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unreadable_case_is_named(store, tmp_path, workers):
    damaged, case = copy_with_damage(store, tmp_path, module(store))
    with pytest.raises(DataError, match=case):
        list(module(damaged, workers=workers).train_dataloader())


def test_an_unreadable_validation_case_is_named(store, tmp_path):
    data = module(store)
    damaged, case = copy_with_damage(store, tmp_path, data)
    fold = next(number for number in range(4) if case in module(store, fold=number).cases.val)
    with pytest.raises(DataError, match=case):
        list(module(damaged, fold=fold).val_dataloader())


class Deadly(TrainingCrops):
    """A dataset whose worker is killed over the second batch, as the kernel does when memory runs out."""

    def __getitem__(self, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


@pytest.mark.slow
def test_a_process_ends_though_its_loader_was_never_closed(store, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from medseg.patches.datamodule import VolumesDataModule\n"
        "if __name__ == '__main__':\n"
        f"    data = VolumesDataModule(Path(r'{store}'), folds=2, workers=1, cache='disk')\n"
        "    batches = iter(data.train_dataloader())\n"
        "    print(len(next(batches).id), batches)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "generator" in done.stdout


def test_a_file_system_that_stalls_is_a_sentence(store, monkeypatch):
    class Stalled:
        asked = 0

        def __next__(self):
            self.asked += 1
            monkeypatch.setattr(loader, "STALLED_S", 600.0 * (self.asked < 3))
            raise RuntimeError("DataLoader timed out after 10 seconds")

    stalled = Stalled()
    with pytest.raises(DataError, match=r"does not answer.*go on with --ckpt_path last"):
        module(store).train_dataloader()._next(stalled)
    assert stalled.asked == 3


def test_it_is_one_in_the_only_process_too(store, monkeypatch):
    monkeypatch.setattr(loader, "STALLED_S", 0.1)
    answers = threading.Event()
    monkeypatch.setattr(TrainingCrops, "__getitem__", lambda self, number: answers.wait())
    with pytest.raises(DataError, match=r"rooms.* does not answer.*go on with --ckpt_path last"):
        next(iter(module(store).train_dataloader()))
    answers.set()


@pytest.mark.slow
@pytest.mark.parametrize("heard", [True, False])
def test_a_killed_worker_is_reported_with_its_cases(store, monkeypatch, heard):
    if not heard:  # the signal of its death
        monkeypatch.setattr(loader, "LOOK_EVERY_S", 1.0)
        monkeypatch.setattr(signal_handling, "_error_if_any_worker_fails", lambda: None)
    whole = module(store).train_dataloader().dataset
    deadly = Deadly(**{name: getattr(whole, name) for name in TrainingCrops.__dataclass_fields__})
    with pytest.raises(DataError, match=r"lost a loader worker over case_\d \(DataLoader worker"):
        list(loader.case_loader(deadly, EpochOrder(6), workers=1))


def test_partly_annotated_cases_carry_a_mask_that_follows_the_mirror(store, tmp_path):
    partial = tmp_path / "store"
    shutil.copytree(store, partial)
    for info in (partial / "cases").glob("*/info.json"):
        content = json.loads(info.read_text(encoding="utf-8"))
        info.write_text(json.dumps(content | {"annotated": ["kidney"]}))
    (partial / "plan.yaml").write_text(
        (partial / "plan.yaml").read_text(encoding="utf-8").replace("swap_labels: []", "swap_labels: [[kidney, node]]")
    )
    data = module(partial, augmentation={"preset": "none", "mirror_probability": 1.0})
    batch = next(batches(data))
    assert batch.class_mask.tolist() == [[True, False, True]] * 3  # each was flipped across left/right
    assert next(iter(data.val_dataloader())).class_mask.tolist() == [[True, True, False]]


def test_sizes_given_replace_the_plans_for_the_task_too(store):
    data = module(store, batch_size=2, patch_size=(8, 8, 8))
    assert data.plan == replace(PLAN, batch_size=2, patch_size=(8, 8, 8))
    assert next(batches(data)).image.shape == (2, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"fold": 4}, UsageError, "no fold 4, only 0 to 3"),
        ({"patch_size": (9, 8, 8)}, ValueError, "multiple of"),
        ({"augmentation": "strong"}, ValueError, "expected one of|did you mean"),
        ({"steps_per_epoch": 0}, ValueError, "at least one"),
        ({"oversample_foreground": -1.0}, ValueError, "between 0 and 1"),
        ({"split": Path("nowhere.json")}, DataError, "cannot be read"),
    ],
)
def test_wrong_arguments_are_answered_with_a_way_out(store, wrong, error, sentence):
    with pytest.raises(error, match=sentence):
        module(store, **wrong).train_dataloader()


def test_no_store_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="is not a store"):
        module(tmp_path)


def test_an_explicit_split_is_followed(store, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps([{"train": ["case_3", "case_1"], "val": ["case_0"]}]))
    assert module(store, split=split).cases.train == ("case_1", "case_3")


def test_cases_without_labels_are_left_out(store, tmp_path):
    bare = tmp_path / "store"
    shutil.copytree(store, bare)
    infos = sorted((bare / "cases").glob("*/info.json"))
    infos[0].write_text(json.dumps(json.loads(infos[0].read_text(encoding="utf-8")) | {"label": None}))
    cases = module(bare).cases
    assert "case_0" not in (*cases.train, *cases.val)
    for info in infos:
        info.write_text(json.dumps(json.loads(info.read_text(encoding="utf-8")) | {"label": None}))
    with pytest.raises(DataError, match="no case with a label"):
        module(bare).train_dataloader()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"preset": "light", "rotation_deg": 10}, ["rotation_deg does nothing while rotation_probability is 0"]),
        ({"elastic": {"elastic_mm": 3.0}}, ["elastic_mm does nothing while elastic_probability is 0"]),
        ({"preset": "light", "rotation_deg": 10, "rotation_probability": 0.2}, []),
        ({"rotation_deg": 10, "scale_probability": 0, "scale": [0.9, 1.1]}, []),  # who says 0 knows
        ({"elastic": {"elastic_mm": 3.0, "probability": 0.1}, "mirror_probability": 0.5}, []),
        ("light", []),
    ],
)
def test_a_setting_without_effect_is_told(store, asked, told):
    loader = module(store, augmentation=asked)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        loader.train_dataloader()
    assert [str(warning.message) for warning in heard] == [f"data.augmentation.{clause}" for clause in told]


def test_crops_are_what_the_loader_hands_over(store):
    loader = module(store).train_dataloader()
    crops = next(iter(loader))
    assert isinstance(crops, Crops)
    assert {tuple(image.shape[1:]) for image in crops.image} <= {loader.dataset.crop_size, PLAN.patch_size}


def test_what_goes_to_a_gpu_has_half_the_bytes(store):
    """Labels as they were, intensities to the 11 bits of float16; and a crop that float16 cannot hold as it was."""
    dataset = module(store).train_dataloader().dataset
    crops, geometry = dataset.cut(0, 0), dataset.geometry

    def size(of):
        return sum(part.numel() * part.element_size() for part in (*of.image, *of.labels))

    assert size(packed(crops)) * 2 == size(crops)
    still = crops.draw.moved()._replace(changes=((),) * len(crops.id))
    plain, through = (augmented(one._replace(draw=still), geometry, nearest=True) for one in (crops, packed(crops)))
    assert torch.equal(plain.labels, through.labels)
    assert plain.labels.dtype == through.labels.dtype
    torch.testing.assert_close(through.image, plain.image, rtol=2**-11, atol=2**-24)
    large = crops._replace(
        image=tuple(image * 1e6 for image in crops.image), labels=tuple(300 + x for x in crops.labels)
    )
    for one, other in zip((*packed(large).image, *packed(large).labels), (*large.image, *large.labels), strict=True):
        assert one is other
