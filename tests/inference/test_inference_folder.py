"""A folder of images to a folder of labels: what is kept, what fails, what is written where."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from support.prediction import PLAN, SHARED, Brightness, predictor, random_affine, smooth, write_checkpoint
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.cli import main
from medseg.errors import DataError, UsageError
from medseg.inference import belt
from medseg.inference.folder import predict_cases
from medseg.inference.images import list_cases, read_case_image
from medseg.inference.predict import Predictor
from medseg.inference.resume import MANIFEST, Record
from medseg.inference.writer import WritePredictions
from medseg.machine.dotted import Trust
from medseg.plan.cleaning import Rule
from medseg.plan.plan import Normalisation
from medseg.segmenter import Segmenter


def named(**options):
    """A predictor that says which checkpoint it is of."""
    made = predictor(**options)
    made.digests = ("one",)
    return made


@pytest.fixture
def images(tmp_path):
    """Three images, one smaller than a patch."""
    for index, shape in enumerate([(13, 9, 8), (2, 3, 1), (10, 17, 6)]):
        write_nifti(tmp_path / "in" / f"case_{index}.nii.gz", smooth(shape, index)[0], oblique_affine(index))
    return tmp_path / "in"


def test_a_ct_in_another_unit_and_a_label_map_are_predicted_with_a_warning(tmp_path, caplog):
    plan = replace(PLAN, normalisation=(Normalisation("ct", -70.0, 260.0, 120.0, 40.0),))
    image, labels = toy_case(0)
    for name, voxels in {"sound": image, "raw": image + np.int16(1024), "labels": labels}.items():
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", voxels, oblique_affine(0))
    assert len(predict_cases(predictor(plan), tmp_path / "in", tmp_path / "out").written) == 3
    told = sorted(message for message in caplog.messages if "may be no CT in the unit of the training" in message)
    assert [Path(message.split()[0]).name for message in told] == ["labels.nii.gz", "raw.nii.gz"]
    assert "where organs have -70 to 260: it has a fifth of the voxels above 700" in told[1]


def test_precision_and_overlap_are_pinned_and_noted(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("medseg.inference.predict.best_precision", lambda device: "bf16-mixed")
    path = write_checkpoint(tmp_path / "a.ckpt")
    words = [
        "predict",
        "--ckpt",
        str(path),
        "--input",
        str(images),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(words) == main(words) == 0
    assert "3 predictions" in (said := capsys.readouterr().out)
    assert "(3 of them from before)" in said
    for pinned in (["--precision", "32-true"], ["--overlap", "0.25"]):
        assert main([*words, *pinned]) == 0
        assert "from before" not in capsys.readouterr().out
    assert main([*words, "--precision", "32-true"]) == main([*words, "--precision", "32"]) == 0
    assert "3 of them from before" in capsys.readouterr().out  # two names of one precision
    pinned = Predictor.load([path], device="cpu", precision="32-true", overlap=0.25)
    assert (pinned.half, pinned.segmenters[0].overlap) == (None, 0.25)
    assert pinned.on("cpu").settings == pinned.settings
    assert Predictor.load([path], device="cpu").half is torch.bfloat16
    for told, sentence in (({"precision": "fp16"}, "Choose one of auto"), ({"overlap": 1.0}, "at least 0 and less")):
        with pytest.raises(UsageError, match=sentence):
            Predictor.load([path], **told)


def names(paths):
    return [path.name for path in paths]


def test_what_is_done_is_kept_until_something_changes(images, tmp_path):
    out = tmp_path / "out"
    every = ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"]
    assert names(predict_cases(named(), images, out).written) == every
    again = predict_cases(named(), images, out)
    assert (names(again.written), names(again.kept)) == ([], every)
    (out / "case_0.nii.gz").unlink()
    os.utime(images / "case_2.nii.gz", ns=(0, 0))
    assert names(predict_cases(named(), images, out).written) == ["case_0.nii.gz", "case_2.nii.gz"]
    assert names(predict_cases(named(), images, out, overwrite=True).written) == every
    other = named()
    other.digests = ("another",)
    assert names(predict_cases(other, images, out).written) == every
    other.rules = {"liver": Rule(largest_component=True)}
    assert names(predict_cases(other, images, out).written) == every
    assert names(predict_cases(other, images, out, save_probabilities=True).written) == every
    assert names(predict_cases(other, images, out).kept) == every
    (out / "case_0.nii.gz").write_bytes(b"half")
    (out / "case_1.npz").unlink()
    assert names(predict_cases(other, images, out, save_probabilities=True).written) == every[:2]
    assert names(predict_cases(named(), images, out).written) == every
    assert not list(out.glob("*.npz"))  # of other checkpoints and rules


def test_an_interrupted_folder_goes_on(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made = named()
    segment = made.segment

    def stopped(prepared, **options):
        if prepared.change.source_shape[0] == 10:
            raise KeyboardInterrupt
        return segment(prepared, **options)

    monkeypatch.setattr(made, "segment", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_cases(made, images, out)
    assert sorted(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["cases"]) == ["case_0", "case_1"]
    assert names(predict_cases(named(), images, out).written) == ["case_2.nii.gz"]


def test_a_damaged_manifest_means_starting_over(tmp_path):
    (tmp_path / MANIFEST).write_text('{"cases": [')
    assert Record(tmp_path, {}).cases == {}
    assert not Record(tmp_path, {}).done("a", [], [])


def test_copies_of_a_checkpoint_share_their_digest(tmp_path):
    torch.manual_seed(0)
    kept, other = (read_checkpoint(write_checkpoint(tmp_path / name)) for name in ("a.ckpt", "other.ckpt"))
    copy = read_checkpoint(Path(shutil.copy(kept.path, tmp_path / "copy.ckpt")))
    assert copy.digest == kept.digest != other.digest


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_finite(path):
    write_nifti(path, np.full((9, 9, 9), np.nan, np.float32), np.eye(4))


def two_channels(path):
    write_nifti(path, np.zeros((9, 9, 9, 2), np.float32), np.eye(4))


def not_an_image(path):
    path.write_text("hello")


@pytest.mark.parametrize("damage", [truncated, not_finite, two_channels, not_an_image], ids=lambda f: f.__name__)
@pytest.mark.parametrize("ahead", [0, 2**30], ids=["one by one", "ahead"])
def test_a_bad_file_in_the_middle_is_named_and_the_others_go_on(images, tmp_path, damage, ahead, monkeypatch):
    monkeypatch.setattr(belt, "AHEAD_BYTES", ahead)
    damage(images / "case_1.nii.gz")
    outcome = predict_cases(named(), images, tmp_path / "out")
    assert names(outcome.written) == ["case_0.nii.gz", "case_2.nii.gz"]
    (failure,) = outcome.failures
    assert "case_1.nii.gz" in str(failure)
    assert sorted(names((tmp_path / "out").iterdir())) == ["case_0.nii.gz", "case_2.nii.gz", MANIFEST]


def test_a_lack_of_memory_or_disk_costs_one_case(images, tmp_path, monkeypatch):
    made = named()
    segment = made.segment
    lacks = {13: MemoryError(), 2: RuntimeError("DefaultCPUAllocator: can't allocate memory")}

    def lacking(prepared, **options):
        if prepared.change.source_shape[0] in lacks:
            raise lacks[prepared.change.source_shape[0]]
        return segment(prepared, **options)

    monkeypatch.setattr(made, "segment", lacking)
    outcome = predict_cases(made, images, tmp_path / "out")
    assert ["memory ran out" in str(failure) for failure in outcome.failures] == [True, True]
    monkeypatch.setattr(belt, "write_labels_for", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    outcome = predict_cases(named(), images, tmp_path / "out")
    assert [str(failure).count("could not be written (No space left)") for failure in outcome.failures] == [1, 1]
    assert names(outcome.kept) == ["case_2.nii.gz"]


def test_other_errors_are_not_hidden(images, tmp_path, monkeypatch):
    made = named()
    monkeypatch.setattr(made, "segment", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_cases(made, images, tmp_path / "out")


def test_never_writes_over_its_input(images):
    before = (images / "case_0.nii.gz").read_bytes()
    with pytest.raises(UsageError, match="would overwrite"):
        predict_cases(named(), images, images)
    assert (images / "case_0.nii.gz").read_bytes() == before


def test_probabilities_are_float16_beside_the_labels(images, tmp_path):
    out = tmp_path / "out"
    predict_cases(named(), images, out, save_probabilities=True)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    with np.load(out / "case_0.npz") as packed:
        image = nib.load(images / "case_0.nii.gz")
        assert packed["probabilities"].dtype == np.float16
        assert packed["probabilities"].shape == (3, *image.shape)
        assert packed["classes"].tolist() == ["background", "liver", "spleen"]
        np.testing.assert_allclose(packed["affine"], image.affine)
        np.testing.assert_allclose(packed["probabilities"].sum(axis=0, dtype=np.float32), 1, atol=2e-3)


@pytest.mark.parametrize(("source", "sentence"), [("nowhere", "does not exist"), ("empty", "holds no image")])
def test_a_source_without_images(tmp_path, source, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=sentence):
        predict_cases(named(), tmp_path / source, tmp_path / "out")


VARIANTS = {
    "nifti1": lambda voxels, affine: nib.Nifti1Image(voxels, affine),
    "nifti2": lambda voxels, affine: nib.Nifti2Image(voxels, affine),
    "4D with one channel": lambda voxels, affine: nib.Nifti1Image(voxels[..., None], affine),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_every_kind_of_nifti_keeps_its_grid(tmp_path, variant, scaled):
    """The written file, read by nibabel alone, is the thresholded image, with the image's own header."""
    voxels = smooth((11, 8, 9), 2)[0]
    spacing = np.array([0.9, 1.3, 2.5])
    affine = random_affine(11, (-1, 1, -1), (1, 2, 0), spacing)
    image = VARIANTS[variant](voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=2)
    if scaled:
        image.set_data_dtype(np.int16)
        image.header.set_slope_inter(0.001, 1.5)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in" / "a.nii.gz")
    source = nib.load(tmp_path / "in" / "a.nii.gz")
    plan = named().plan
    turned = tuple(float(spacing[axis]) for axis in np.argsort(nib.io_orientation(source.affine)[:, 0]))
    predict_cases(named(plan=replace(plan, spacing_mm=turned)), tmp_path / "in", tmp_path / "out")
    written = nib.load(tmp_path / "out" / "a.nii.gz")
    assert type(written) is type(source)
    assert written.shape == source.shape[:3]
    for form in ("get_sform", "get_qform"):
        found, expected = getattr(written, form)(coded=True), getattr(source, form)(coded=True)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1] == expected[1]
    values = source.get_fdata().reshape(written.shape)
    expected = np.select([values > 2, values > 1], [5, 1], 0)
    clear = (abs(values - 2) > 1e-3) & (abs(values - 1) > 1e-3)
    np.testing.assert_array_equal(np.asarray(written.dataobj)[clear], expected[clear])
    assert np.issubdtype(written.get_data_dtype(), np.integer)


@pytest.mark.parametrize("name", ["ct", "ct_aorta_lps", "mr_lps"])
def test_real_volumes_are_thresholded_where_they_lie(tmp_path, name):
    path = SHARED / "ct_abdomen" / f"{name}.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    source = nib.load(path)
    turned = nib.as_closest_canonical(source).header.get_zooms()[:3]
    plan = replace(PLAN, spacing_mm=tuple(float(edge) for edge in turned), patch_size=(64, 64, 32))
    made = predictor(plan)
    made.segmenters[0] = replace(made.segmenters[0], net=Brightness([0.0, 1.0, 2.0], [0.0, -100.5, -401.0]))
    predict_cases(made, path, tmp_path)
    values = source.get_fdata()
    expected = np.select([values > 300.5, values > 100.5], [5, 1], 0)
    written = nib.load(tmp_path / path.name)
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    np.testing.assert_array_equal(written.affine, source.affine)


def test_the_cli_writes_what_was_asked(tmp_path, images, monkeypatch, capsys):
    seen = {}

    def load(checkpoints, **options):
        seen.update(options)
        return named()

    monkeypatch.setattr(Predictor, "load", load)
    (ckpt := tmp_path / "x.ckpt").touch()
    words = ["predict", "--ckpt", str(ckpt), "--input", str(images), "--output", str(tmp_path / "out"), "--no-cleaning"]
    assert main(words) == 0
    asked = {"mirror": False, "device": "auto", "cleaning": False, "trust": Trust()}
    assert seen == {**asked, "precision": "auto", "overlap": None}
    assert main(words) == 0
    assert "3 predictions" in (said := capsys.readouterr().out)
    assert "(3 of them from before)" in said


def test_several_modalities_come_as_files_or_as_one(tmp_path):
    image, _ = toy_case(0)
    plan = replace(PLAN, modalities=("T1", "T2"), normalisation=PLAN.normalisation * 2)
    for channel in range(2):
        write_nifti(tmp_path / "in" / f"a_000{channel}.nii.gz", image, oblique_affine(0))
    write_nifti(tmp_path / "in" / "b.nii.gz", np.stack([image, image], -1), oblique_affine(0))
    cases = list_cases(tmp_path / "in", plan)
    assert list(cases) == ["a", "b"]
    volumes = [read_case_image(files, plan) for files in cases.values()]
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)


def test_several_devices_share_the_cases_and_write_what_one_writes(images, tmp_path):
    made = named()
    alone = predict_cases(made, images, tmp_path / "one")
    shared = predict_cases([made, made.on("cpu"), made.on("cpu")], images, tmp_path / "three")
    assert names(shared.written) == names(alone.written)
    assert not shared.failures
    for one, other in zip(alone.written, shared.written, strict=True):
        assert (nib.load(one).get_fdata() == nib.load(other).get_fdata()).all()


def test_one_of_several_devices_that_fails_ends_all(images, tmp_path, monkeypatch):
    made, broken = named(), named()
    monkeypatch.setattr(broken, "segment", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_cases([broken, broken, made], images, tmp_path / "out")


def test_the_half_of_a_pair_of_devices_that_is_not_there_is_a_sentence():
    with pytest.raises(UsageError, match="no device 'cuda:7' here"):
        named().on("cuda:7")


@pytest.mark.parametrize(("precision", "half"), [("32-true", False), ("bf16-mixed", True)])
def test_a_test_predicts_in_the_precision_of_its_trainer(images, tmp_path, monkeypatch, precision, half):
    asked = []

    class Told(Brightness):
        def forward(self, image):
            asked.append(torch.is_autocast_enabled("cpu"))
            return super().forward(image)

    best = "32-true" if half else "bf16-mixed"
    monkeypatch.setattr("medseg.inference.predict.best_precision", lambda device: best)
    segmenter = Segmenter(Told([0.0, 1.0, 2.0], [0.0, -1.0, -3.0]), PLAN)
    files = SimpleNamespace(info=lambda case: SimpleNamespace(images=[images / f"{case}.nii.gz"]))
    writing = WritePredictions(tmp_path / "out", files, segmenter)
    writing.on_test_batch_end(None, None, None, SimpleNamespace(id=("case_1",)), 0)
    trainer = SimpleNamespace(precision=precision, is_global_zero=True)
    writing.on_test_epoch_end(trainer, SimpleNamespace(device=torch.device("cpu")))
    assert not writing.failures
    assert (tmp_path / "out" / "case_1.nii.gz").is_file()
    assert set(asked) == {half}
