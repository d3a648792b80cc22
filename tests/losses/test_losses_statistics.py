"""The streamed sums against the same sums written down over whole volumes, values and gradients."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias

from medseg.losses import statistics
from medseg.losses.statistics import CONFUSION, OVERLAP, SQUARES, Walk

VOXELS = 150  # two chunks of 64 and a rest, once the chunks are small


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _small_chunks(request, monkeypatch):
    monkeypatch.setitem(statistics.CHUNK_ELEMENTS, "cpu", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def example(weighted):
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 4, VOXELS, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, VOXELS), generator=generator, dtype=torch.uint8)  # class 3 is absent
    weight = torch.rand(2, VOXELS, generator=generator, dtype=torch.float64) if weighted else None
    return logits.requires_grad_(), labels, weight


def written_down(logits, labels, weight):
    p, g = logits.softmax(1), F.one_hot(labels.long(), 4).movedim(-1, 1).double()
    w = torch.ones_like(p[:, :1]) if weight is None else weight[:, None]
    return {
        "overlap": (
            torch.stack([(w * p * g).sum(2), (w * p * (1 - g)).sum(2)]),
            (logits.log_softmax(1) * g).sum(1),
        ),
        "squares": (torch.stack([(w * term).sum(2) for term in ((1 - p) ** 2 * g, p**2 * g, p * g, p**2 * (1 - g))]),),
        "confusion": (torch.einsum("bcn,bln->bcl", w * g, p),),
    }


WALKS = {"overlap": OVERLAP, "squares": SQUARES, "confusion": CONFUSION}


def walked(name, logits, labels, weight):
    return tuple(
        part for part in WALKS[name](logits, labels, None if weight is None else weight[:, None]) if part is not None
    )


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", WALKS)
def test_a_walk_gives_the_sums_of_the_whole_volume(name, weighted):
    logits, labels, weight = example(weighted)
    expected = written_down(logits, labels, weight)[name]
    found = walked(name, logits, labels, weight)
    torch.testing.assert_close(found, expected)
    some = [torch.randn_like(part) for part in expected]  # an arbitrary direction tests every slope
    first, second = [], []
    for parts in (found, expected):
        (slope,) = torch.autograd.grad(
            sum((a * b).sum() for a, b in zip(parts, some, strict=True)), logits, create_graph=True, retain_graph=True
        )
        first.append(slope)
        second.append(torch.autograd.grad((slope**2).sum(), logits, retain_graph=True)[0])
    torch.testing.assert_close(*first)
    torch.testing.assert_close(*second)
    (lean,) = torch.autograd.grad(
        sum((a * b).sum() for a, b in zip(walked(name, logits, labels, weight), some, strict=True)), logits
    )
    torch.testing.assert_close(lean, first[1])


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("name", WALKS)
def test_a_walk_in_single_precision_keeps_small_errors(name):
    logits, labels, _ = example(False)
    sure = (30 * F.one_hot(labels.long(), 4).movedim(-1, 1) + 0.1 * logits.detach()).requires_grad_()
    exact = walked(name, sure, labels, None)
    rough = walked(name, sure.detach().float().requires_grad_(), labels, None)
    for a, b in zip(rough, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6 if a.dtype == torch.float32 else 0)


@pytest.mark.parametrize("shift", [-300.0, -60.0, 60.0, 300.0])
@pytest.mark.parametrize("name", ["overlap", "squares"])
def test_a_shift_of_all_logits_is_not_seen(name, shift):
    """In single precision, with exponentials in range and out of it."""
    logits, labels, _ = example(False)
    logits = logits.detach().float()
    found = []
    for z in (logits, logits + shift):
        z.requires_grad_()
        parts = walked(name, z, labels, None)
        some = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view(part.shape) for part in parts]
        found.append((*parts, torch.autograd.grad(sum((a * b).sum() for a, b in zip(parts, some, strict=True)), z)[0]))
    torch.testing.assert_close(*found, rtol=3e-4, atol=3e-5)


@pytest.mark.parametrize("name", ["overlap", "squares"])
def test_a_class_shut_off_by_an_infinite_logit_is_not_there(name):
    logits, labels, _ = example(False)
    drawn, found = logits.detach()[:, :3], []
    for z in (torch.cat([drawn, torch.full_like(drawn[:, :1], -torch.inf)], 1), drawn.clone()):
        z.requires_grad_()
        parts = walked(name, z, labels, None)
        (slope,) = torch.autograd.grad(sum(part.square().sum() for part in parts), z, create_graph=True)
        bent = torch.autograd.grad(slope[:, :3].square().sum(), z)[0]
        found.append([parts[0][..., :3], *parts[1:], slope[:, :3], bent[:, :3]])
    torch.testing.assert_close(*found)
    assert all(part.isfinite().all() for part in found[0])


@pytest.mark.usefixtures("_small_chunks")
def test_any_function_of_single_voxels_can_be_streamed():
    logits, labels, weight = example(True)

    def function(z, truth, w):
        hit = z.tanh().gather(1, truth.long().unsqueeze(1)).squeeze(1)
        hit = (hit * w.squeeze(1)).exp()
        return hit.sum(1).double(), hit

    whole = function(logits, labels, weight[:, None])
    found = Walk(function)(logits, labels, weight[:, None])
    torch.testing.assert_close(found, whole)
    slopes = [torch.autograd.grad((sums**2).sum() + values.sin().sum(), logits)[0] for sums, values in (found, whole)]
    torch.testing.assert_close(*slopes)


@pytest.mark.usefixtures("_small_chunks")
def test_undrawn_classes_give_their_probability_to_the_background():
    logits, labels, _ = example(False)
    undrawn = torch.tensor([[False, False, False, True], [False, True, False, True]])
    labels = torch.where(undrawn.gather(1, labels.long()), 0, labels)
    for name, walk in WALKS.items():
        lean, some = [], None
        for dense in (False, True):
            if dense:
                p = logits.softmax(1)
                rest = torch.where(undrawn[:, :, None], 0, p)
                p = torch.cat([1 - rest[:, 1:].sum(1, keepdim=True), rest[:, 1:]], 1)
                parts = written_down(p.log(), labels, None)[name]
            else:
                parts = tuple(part for part in walk(logits, labels, None, undrawn) if part is not None)
            some = some or [torch.randn_like(part) for part in parts]
            total = sum(torch.where(b.isfinite(), a * b, 0).sum() for a, b in zip(some, parts, strict=True))
            lean.append((total.detach(), torch.autograd.grad(total, logits)[0]))
        if name != "overlap":  # where log 0 of the dense form has no gradient
            torch.testing.assert_close(*lean)
