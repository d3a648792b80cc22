"""The report: one file, nothing fetched, every chapter, and pictures that say what they show."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from statistics import fmean

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from rich.console import Console

from medseg.checkpoints.run import Run
from medseg.metrics.cases import OrganScores
from medseg.metrics.empty import Outcome
from medseg.pictures.charts import box_of, box_plot, line_chart
from medseg.pictures.outlines import outline, three_planes
from medseg.pictures.slices import png
from medseg.report.cases_html import all_cases
from medseg.report.evaluate import evaluate
from medseg.report.html import write_report
from medseg.report.record import environment, read_curves
from medseg.report.rows import by_case
from medseg.report.tables import print_summary
from medseg.space.volume import orientation_of

METRICS_CSV = """epoch,step,lr-SGD,train/loss,val/dice,val/dice/liver,val/dice/<b>
0,9,0.01,1.5,,,
0,9,,,0.4,0.3,0.5
1,19,0.005,0.9,,,
1,19,,,0.8,nan,0.9
2,29,0.0x
"""
VOID = {"meta", "link", "br", "line", "rect", "path", "polyline", "circle", "image"}


class Page(HTMLParser):
    """Collects what a browser would fetch and how tags nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def evaluation(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.array([[0, -1.5, 0, 3], [1.0, 0, 0, 5], [0, 0, 3.0, 1], [0, 0, 0, 1]])  # axes swapped, one mirrored
    images = {}
    for index in range(8):
        reference = np.zeros((20, 18, 9), np.uint8)
        reference[4:12, 5:12, 2:6] = 1
        reference[14:17, 5:8, 3:5] = 2
        prediction = np.roll(reference, index // 3, axis=0)
        if index == 7:
            prediction[prediction == 2] = 0
        image = (100 * reference + rng.normal(0, 5, reference.shape)).astype(np.float32)
        for folder, voxels in (("predictions", prediction), ("references", reference), ("images", image)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, affine), tmp_path / folder / f"case_{index}.nii.gz")
        images[f"case_{index}"] = tmp_path / "images" / f"case_{index}.nii.gz"
    (tmp_path / "predictions" / "stray<1>.nii.gz").write_bytes(b"no nifti")
    return evaluate(
        tmp_path / "predictions",
        tmp_path / "references",
        organs={"liver": 1, "<b>": 2},
        images=images,
        output=tmp_path / "out",
    )


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text(METRICS_CSV)
    (folder / "config.yaml").write_text("model: {loss: dice}\n")
    return folder


def test_the_report_is_whole_and_fetches_nothing(evaluation, run_folder):
    path = write_report(evaluation, run=Run(run_folder), commands=["medseg evaluate --output A&B"], title="Toy <1>")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 1, "sorts tables, and is the page's own: it has no src"
    assert not re.search(r"url\(|@import|https?://", text)
    assert path.parent == evaluation.output


def test_every_chapter_is_there_and_names_are_escaped(evaluation, run_folder):
    plan = "patch_size: [32, 32, 16]\n"
    page = write_report(evaluation, run=Run(run_folder), plan=plan, commands=["medseg evaluate --output A&B"])
    text = page.read_text(encoding="utf-8")
    for anchor in (
        "failures",
        "organs",
        "spread",
        "cases",
        "all",
        "training",
        "plan",
        "config",
        "environment",
        "repeat",
    ):
        assert f'<section id="{anchor}">' in text
        assert f'href="#{anchor}"' in text
    assert "patch_size: [32, 32, 16]" in text
    assert "A&amp;B" in text
    assert "<b>" not in re.sub(r"<b( class|>[^<]*</b>)", "", text).replace("&lt;b&gt;", "")
    assert "stray&lt;1&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_chapters_without_content_are_left_out(evaluation):
    text = write_report(evaluation).read_text(encoding="utf-8")
    for anchor in ("training", "plan", "config", "repeat"):
        assert f'id="{anchor}"' not in text
        assert f'href="#{anchor}"' not in text


def test_every_picture_has_a_text(evaluation, run_folder):
    text = write_report(evaluation, run=Run(run_folder)).read_text(encoding="utf-8")
    pictures = re.findall(r"<svg[^>]*>", text)
    assert len(pictures) > 30
    assert all("aria-label=" in tag or 'aria-hidden="true"' in tag for tag in pictures)


def test_the_worst_case_comes_first_and_is_seen_in_three_planes(evaluation):
    text = write_report(evaluation).read_text(encoding="utf-8")
    worst = re.findall(r'<div class="case"><p><b>(.*?)</b>', text)
    assert worst[0] == "case_7"
    assert len(worst) == 6
    assert text.count("<figcaption>axial") == text.count("<figcaption>sagittal") == 12, "worst organ, all organs"
    assert text.count("data:image/png") == 36
    assert text.count("all organs (liver, &lt;b&gt;)") == 6 * 3 * 2, "in the label and the title of each plane"


def test_each_case_has_a_row_with_all_organs(evaluation):
    text = write_report(evaluation).read_text(encoding="utf-8")
    head, *rows = re.findall("<tr>.*?</tr>", text.split('<section id="all">')[1].split("</section>")[0])
    assert re.findall("<button[^>]*>(.*?)</button>", head) == ["case", "mean", "liver", "&lt;b&gt;"]
    expected = {case: [row.scores.dice for row in some] for case, some in by_case(evaluation.rows).items()}
    told = {re.search('row">(.*?)</th>', row)[1]: [float(n) for n in re.findall(r"<td>([\d.]+)", row)] for row in rows}
    assert told == {case: pytest.approx([fmean(dice), *dice], abs=6e-4) for case, dice in expected.items()}
    assert next(iter(told)) == "case_7"


def test_of_thousands_of_cases_the_worst_are_listed(evaluation):
    """A page that many cases would make long: a row for 500 of them, and marks that lie apart."""
    row = evaluation.rows[0]
    rows = [replace(row, case=f"c{number}", scores=organ_scores(number / 4000)) for number in range(4000)]
    page = all_cases(rows)
    assert page.count("<tr>") == 501
    assert "the 500 worst of 4,000 cases (all are in cases.csv)" in page
    assert "c499<" in page
    assert "c500<" not in page
    assert len(box_plot("Dice", {"liver": [row.scores.dice for row in rows]}, inside=[0.0, 1.0])) < 20_000


def organ_scores(dice):
    return OrganScores(Outcome.FOUND, {"dice": dice})


def test_without_images_outlines_are_drawn_alone(evaluation, tmp_path):
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"gone")
    text = write_report(evaluation).read_text(encoding="utf-8")
    assert "data:image/png" not in text
    assert text.count("<figcaption>axial") == 12


def test_an_organ_of_which_no_voxel_was_found_is_missed_wherever_it_is_counted(tmp_path):
    """Predicted beside the organ in both cases that have it; of the third, which lacks it, it was invented."""
    organ = np.zeros((12, 6, 6), np.uint8)
    organ[1:4] = 1
    beside = np.roll(organ, 6, axis=0)
    liver = np.zeros_like(organ)
    liver[5, 1:3, 1:3] = 2
    for case, reference in (("a", organ + liver), ("b", organ + liver), ("c", liver)):
        for folder, voxels in (("p", beside + liver), ("r", reference)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / folder / f"{case}.nii.gz")
    organs = {"spleen": 1, "liver": 2}
    found = evaluate(tmp_path / "p", tmp_path / "r", organs=organs, output=tmp_path / "out")
    spleen = found.summary.organs["spleen"]
    assert (spleen.missed_of, spleen.false_of, spleen.measures["dice"].mean) == ((2, 2), (1, 1), 0.0)
    assert 0 < spleen.measures["hd95_mm"].mean < max(row.value("hd95_mm") for row in found.rows)
    text = write_report(found).read_text(encoding="utf-8")
    assert 'class="bad">2 of 5<' in text, "the tile, of the organs that the references hold"
    assert 'class="bad">2</span> of 2' in text
    console = Console(width=200, record=True)
    print_summary(found, console)
    assert re.search(r"spleen .* 2 of 2 +1 of 1", console.export_text())


def test_an_image_on_another_grid_is_not_drawn_under_the_outlines(evaluation, tmp_path):
    for path in (tmp_path / "images").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), path)
    assert "data:image/png" not in write_report(evaluation).read_text(encoding="utf-8")


def test_of_many_curves_the_mean_and_the_lowest_are_drawn(evaluation, run_folder):
    organs = [f"val/dice/organ_{index}" for index in range(20)]
    values = [f"{index / 20}" for index in range(20)]
    (run_folder / "metrics.csv").write_text(f"step,val/dice,{','.join(organs)}\n9,0.5,{','.join(values)}\n")
    text = write_report(evaluation, run=Run(run_folder)).read_text(encoding="utf-8")
    assert "val/dice and the 5 lowest of 20" in text
    assert "organ_4<" in text
    assert "organ_5<" not in text


@pytest.mark.parametrize("value", [0.0, 0.2, -3.0])
def test_a_curve_of_one_point_lies_between_0_and_a_round_number(value):
    chart = line_chart("time", {"time": [(24.0, value)]}, x_name="step")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert texts[-1] == "step 24"
    low, *_, high = map(float, texts[:-1])
    assert low <= value <= high
    assert low * high == 0  # a time is not below 0


def test_a_report_of_nothing_but_failures(evaluation, tmp_path):
    for path in (tmp_path / "predictions").iterdir():
        path.write_bytes(b"no nifti")
    nothing = evaluate(tmp_path / "predictions", tmp_path / "references", organs={"liver": 1}, output=tmp_path / "out")
    assert "No case could be scored" in write_report(nothing).read_text(encoding="utf-8")


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_outlines_enclose_exactly_their_mask(mask):
    """Even-odd filling of the traced loops gives the mask back."""
    filled = np.zeros_like(mask)
    for loop in re.findall(r"M([^Z]+)Z", outline(mask)):
        corners = [tuple(map(int, corner.split())) for corner in loop.split("L")]
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                filled[min(y0, y1) : max(y0, y1), x0:] ^= True
    np.testing.assert_array_equal(filled, mask)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_pictures_are_read_back_by_pillow(grey):
    with Image.open(io.BytesIO(png(grey))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), grey)


def test_the_image_in_the_page_is_a_picture(evaluation):
    encoded = re.search(r"data:image/png;base64,([^\"]+)", write_report(evaluation).read_text(encoding="utf-8"))[1]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        picture.load()
        assert picture.mode == "L"


def test_planes_show_the_patients_right_on_the_left_and_the_head_up():
    image = np.zeros((6, 7, 8))
    image[5, 6, 7] = 1.0  # most right-hand index in RAS: right, anterior, superior
    organ = np.ones_like(image, dtype=bool)
    off = organ.copy()
    off[5, 6, 7] = False  # the planes go through the difference
    for cut in three_planes(image, off[None], organ[None], spacing_mm=(1.0, 1.0, 1.0)):
        assert cut.grey[0, 0] == cut.grey.max() > cut.grey.min(), cut.plane


def test_near_45_degrees_image_and_outlines_are_turned_alike(tmp_path):
    """Rounding decides there which axis is which, so a picture takes one decision for all."""
    drawn = []
    for turned in (45.0 - 1e-6, 45.0 + 1e-6):
        c, s = np.cos(np.radians(turned)), np.sin(np.radians(turned))
        affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        drawn.append(affine)
    codes = [orientation_of(affine) for affine in drawn]
    assert codes[0] != codes[1]  # the case that is meant
    organ = np.zeros((20, 24, 8), np.uint8)
    organ[3:8, 5:20, 2:6] = 1
    for folder, voxels, affine in (("p", organ, drawn[0]), ("r", organ, drawn[0]), ("i", organ * 100.0, drawn[1])):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / folder / "a.nii.gz")
    images = {"a": tmp_path / "i" / "a.nii.gz"}
    found = evaluate(tmp_path / "p", tmp_path / "r", organs={"organ": 1}, images=images, output=tmp_path / "out")
    text = write_report(found).read_text(encoding="utf-8")
    for encoded, outlined in zip(
        re.findall(r"data:image/png;base64,([^\"]+)", text),
        re.findall(r'<path d="(M[^"]+)" transform', text)[::3],
        strict=True,
    ):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            grey = np.asarray(picture)
        x, y = np.array([corner.split() for corner in re.split("[MLZ]", outlined) if corner], dtype=int).T
        bright = np.argwhere(grey > 127)
        assert (y.min(), x.min(), y.max(), x.max()) == (*bright.min(axis=0), *(bright.max(axis=0) + 1))


def test_curves_share_a_chart_by_the_first_two_parts_of_their_name(run_folder):
    curves = read_curves(run_folder / "metrics.csv")
    assert set(curves) == {"val/dice", "train", "learning rate"}
    assert curves["val/dice"]["val/dice"] == ((9.0, 0.4), (19.0, 0.8))
    assert curves["val/dice"]["val/dice/liver"] == ((9.0, 0.3),)  # nan is not drawn
    assert read_curves(run_folder / "none.csv") == {}
    assert "train/loss from 1.5 to 0.9" in line_chart("loss", curves["train"], x_name="step")


def test_the_environment_names_what_made_the_scores():
    assert {"medseg", "python", "torch", "monai", "System"} <= set(environment())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_five_numbers_of_a_box_are_in_order(values):
    box = box_of(values)
    assert min(values) <= box.low <= box.median <= box.high <= max(values)
    assert box.first <= box.median <= box.third
