"""The toy dataset, and the journey from it to an evaluation, in whatever way labels are stored."""

import json

import numpy as np

from medseg.cli import main
from support.toys import TOY_LABELS, oblique_affine, toy_case, write_nifti

CASES = {f"toy_{index}": index for index in range(4)}
ORGANS = {name: value for name, value in TOY_LABELS.items() if value}
TINY = [
    *("--model.net_options", '{"features": [4, 8]}', "--data.steps_per_epoch", "2", "--data.batch_size", "2"),
    *("--trainer.max_steps", "2", "--trainer.precision", "32", "--trainer.accelerator", "cpu", "--data.folds", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0", "--data.workers", "0"),
]


def describe(root, **content):
    """Write the description of a dataset of the toy's organs."""
    root.mkdir(parents=True, exist_ok=True)
    described = {"name": "Toy", "modality": ["CT"], "labels": TOY_LABELS} | content
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in described.items() if v is not None}))
    return root


def write_objects(root, form, cases=CASES, **content):
    """The toy as DICOM series in folders, its labels as objects beside them: ``series/toy_0/``, ``drawn/toy_0.dcm``."""
    from medseg.dicom.series import series_of
    from support.series import write_ct

    (root / "drawn").mkdir(parents=True)
    for case, index in cases.items():
        voxels, labels = toy_case(index)
        series = series_of(write_ct(root / "series" / case, voxels, oblique_affine(index)))
        write_object(root / "drawn" / f"{case}.dcm", form, {n: labels == v for n, v in ORGANS.items()}, series)
    return describe(root, image_folder="series", label_folder="drawn", **content)


def write_object(path, form, masks, series):
    """One object, its segments in the order of the masks."""
    from medseg.dicom.organs import Organ
    from medseg.dicom.segmentation import Algorithm, headers_of
    from medseg.inference.objects import FORMS

    organs = [Organ(name, (200, 30 * index, 40)) for index, name in enumerate(masks)]
    FORMS[form](path, masks, organs, series, Algorithm("hand", "1"), like=headers_of(series))
    return path


def journey(root, out, *fit):
    """Verify, plan, prepare, fit, test, predict and evaluate; the scores of the last."""
    store, run, plan = out / "store", out / "run", out / "plan.yaml"
    assert main(["verify", str(root), "--workers", "1", "--figures", str(out / "figures")]) == 0
    assert main(["plan", str(root), "--out", str(plan), "--workers", "1"]) == 0
    assert main(["prepare", str(root), "--out", str(store), "--plan", str(plan), "--workers", "1"]) == 0
    assert main(["fit", "--data.store", str(store), "--run", str(run), *TINY, *fit]) == 0
    assert main(["test", "--run", str(run)]) == 0
    words = ["--ckpt", str(run / "checkpoints" / "last.ckpt"), "--input", str(root), "--all", "--device", "cpu"]
    assert main(["predict", *words, "--output", str(out / "predicted")]) == 0
    scored = ["--predictions", str(out / "predicted"), "--references", str(root), "--output", str(out / "scores")]
    assert main(["evaluate", *scored]) == 0
    return json.loads((out / "scores" / "summary.json").read_text())


def write_itk(root, cases=CASES, labels=TOY_LABELS):
    """The toy with images in NRRD and labels in MetaImage, under values and names of their own (in the toy's order)."""
    from support.foreign import itk_image, sitk

    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for case, index in cases.items():
        voxels, drawn = toy_case(index)
        drawn = np.select([drawn == value for value in TOY_LABELS.values()], list(labels.values())).astype(np.uint8)
        for file, array in ((f"images/{case}.nrrd", voxels), (f"labels/{case}.mha", drawn)):
            sitk.WriteImage(itk_image(array, oblique_affine(index)), root / file)
    return describe(root, labels=labels)


def prepared_labels(store):
    """The labels of every case of a store."""
    from medseg.store.store import Store

    opened = Store(store)
    return {case: np.asarray(opened.labels(case)[:]) for case in opened.ids}


def write_bids(root, cases=CASES):
    """The toy as BIDS: the labels in a derivative, which names the organs."""
    for case, index in cases.items():
        voxels, labels = toy_case(index)
        said, place = f"sub-{case.replace('_', '')}_ses-1", f"sub-{case.replace('_', '')}/ses-1/anat"
        write_nifti(root / place / f"{said}_T1w.nii.gz", voxels, oblique_affine(index))
        write_nifti(root / "derivatives/hand" / place / f"{said}_desc-a_dseg.nii.gz", labels, oblique_affine(index))
    table = "".join(f"{value}\t{name}\n" for name, value in TOY_LABELS.items())
    (root / "derivatives" / "hand" / "dseg.tsv").write_text("index\tname\n" + table)
    return describe(root, labels=None, modality=None, suffix="T1w", derivative="hand")


def rated(index):
    """What three raters drew, of whom two agree everywhere, and how many voxels each voxel counts as."""
    voxels, labels = toy_case(index)
    weight = np.ones(labels.shape, np.float32)
    weight[:12], weight[20:] = 2.5, 0
    return voxels, (labels, np.roll(labels, 2, axis=0), labels), weight


def write_rated(root, dialect, raters, *, weighted=True, cases=CASES):
    """The toy drawn by three raters, in a dialect: ``lists``, ``nnunet``, ``folders``, ``patterns`` or ``bids``."""
    folders = ["labelsTr", "labelsB", "labelsC"]
    for case, index in cases.items():
        voxels, drawn, weight = rated(index)
        affine, channel = oblique_affine(index), "_0000" if dialect == "nnunet" else ""
        said = f"sub-{case.replace('_', '')}"
        image, labels, weights = {
            "bids": (f"{said}/anat/{said}_T1w", [f"derivatives/hand/{said}_desc-{n}_dseg" for n in "abc"],
                     f"derivatives/hand/{said}_desc-sure_weight"),
            "patterns": (f"{case}/ct", [f"{case}/{folder}" for folder in folders], f"{case}/sure"),
        }.get(dialect, (f"imagesTr/{case}{channel}", [f"{f}/{case}" for f in folders], f"weights/{case}"))  # fmt: skip
        write_nifti(root / f"{image}.nii.gz", voxels, affine)
        for name, one in zip(labels, drawn, strict=True):
            write_nifti(root / f"{name}.nii.gz", one, affine)
        if weighted and index:  # of the first case, all voxels count alike
            write_nifti(root / f"{weights}.nii.gz", weight, affine)
    of_folders = {"label_folder": folders} | ({"weight_folder": "weights"} if weighted else {})
    content = {
        "lists": {"training": [_listed(case, folders, weighted and index) for case, index in cases.items()]},
        "nnunet": {"channel_names": {"0": "CT"}, "modality": None, "file_ending": ".nii.gz", **of_folders},
        "folders": of_folders,
        "patterns": {"image": "{case}/ct.nii.gz", "label": [f"{{case}}/{f}.nii.gz" for f in folders]}
        | ({"weight": "{case}/sure.nii.gz"} if weighted else {}),
        "bids": {"suffix": "T1w", "derivative": "hand"} | ({"weight_suffix": "weight"} if weighted else {}),
    }[dialect]
    return describe(root, raters=raters, **content)


def _listed(case, folders, weighted):
    entry = {"image": f"imagesTr/{case}.nii.gz", "label": [f"{folder}/{case}.nii.gz" for folder in folders]}
    return entry | ({"weight": f"weights/{case}.nii.gz"} if weighted else {})
