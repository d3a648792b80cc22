"""nnU-Net's models become checkpoints and checkpoints its models; what has no counterpart is one sentence."""

import json
import shutil
from dataclasses import replace
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from support.nnunet import NETS, PLAN, REGIONS, SLICES, edited, exported, respelt
from support.prediction import random_affine, smooth, write_checkpoint

from medseg.checkpoints.reading import read_checkpoint
from medseg.checkpoints.run import checkpoints_in
from medseg.cli.main import main
from medseg.errors import CheckpointError, DataError, MedsegError, UsageError
from medseg.export import export
from medseg.inference.predict import Predictor
from medseg.nnunet.importing import import_model
from medseg.plan.plan import Normalisation
from medseg.space.volume import Volume

pytestmark = pytest.mark.usefixtures("without_shape_checks")

PLANS = {
    "stored": PLAN,
    "slices": SLICES,
    "regions": REGIONS,
    "turned": replace(PLAN, orientation="ASR", normalisation=(Normalisation("zscore"),)),
    "transposed": replace(PLAN, orientation="ikj", normalisation=(Normalisation("none"),)),
}


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("whole"))[1]


def labels_of(path, plan, *, mirror=False):
    predictor = Predictor.load(path if isinstance(path, list) else [path], mirror=mirror, device="cpu")
    voxels = np.concatenate([smooth((20, 21, 9), seed) for seed in range(len(plan.modalities))])
    return predictor.predict(Volume(voxels, random_affine(5, [1, -1, 1], [2, 0, 1], np.array([1.4, 1.6, 4.0]))))


@pytest.mark.sweep(9)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", PLANS)
def test_a_network_that_went_to_nnunet_and_back_is_the_same(tmp_path, kind, net):
    flips = (1, 2) if kind == "slices" else (0, 1, 2)
    plan = replace(PLANS[kind], mirror_axes=flips)
    ours, folder = exported(tmp_path, plan, net, flips=flips)
    paths, flipped = import_model(folder, tmp_path / "back.ckpt")
    before, after = read_checkpoint(ours), read_checkpoint(*paths)
    assert after.plan == before.plan
    assert flipped == after.flips == flips
    for name, weight in before.weights.items():
        assert torch.equal(after.weights[f"net.net.{name.removeprefix('net.')}"], weight)
    assert np.array_equal(labels_of(ours, plan, mirror=True), labels_of(*paths, plan, mirror=True))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_a_zip_is_read_like_its_folder(tmp_path, depth):
    _, folder = exported(tmp_path)
    inner = tmp_path / "packed" / "/".join(["Dataset501_Toy", "a__b__3d_fullres", "inner", "d"][:depth])
    shutil.copytree(folder, inner, dirs_exist_ok=True)
    packed = shutil.make_archive(str(tmp_path / "model"), "zip", tmp_path / "packed")
    main(["import-nnunet", packed, "--out", str(tmp_path / "a.ckpt")])
    main(["import-nnunet", str(folder), "--out", str(tmp_path / "b.ckpt")])
    one, other = (read_checkpoint(tmp_path / name) for name in ("a.ckpt", "b.ckpt"))
    assert one.plan == other.plan
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


def test_folds_are_an_ensemble_whose_logits_are_averaged(tmp_path, capsys):
    _, folder = exported(tmp_path)
    shutil.copytree(folder / "fold_0", folder / "fold_3")
    respelt(folder, lambda content: [weight.mul_(-0.7) for weight in content["network_weights"].values()], "fold_3")
    assert main(["import-nnunet", str(folder), "--out", str(tmp_path / "both")]) == 0
    assert "--tta" in capsys.readouterr().out
    paths = checkpoints_in([tmp_path / "both"])
    assert [path.name for path in paths] == ["fold_0.ckpt", "fold_3.ckpt"]
    predictor = Predictor.load(paths, device="cpu")
    predictor.half = None
    tiles = torch.randn(2, 1, *PLAN.patch_size)
    with torch.inference_mode():
        expected = sum(segmenter(tiles) for segmenter in predictor.segmenters) / 2
        assert torch.allclose(predictor._network()(tiles), expected, atol=1e-5)
    assert not predictor.averages


def test_the_training_on_all_cases_and_the_best_epoch_can_be_named(tmp_path):
    _, folder = exported(tmp_path)
    shutil.move(folder / "fold_0", folder / "fold_all")
    shutil.move(folder / "fold_all/checkpoint_final.pth", folder / "fold_all/checkpoint_best.pth")
    import_model(folder, tmp_path / "a.ckpt", kind="best")
    import_model(folder, tmp_path / "b.ckpt", kind="best", folds=["all"])
    with pytest.raises(CheckpointError, match="does not exist, only best"):
        import_model(folder, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="does not exist; the folds that are there are all"):
        import_model(folder, tmp_path / "c.ckpt", folds=["0"])
    shutil.move(folder / "fold_all/checkpoint_best.pth", folder / "fold_all/checkpoint_latest.pth")
    assert main(["import-nnunet", str(folder), "--checkpoint", "latest", "--out", str(tmp_path / "d.ckpt")]) == 0
    assert main(["import-nnunet", str(folder), "--checkpoint", "newest", "--out", str(tmp_path / "e.ckpt")]) == 2


def test_numbers_of_numpy_are_read_and_nothing_else_of_it(tmp_path):
    _, folder = exported(tmp_path)
    logged = {"logging": {"ema": [np.float64(0.5), np.float32(0.25), np.int64(3)]}, "_best_ema": np.float64(0.5)}
    respelt(folder, lambda content: None)
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, **logged, "optimizer_state": {"momentum": torch.ones(3)}}, path)
    import_model(folder, tmp_path / "a.ckpt")
    torch.save({**content, "logging": np.array([1.0])}, path)
    with pytest.raises(CheckpointError, match=r"code that could run on loading \(numpy[\w.]*\._reconstruct\)"):
        import_model(folder, tmp_path / "b.ckpt")
    torch.save({"a": np.float64(1)}, tmp_path / "n.pt")
    with pytest.raises(UnpicklingError, match="Unsupported"):
        torch.load(tmp_path / "n.pt", weights_only=True)  # what was allowed is allowed no longer


def test_plans_of_the_older_layout_and_inherited_ones_say_the_same(tmp_path):
    def older(plans):
        known = plans["configurations"].pop("3d_fullres")
        kwargs = known.pop("architecture")["arch_kwargs"]
        known |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": kwargs["n_conv_per_stage"],
            "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": kwargs["strides"],
            "conv_kernel_sizes": kwargs["kernel_sizes"],
        }
        plans["configurations"] |= {"base": known, "3d_fullres": {"inherits_from": "base", "batch_size": 2}}

    widths = replace(PLAN, features=(4, 8, 8))
    _, folder = exported(tmp_path / "second", widths)
    import_model(folder, tmp_path / "new.ckpt")
    edited(folder, "plans.json", older)
    import_model(folder, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt").options == read_checkpoint(tmp_path / "new.ckpt").options


def test_plans_that_were_exchanged_are_followed_as_by_nnunet_and_said(tmp_path, whole_model, caplog):
    folder = shutil.copytree(whole_model, tmp_path / "model")
    import_model(folder, tmp_path / "a.ckpt")
    assert not caplog.records
    edited(folder, "plans.json", lambda plans: plans["configurations"]["3d_fullres"].update(spacing=[2, 1, 1]))
    import_model(folder, tmp_path / "b.ckpt")
    assert read_checkpoint(tmp_path / "b.ckpt").plan.spacing_mm == (2, 1, 1)
    assert "trained by plans that differ from plans.json in spacing_mm: the latter are followed" in caplog.text


@pytest.mark.slow
def test_info_and_export_take_it_like_any_other(tmp_path, capsys):
    _, folder = exported(tmp_path)
    import_model(folder, tmp_path / "a.ckpt")
    assert main(["info", str(tmp_path / "a.ckpt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["network"] == "unet"
    assert told["imported from"] == "nnU-Net, trainer nnUNetTrainer, configuration 3d_fullres, fold 0"
    export(read_checkpoint(tmp_path / "a.ckpt"), tmp_path / "pt2", form="pt2")
    with pytest.raises(UsageError, match="as a file stores them"):
        export(read_checkpoint(tmp_path / "a.ckpt"), tmp_path / "bundle", form="monai-bundle")


class Code:
    def __reduce__(self):
        return (exec, ("open('was_called', 'w')",))


def plans(change):
    return lambda folder: edited(folder, "plans.json", change)


def configuration(**values):
    return plans(lambda content: content["configurations"]["3d_fullres"].update(values))


def network(**values):
    def change(content):
        content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= values

    return plans(change)


def truncated(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:1000])


def of_version_1(folder):
    for path in folder.glob("*.json"):
        path.unlink()
    (folder / "plans.pkl").touch()


def pickled(**values):
    return lambda folder: respelt(folder, lambda content: content.update(values))


def with_code(folder):
    torch.save({"network_weights": Code()}, folder / "fold_0" / "checkpoint_final.pth")


def other_name(content):
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "a.b.Primus"


def rounded(content):
    content["network_weights"]["decoder.transpconvs.1.weight"] = torch.zeros(8, 6, 2, 2, 2, dtype=torch.int64)


def with_batch_norm(content):
    content["network_weights"]["encoder.stages.0.0.convs.0.norm.running_mean"] = torch.zeros(4)


def only_cascade(content):
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


def of_cascade(folder):
    edited(folder, "plans.json", only_cascade)
    respelt(folder, lambda content: content["init_args"].update(configuration="3d_cascade_fullres"))


def without_statistics(content):
    content["foreground_intensity_properties_per_channel"] = {"0": {"mean": 1.0}}


def inheriting_in_a_circle(content):
    content["configurations"]["3d_fullres"]["inherits_from"] = "3d_fullres"


def one_weight_less(folder):
    respelt(folder, lambda content: content["network_weights"].pop("decoder.transpconvs.1.weight"))


BAD = {
    "no plans": (lambda folder: (folder / "plans.json").unlink(), "holds no plans.json"),
    "no dataset": (lambda folder: (folder / "dataset.json").unlink(), "no readable dataset.json"),
    "plans that are text": (lambda folder: (folder / "plans.json").write_text("{"), "no readable plans.json"),
    "version 1": (of_version_1, "version 1 of nnU-Net"),
    "plans of version 1": (plans(lambda content: content.pop("configurations")), "plans of version 1"),
    "no fold": (lambda folder: shutil.rmtree(folder / "fold_0"), "holds no trained fold"),
    "no checkpoint": (lambda folder: (folder / "fold_0/checkpoint_final.pth").unlink(), "does not exist"),
    "truncated": (truncated, "not a readable checkpoint"),
    "code": (with_code, r"code that could run on loading \((\w+\.)?exec\)"),
    "no checkpoint of nnU-Net": (pickled(init_args=None), "no checkpoint of nnU-Net v2's trainer"),
    "NaN": (lambda folder: respelt(folder, lambda c: next(iter(c["network_weights"].values())).fill_(np.nan)), "NaN"),
    "stranger": (pickled(trainer_name="MedNeXtTrainer"), "trained by MedNeXtTrainer"),
    "cascade": (configuration(previous_stage="3d_lowres"), "second stage of a cascade: it needs the labels of 3d_low"),
    "a cascade's own plans": (of_cascade, "second stage of a cascade"),
    "batch norm of the trainer": (
        lambda folder: respelt(folder, with_batch_norm),
        "has encoder.stages.0.0.convs.0.norm.running_mean; nnUNetTrainer trained it",
    ),
    "preprocessor": (
        configuration(preprocessor_name="MyPreprocessor"),
        r"works with a MyPreprocessor \(prep",
    ),
    "labels": (plans(lambda content: content.update(label_manager="Mine")), r"works with a Mine \(label_manager\)"),
    "no statistics": (plans(without_statistics), "lacks 'percentile_00_5'"),
    "circle": (plans(inheriting_in_a_circle), "no configuration '3d_fullres'"),
    "another network": (plans(other_name), "network Primus"),
    "more convolutions": (network(n_conv_per_stage=[3, 3, 3]), r"n_conv_per_stage \[3, 3, 3\]"),
    "batch norm": (network(norm_op="torch.nn.BatchNorm3d"), "norm_op 'torch.nn.BatchNorm3d'"),
    "dropout": (network(dropout_op="torch.nn.Dropout3d"), "dropout_op"),
    "other features": (network(features_per_stage=[4, 6, 9]), "holds another network than its plans describe"),
    "other depth": (one_weight_less, r"lacks decoder.transpconvs.1.weight"),
    "normalisation": (configuration(normalization_schemes=["MyNorm"]), "normalises by MyNorm"),
    "resampling": (configuration(resampling_fn_data="resample_torch_fornnunet"), "resamples by resample_torch"),
    "order": (configuration(resampling_fn_data_kwargs={"order": 1}), "resamples by"),
    "reader": (plans(lambda content: content.update(image_reader_writer="Tiff3DIO")), "reads its images by Tiff3DIO"),
    "no spacing": (plans(lambda content: content["configurations"]["3d_fullres"].pop("spacing")), "lacks 'spacing'"),
    "strides": (configuration(patch_size=[7, 16, 16]), "must be a multiple of"),
    "axes": (plans(lambda content: content.update(transpose_forward=[0, 1, 5])), "cannot be followed"),
    "names": (
        lambda folder: respelt(folder, lambda c: c["network_weights"].update({3: 1})),
        "no checkpoint of nnU-Net",
    ),
    "whole numbers": (lambda folder: respelt(folder, rounded), "torch.int64"),
    "nothing to normalise": (configuration(patch_size=[2, 4, 4]), "cannot be built"),
    "configuration": (pickled(init_args={"configuration": "2d"}), "no configuration '2d' in its plans, but 3d_fullres"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_imported_is_one_sentence_and_writes_nothing(tmp_path, whole_model, monkeypatch, capsys, kind):
    spoil, sentence = BAD[kind]
    folder = shutil.copytree(whole_model, tmp_path / "model")
    spoil(folder)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    assert main(["import-nnunet", str(folder), "--out", str(place / "a.ckpt")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    with pytest.raises(MedsegError, match=sentence):
        import_model(folder, place / "a.ckpt")
    assert not [*place.iterdir()]


def test_a_zip_that_is_not_whole_is_refused(tmp_path):
    _, folder = exported(tmp_path)
    packed = tmp_path / "m.zip"
    shutil.make_archive(str(packed.with_suffix("")), "zip", folder)
    content = packed.read_bytes()
    for cut in (0, 100, len(content) // 2, len(content) - 30):
        packed.write_bytes(content[:cut])
        with pytest.raises(DataError, match="neither a folder nor a whole zip"):
            import_model(packed, tmp_path / "a.ckpt")
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 255
    packed.write_bytes(spoilt)
    with pytest.raises(DataError):
        import_model(packed, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


def test_what_is_there_already_is_not_written_over(tmp_path, whole_model):
    (tmp_path / "a.ckpt").write_text("precious")
    with pytest.raises(UsageError, match="is there already"):
        import_model(whole_model, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_text() == "precious"


def test_a_model_of_turned_images_turns_them(tmp_path, whole_model):
    import_model(whole_model, tmp_path / "a.ckpt", turned=True)
    stored, turned = PLAN, read_checkpoint(tmp_path / "a.ckpt").plan
    assert (stored.orientation, turned.orientation) == ("kji", "SAR")
    assert main(["import-nnunet", str(whole_model), "--turned", "--out", str(tmp_path / "b.ckpt")]) == 0
    assert read_checkpoint(tmp_path / "b.ckpt").plan == turned


def test_a_folder_of_several_models_asks_which(tmp_path):
    _, folder = exported(tmp_path)
    for name in ("a__p__2d", "a__p__3d_fullres"):
        shutil.copytree(folder, tmp_path / "Dataset" / name)
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "Dataset")
    for source, remedy in (("Dataset", "Give the folder"), ("packed.zip", "Unpack it and give the folder")):
        with pytest.raises(DataError, match=f"holds several models: a__p__2d, a__p__3d_fullres. {remedy}"):
            import_model(tmp_path / source, tmp_path / "a.ckpt")


def test_what_nnunet_has_no_counterpart_of_is_not_exported(tmp_path):
    for plan, net, options, sentence in (
        (PLAN, "segresnet", {}, "no counterpart of segresnet"),
        (PLAN, "unet", {"residual": True}, "residual blocks"),
        (PLAN, "unet", {}, "those of the level below"),
        (replace(PLAN, orientation="LPS"), "unet", NETS["unet"], "never to LPS"),
        (replace(SLICES, own_spacing=(1,)), "unet", NETS["unet"], "across slices"),
    ):
        path = write_checkpoint(tmp_path / "a.ckpt", plan, net=net, net_options=options)
        with pytest.raises(UsageError, match=sentence):
            export(read_checkpoint(path), tmp_path / "out", form="nnunet")
        assert not [*tmp_path.glob("out/*")]


def test_export_says_what_nnunet_will_do_otherwise(tmp_path, capsys):
    plan = replace(PLAN, labels={"liver": 4, "spleen": 2}, ignore=5, swap_labels=(("liver", "spleen"),))
    told = {"flips": [0, 1], "as_nnunet": False}
    path = write_checkpoint(tmp_path / "a.ckpt", plan, net_options=NETS["unet"], signature=told, overlap=0.25)
    assert main(["export", "--ckpt", str(path), "--format", "nnunet", "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "there they are liver 1, spleen 2" in told
    assert "--disable_tta" in told
    assert "cannot exchange left and right in flipped images" in told
    assert "predict with -step_size 0.75" in told
    content = torch.load(tmp_path / "out/fold_0/checkpoint_final.pth", weights_only=True)
    assert content["inference_allowed_mirroring_axes"] == (1,)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["labels"] == {
        "background": 0,
        "liver": 1,
        "spleen": 2,
    }
