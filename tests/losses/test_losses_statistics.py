"""The streamed sums against the same sums written down over whole volumes, values and gradients."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  torch's own alias

from medseg.losses import statistics
from medseg.losses.statistics import confusion_pass, softmax_pass, squares_pass, streamed_map, streamed_sum

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
        softmax_pass: ((w * p).sum(2), (w * p * g).sum(2), (logits.log_softmax(1) * g).sum(1)),
        squares_pass: tuple((w * term).sum(2) for term in ((1 - p) ** 2 * g, p**2 * g, p * g, p**2 * (1 - g))),
        confusion_pass: tuple(torch.einsum("bcn,bln->bcl", w * g, p)),
    }


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("walk", [softmax_pass, squares_pass, confusion_pass])
def test_a_walk_gives_the_sums_of_the_whole_volume(walk, weighted):
    logits, labels, weight = example(weighted)
    expected = written_down(logits, labels, weight)[walk]
    found = tuple(walk(logits, labels, weight))
    torch.testing.assert_close(found, expected)
    some = [torch.randn_like(part) for part in expected]  # an arbitrary direction tests every slope
    slopes = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(parts, some, strict=True)), logits)[0]
        for parts in (found, expected)
    ]
    torch.testing.assert_close(*slopes)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("walk", [squares_pass, confusion_pass])
def test_a_walk_in_single_precision_keeps_small_errors(walk):
    logits, labels, _ = example(False)
    sure = (30 * F.one_hot(labels.long(), 4).movedim(-1, 1) + 0.1 * logits.detach()).requires_grad_()
    exact = tuple(walk(sure, labels, None))
    rough = tuple(walk(sure.detach().float().requires_grad_(), labels, None))
    torch.testing.assert_close(rough, tuple(part.float() for part in exact), rtol=1e-4, atol=0)


@pytest.mark.usefixtures("_small_chunks")
def test_any_function_of_single_voxels_can_be_streamed():
    logits, labels, weight = example(True)

    def function(z, truth, w):
        hit = z.tanh().gather(1, truth.long().unsqueeze(1)).squeeze(1)
        return (hit if w is None else hit * w.squeeze(1)).exp()

    mapped = streamed_map(function, logits, labels)
    torch.testing.assert_close(mapped, function(logits, labels, None))
    summed = streamed_sum(lambda *chunk: function(*chunk).sum(1), logits, labels, weight[:, None])
    whole = function(logits, labels, weight[:, None]).sum(1)
    torch.testing.assert_close(summed, whole)
    slopes = [torch.autograd.grad((part**2).sum(), logits)[0] for part in (summed, whole)]
    torch.testing.assert_close(*slopes)
