"""Exported networks give PyTorch's answers without medseg, and say all that is needed to use them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Compose
from support.nets import TINY
from support.toys import oblique_affine, toy_case, write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.cli import main
from medseg.datasets.case import read_image
from medseg.errors import CheckpointError, UsageError
from medseg.export import FORMATS, graph
from medseg.export import export as export_checkpoint
from medseg.export.definition import define, needs_medseg
from medseg.export.model import model_of
from medseg.export.transforms import left_out, postprocessing, preprocessing
from medseg.inference.clean import clean
from medseg.machine.dotted import Trust
from medseg.nets import list_nets
from medseg.patches import stitch
from medseg.patches.batch import target_of
from medseg.plan.cleaning import Rule, rules_to_plain
from medseg.plan.grid import labels_to_plan_grid, to_plan_grid
from medseg.plan.plan import Normalisation, Plan, read_plan
from medseg.space.nifti import read_labels
from medseg.space.volume import Volume
from medseg.training.task import SegmentationTask

SHARED = Path(__file__).parents[3] / "shared" / "data"
HIPPOCAMPUS = SHARED / "Task04_Hippocampus"
PLAN = Plan(
    name="toy",
    modalities=("CT",),
    labels={"liver": 1, "spleen": 5},
    orientation="RAS",
    spacing_mm=(1.5, 1.5, 4.0),
    patch_size=(32, 16, 16),
    batch_size=1,
    normalisation=(Normalisation("ct", lower=-100.0, upper=250.0, mean=60.0, std=100.0),),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 3),) * 3,
    features=(8, 16, 16),
)
RULES = {"liver": Rule(largest_component=True), "spleen": Rule(largest_component=True, fill_holes=True)}


pytestmark = pytest.mark.usefixtures("without_shape_checks")
"""Checking a shape compares its sizes, and a size that was compared is no longer free in a traced graph."""


def export(path: Path, output: Path, **options):
    return export_checkpoint(read_checkpoint(path), output, **options)


def model_at(path: Path, trust: Trust | None = None):
    return model_of(read_checkpoint(path), trust)


def save(task: SegmentationTask, path: Path, rules=()) -> Path:
    """A checkpoint as a run leaves it."""
    content = {
        "medseg": {"version": "0.1.0", "torch": "2.13.0", "scores": {"val/dice": 0.5}, "cleaning": list(rules)},
        "hyper_parameters": dict(task.hparams),
        "state_dict": task.state_dict(),
    }
    torch.save(content, path)
    return path


def untrained(path: Path, name="unet", plan=PLAN, **options) -> Path:
    torch.manual_seed(0)
    patch = (64, 32, 32) if name == "swin_unetr" else plan.patch_size
    knobs = {"net_options": TINY.get(name)} | options
    return save(SegmentationTask(replace(plan, patch_size=patch).to_dict(), net=name, **knobs), path)


def trained(path: Path, plan: Plan, image: Volume, labels: Volume, steps: int, rules=()) -> Path:
    """Thirty-odd steps on one whole image: enough for labels that are not noise."""
    torch.manual_seed(0)
    task = SegmentationTask(plan.to_dict(), channels_last=False)
    voxels, change = to_plan_grid(image, plan)
    batch = torch.from_numpy(voxels)[None]
    on_grid = torch.from_numpy(labels_to_plan_grid(labels, plan, change))[None].long()
    target = target_of(on_grid, None if plan.exclusive else task.membership)
    optimizer = torch.optim.Adam(task.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task(batch), target, torch.tensor([plan.spacing_mm])).backward()
        optimizer.step()
    return save(task, path, rules_to_plain(rules, plan) if rules else ())


def run_file(path: Path):
    """Open an exported file as somebody without medseg would."""
    if path.suffix == ".onnx":
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        told = json.loads(session.get_modelmeta().custom_metadata_map["medseg"])
        return told, lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
    extra = {"medseg.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return json.loads(extra["medseg.json"]), program.module()


def agrees(path: Path, checkpoint: Path, trust: Trust | None = None) -> None:
    """One image and three, and where the file says so, other sizes; against the network in training's own code."""
    told, run = run_file(path)
    net = model_at(checkpoint, trust).net
    window, steps, free = (told["input"][key] for key in ("window", "multiple_of", "resizable"))
    other = [size + 2 * step if one else size for size, step, one in zip(window, steps, free, strict=True)]
    for shape in ((1, 1, *window), (3, 1, *window), (2, 1, *other)):
        image = torch.randn(shape)
        with torch.inference_mode():
            expected = net(image)
            torch.testing.assert_close(run(image), expected, atol=1e-3, rtol=0)
            assert float(expected.std()) > 1e-3, "the comparison would hold for anything"


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)]
)  # as an imported network is, in tests/nnunet
def test_a_file_runs_without_medseg_and_knows_its_plan(tmp_path, form, capsys):
    checkpoint = untrained(tmp_path / "some.ckpt", deep_supervision=True)
    out = tmp_path / "out"
    assert main(["export", "--ckpt", str(checkpoint), "--format", form, "--output", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {f"model.{form}", "plan.yaml", "medseg.json"}
    agrees(out / f"model.{form}", checkpoint)
    told, _ = run_file(out / f"model.{form}")
    assert told["input"]["resizable"] == [True, True, True]
    assert Plan.from_dict(told["plan"]) == read_plan(out / "plan.yaml") == PLAN
    assert dict(zip(told["output"]["classes"], told["output"]["values"], strict=True)) == {
        "background": 0,
        "liver": 1,
        "spleen": 5,
    }
    beside = json.loads((out / "medseg.json").read_text(encoding="utf-8"))
    assert beside["checked"]["largest_difference"] < 1e-3
    assert beside["input"] == told["input"]
    capsys.readouterr()
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == f"network exported as {form}"


@pytest.mark.slow  # ten seconds each, most of them torch's own tracing
@pytest.mark.parametrize("name", list_nets())
@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_every_network_can_be_exported(tmp_path, name, form):
    checkpoint = untrained(tmp_path / "some.ckpt", name)
    done = export(checkpoint, tmp_path / "out", form=form)
    deep = name in (
        "vnet",
        "mednext",
    )  # down to one voxel along the short axes of PLAN, where nothing can be normalised
    resizable = [False] * 3 if name in ("swin_unetr", "unetr") else [True, not deep, not deep]
    assert done.facts["input"]["resizable"] == resizable
    agrees(tmp_path / "out" / f"model.{form}", checkpoint)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", list_nets())
def test_monai_builds_its_own_networks_without_medseg(tmp_path, name):
    checkpoint = untrained(tmp_path / "some.ckpt", name)
    done = export(checkpoint, tmp_path / "out", form="monai-bundle")
    assert done.verdict.largest_difference < 1e-5 * max(1.0, done.verdict.largest_logit)
    config = json.loads((tmp_path / "out" / "configs" / "inference.json").read_text(encoding="utf-8"))
    ours = name in ("anatomynet", "residual_encoder_unet")
    assert config["network_def"]["_target_"].startswith("medseg." if ours else "monai.networks.nets.")
    required = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert ("medseg" in required["required_packages_version"]) == ours
    network = ConfigParser(config).get_parsed_content("network_def")
    kinds = {type(module).__module__.split(".")[0] for module in network.modules()}
    assert ("medseg" in kinds) == ours


@pytest.mark.slow
def test_a_network_whose_first_layer_is_ours_is_built_by_medseg(tmp_path):
    plan = replace(PLAN, modalities=("a", "b", "c"), normalisation=(Normalisation(),) * 3)  # 3 does not divide 16
    definition, _ = define(model_at(untrained(tmp_path / "some.ckpt", "vnet", plan)))
    assert needs_medseg(definition)


def real_ct() -> tuple[Volume, Volume, Plan]:
    folder = SHARED / "ct_abdomen"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    plan = replace(
        PLAN,
        labels={"liver": 5, "spleen": 1},
        spacing_mm=(3.0, 3.0, 3.0),  # its own
        patch_size=(48, 40, 16),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    )
    labels = read_labels(folder / "labels.nii.gz")
    known = np.isin(labels.array, [value for values in plan.values for value in values])
    return read_image((folder / "ct.nii.gz",), ("CT",)), Volume(labels.array * known, labels.affine), plan


def real_hippocampus() -> tuple[Volume, Volume, Plan]:
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"{HIPPOCAMPUS} is not there")
    plan = replace(
        PLAN,
        modalities=("MRI",),
        labels={"whole": (1, 2), "posterior": (2,)},
        paint_order=(1, 2),
        spacing_mm=(1.0, 1.0, 1.0),
        patch_size=(24, 32, 24),
        normalisation=(Normalisation("zscore"),),
    )
    image, labels = (HIPPOCAMPUS / kind / "hippocampus_001.nii.gz" for kind in ("imagesTr", "labelsTr"))
    return read_image((image,), ("MRI",)), read_labels(labels), plan


def phantom() -> tuple[Volume, Volume, Plan]:
    image, labels = (Volume(array[None], oblique_affine(0)) for array in toy_case(0))
    return Volume(image.array.astype(np.float32), image.affine), labels, PLAN


def compute_as_monai(monkeypatch):
    """In float32, and with MONAI's windows: after a minute of training, labels hang on where a window ends."""
    monkeypatch.setattr("medseg.inference.predict.best_precision", lambda device: "32")
    starts = stitch.tile_starts
    monkeypatch.setattr(stitch, "tile_starts", lambda *sizes, **how: starts(*sizes, **(how | {"tiling": "shifted"})))
    monkeypatch.setitem(stitch.FLOORS, "even", stitch.FLOORS["shifted"])


@pytest.mark.slow
@pytest.mark.parametrize("case", [phantom, real_ct, real_hippocampus])
def test_monais_own_runner_gives_the_labels_of_predict(tmp_path, case, monkeypatch):
    image, labels, plan = case()
    checkpoint = trained(tmp_path / "some.ckpt", plan, image, labels, 60, RULES if case is phantom else {})
    images = tmp_path / "images"
    write_nifti(images / "case.nii.gz", image.array[0], image.affine)
    words = ["export", "--ckpt", str(checkpoint), "--format", "monai-bundle", "--output", str(tmp_path / "bundle")]
    assert main([*words, "--check", str(images)]) == 0
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    subprocess.run(
        [*command, "--dataset_dir", str(images), "--output_dir", str(tmp_path / "theirs")],
        cwd=tmp_path / "bundle",
        check=True,
        capture_output=True,
    )
    compute_as_monai(monkeypatch)
    predict = ["predict", "--ckpt", str(checkpoint), "--input", str(images), "--output", str(tmp_path / "ours")]
    assert main(predict) == 0
    ours, theirs = nib.load(tmp_path / "ours" / "case.nii.gz"), nib.load(tmp_path / "theirs" / "case_seg.nii.gz")
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
    ours, theirs = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
    assert np.issubdtype(theirs.dtype, np.integer)
    values = np.unique(ours)
    assert len(values) == len(plan.organs) + 1, "the labels are trivial"
    np.testing.assert_array_equal(np.unique(theirs), values)
    for value in values:
        a, b = ours == value, theirs == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.99, value


def test_the_bundle_has_what_the_specification_asks_for(tmp_path):
    export(untrained(tmp_path / "some.ckpt"), tmp_path / "out", form="monai-bundle")
    configs = tmp_path / "out" / "configs"
    workflow = ConfigWorkflow(str(configs / "inference.json"), workflow_type="infer", bundle_root=str(tmp_path / "out"))
    workflow.initialize()
    assert workflow.check_properties() == []
    described = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    mandatory = "version monai_version pytorch_version numpy_version task description authors copyright"
    assert set(mandatory.split()) < set(described)
    tensor = "type format num_channels spatial_shape dtype value_range is_patch_data channel_def"
    formats = described["network_data_format"]
    assert set(tensor.split()) <= set(formats["inputs"]["image"])
    assert set(tensor.split()) <= set(formats["outputs"]["pred"])
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert formats["inputs"]["image"]["format"] == "hounsfield"


def transforms_of(steps) -> Compose:
    config = {"imports": ["$import torch"], "steps": {"_target_": "Compose", "transforms": steps}}
    return ConfigParser(config).get_parsed_content("steps")


CT = PLAN.normalisation[0]
SCHEMES = [
    (CT,),
    (replace(CT, lower=0.0), replace(CT, std=50.0)),
    *[(Normalisation(scheme),) for scheme in ("zscore", "zscore_nonzero", "rescale", "none")],
    (Normalisation("zscore"), Normalisation("zscore")),
    (CT, Normalisation("zscore"), Normalisation("none")),
]


@pytest.mark.parametrize("schemes", SCHEMES, ids=lambda schemes: "-".join(how.scheme for how in schemes))
@pytest.mark.parametrize("orientation", ["RAS", "PIL"])
def test_monais_transforms_give_the_input_of_our_network(tmp_path, schemes, orientation):
    """With the image's own spacing nothing is interpolated, so voxel by voxel the same."""
    rng = np.random.default_rng(0)
    array = np.zeros((len(schemes), 12, 9, 7), np.float32)
    array[:, 2:11, 1:8, :6] = rng.integers(1, 300, (len(schemes), 9, 7, 6))
    image = Volume(array, np.diag([-0.8, 1.1, 2.0, 1.0]))
    spacing = image.reoriented(orientation).spacing_mm
    names = tuple(f"m{index}" for index in range(len(schemes)))
    plan = replace(PLAN, modalities=names, normalisation=schemes, spacing_mm=spacing, orientation=orientation)
    files = [write_nifti(tmp_path / f"case_{i:04}.nii.gz", one, image.affine) for i, one in enumerate(array)]
    model = model_at(untrained(tmp_path / "some.ckpt", plan=plan))
    found = transforms_of(preprocessing(model))({"image": [str(path) for path in files]})["image"]
    expected, change = to_plan_grid(image, plan)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(found.affine.numpy(), change.affine, atol=1e-5)


def cleaned_by(model, rules):
    """The model of a checkpoint that has these rules."""
    content = model.checkpoint.with_cleaning(rules_to_plain(rules, PLAN))
    return replace(model, checkpoint=replace(model.checkpoint, content=content))


def test_cleaning_rules_travel(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((14, 13, 12)) < 0.55, 1, 0)
    labels[7:, :, :] *= 5
    labels[9:12, 3:8, 3:8] = 5
    labels[10, 5, 5] = 0
    checkpoint = untrained(tmp_path / "some.ckpt")
    model = cleaned_by(model_at(checkpoint), RULES)
    steps = [step for step in postprocessing(model) if re.search("Connected|Holes", step["_target_"])]
    found = transforms_of(steps)({"pred": torch.from_numpy(labels.copy())[None]})["pred"][0].numpy()
    np.testing.assert_array_equal(found, clean(labels, 1.0, RULES, PLAN))
    assert not np.array_equal(found, labels)
    assert not left_out(model)
    assert left_out(cleaned_by(model, {"liver": Rule(minimum_mm3=30.0)}))


class Undecided(torch.nn.Module):
    """What it does depends on the values that it sees, which no graph can hold."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = torch.nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, image):
        out = self.layer(image)
        return out if float(out.sum()) > 0 else -out


class Placed(torch.nn.Module):
    """It adds a number for every place of one size."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = torch.nn.Conv3d(in_channels, out_channels, 1)
        self.place = torch.nn.Parameter(torch.randn(32, 16, 16))

    def forward(self, image):
        return self.layer(image) + self.place


def test_a_network_that_no_graph_can_hold_is_one_sentence_and_leaves_nothing(tmp_path, capsys):
    checkpoint = untrained(tmp_path / "some.ckpt", "test_export.Undecided")
    words = ["--format", "pt2", "--output", str(tmp_path / "out"), "--trust", "test_export.Undecided"]
    assert main(["export", "--ckpt", str(checkpoint), *words]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"medseg: {checkpoint} holds a network that torch.export cannot express (")
    assert len(message.splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_network_of_one_size_is_exported_for_that_size(tmp_path):
    checkpoint = untrained(tmp_path / "some.ckpt", "test_export.Placed")
    trust = Trust.of(["test_export.Placed"])
    done = export(checkpoint, tmp_path / "out", form="pt2", trust=trust)
    assert done.facts["input"]["resizable"] == [False, False, False]
    agrees(tmp_path / "out" / "model.pt2", checkpoint, trust)


def test_a_difference_is_not_written(tmp_path, monkeypatch):
    checkpoint = untrained(tmp_path / "some.ckpt")
    written = lambda model, facts, folder: lambda patches: model.net(patches) + 0.01  # noqa: E731  a stand-in
    monkeypatch.setattr("medseg.export.writing.write_bundle", written)
    with pytest.raises(CheckpointError, match=r"differs from PyTorch by 0\.01"):
        export(checkpoint, tmp_path / "out", form="monai-bundle")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    checkpoint = untrained(tmp_path / "some.ckpt")
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UsageError, match=r"needs onnxscript\. Run pip install 'medseg\[export\]'"):
        export(checkpoint, tmp_path / "out", form="onnx")


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--format", "onx"], 2, "did you mean 'onnx'"),
        (["--format", "onnx", "--ckpt", "nowhere.ckpt"], 1, "nowhere.ckpt does not exist"),
        (["--format", "onnx", "--check", "nowhere.nii.gz"], 1, "nowhere.nii.gz"),
        (["--format", "onnx", "--check", "two"], 1, "two"),
    ],
)
def test_misuse_of_export_is_one_sentence(tmp_path, capsys, monkeypatch, words, status, expected):
    monkeypatch.chdir(tmp_path)
    untrained(tmp_path / "some.ckpt")
    write_nifti(tmp_path / "two" / "case.nii.gz", np.zeros((4, 4, 4, 2), np.float32), np.eye(4))
    try:
        found = main(["export", "--ckpt", "some.ckpt", "--output", "out", *words])
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_by_its_folder_and_an_ensemble_is_not(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    untrained(tmp_path / "run" / "checkpoints" / "best.ckpt")
    (tmp_path / "ensemble.json").write_text('{"checkpoints": ["run/a.ckpt", "run/b.ckpt"]}', encoding="utf-8")
    words = ["--format", "monai-bundle", "--output", str(tmp_path / "out")]
    assert main(["export", "--ckpt", str(tmp_path / "run"), *words]) == 0
    assert main(["export", "--ckpt", str(tmp_path), *words]) == 2
    assert "holds 2 checkpoints" in capsys.readouterr().err
    assert main(["export", "--ckpt", str(tmp_path / "out"), *words]) == 1
    assert "neither checkpoints/best.ckpt nor ensemble.json" in capsys.readouterr().err


def test_damaged_facts_are_named(tmp_path, capsys):
    (tmp_path / "medseg.json").write_text("{}", encoding="utf-8")
    assert main(["info", str(tmp_path)]) == 1
    assert "medseg.json is not what medseg export wrote" in capsys.readouterr().err


def test_an_unknown_format_is_answered_from_python_too(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'pt2'"):
        export(untrained(tmp_path / "some.ckpt"), tmp_path, form="pt")


def test_the_command_offers_every_format():
    from medseg.cli import export as command

    assert tuple(FORMATS) == command.FORMATS
