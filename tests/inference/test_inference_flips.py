"""`--tta` flips what training flipped, along those axes and no other; a sentence says where it did not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.prediction import PLAN, REGIONS, smooth, write_checkpoint
from support.toys import write_nifti

from medseg.checkpoints.reading import read_checkpoint
from medseg.cli import main
from medseg.inference.predict import Predictor
from medseg.segmenter import Segmenter
from medseg.space.volume import Volume


def of_config(path, values, plan=PLAN):
    """As version 0.1.0 wrote it: the config in the origin tells of the flips, nothing else does."""
    write_checkpoint(path, plan)
    content = torch.load(path, weights_only=True)
    content["origin"] = {
        **{"plan": {}, "packages": {}, "commits": {}, "data": {"digest": "", "cases": []}},
        "config": {"digest": "", "values": values},
    }
    torch.save(content, path)
    return path


def predict(tmp_path, checkpoints, *words):
    write_nifti(tmp_path / "in" / "a.nii.gz", smooth((9, 8, 5), 1)[0], np.diag([1.5, 1.5, 3.0, 1.0]))
    ckpt = ["--ckpt", *map(str, checkpoints)]
    return main(["predict", *ckpt, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *words])


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_the_axes_of_the_training_are_flipped(tmp_path, axes):
    path = write_checkpoint(tmp_path / "a.ckpt", signature={"flips": list(axes)})
    made = Predictor.load([path], mirror=True, device="cpu")
    assert made.mirror == axes
    made.half = None
    image = Volume(smooth((8, 8, 4), 1), np.diag([1.5, 1.5, 3.0, 1.0]))
    tiles = torch.from_numpy(made.prepare(image).image)[None]
    for axis in range(3):  # an average over flips does not know the direction of what it flips, and of nothing else
        turned = made._network()(tiles.flip(axis + 2)).flip(axis + 2)
        assert torch.allclose(turned, made._network()(tiles), atol=1e-5) == (axis in axes)


@pytest.mark.parametrize(
    ("flips", "words", "expected"),
    [
        ([], ["--tta"], "was trained without flips"),
        ([], ["--tta", "0"], "was trained without flips"),
        ([1, 2], ["--tta", "0"], "never flipped axis 0"),
        (None, ["--tta"], "does not say along which axes"),
    ],
)
def test_other_flips_are_refused_in_a_sentence(tmp_path, capsys, flips, words, expected):
    signature = {} if flips is None else {"flips": flips}
    path = write_checkpoint(tmp_path / "a.ckpt", signature=signature)
    assert predict(tmp_path, [path], *words) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_may_name_some_of_them_and_must_where_nobody_knows(tmp_path):
    known = write_checkpoint(tmp_path / "a.ckpt", signature={"flips": [0, 1, 2]})
    unknown = write_checkpoint(tmp_path / "b.ckpt")
    assert Predictor.load([known], mirror=(2,), device="cpu").mirror == (2,)
    assert Predictor.load([unknown], mirror=(1,), device="cpu").mirror == (1,)
    assert predict(tmp_path, [unknown], "--tta", "0", "1") == 0


def test_folds_that_flipped_otherwise_are_not_averaged_over_flips(tmp_path, capsys):
    paths = [write_checkpoint(tmp_path / f"{n}.ckpt", signature={"flips": f}) for n, f in enumerate(([0, 1], [1]))]
    assert predict(tmp_path, paths, "--tta") == 2
    assert "with flips along the axes 0, 1" in capsys.readouterr().err
    assert Predictor.load(paths, mirror=(1,), device="cpu").mirror == (1,)
    assert Predictor.load(paths, device="cpu").mirror == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"data.augmentation": "moderate"}, ()),
        ({"data.augmentation": "full"}, (0, 1, 2)),
        ({"data.augmentation.preset": "moderate", "data.augmentation.rotation_deg": 5.0}, ()),
        ({"data.augmentation.preset": "light", "data.augmentation.mirror_probability": 0.5}, (0, 1, 2)),
        ({"data.augmentation.rotation_deg": 5.0}, (0, 1, 2)),
        ({"data.augmentation": "no such preset"}, None),
        ({"data.augmentation.preset": ["full"]}, None),
        ({"data.fold": 1}, None),
    ],
)
def test_an_old_checkpoint_tells_by_its_config(tmp_path, values, expected):
    path = of_config(tmp_path / "old.ckpt", values)
    assert Segmenter.from_checkpoint(read_checkpoint(path)).flips == expected


def test_only_axes_of_the_plan_are_flipped(tmp_path):
    plan = replace(REGIONS, mirror_axes=(1,))
    path = of_config(tmp_path / "old.ckpt", {"data.augmentation": "full"}, plan)
    assert Segmenter.from_checkpoint(read_checkpoint(path)).flips == (1,)
    path = write_checkpoint(tmp_path / "new.ckpt", plan, signature={"flips": [0, 1, 2]})
    assert Segmenter.from_checkpoint(read_checkpoint(path)).flips == (1,)
