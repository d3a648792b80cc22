"""Muon: steps of equal length in every direction of a weight matrix, for trainings of few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SMALLEST_RANK = 8
"""Rows and columns below which a matrix is left to Adam."""

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of one Newton-Schulz step, a x + b x^3 + c x^5 on every singular value; Jordan's, which is steep at 0."""

_STEPS = 5


def orthogonalized(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """About U V' of the singular value decomposition U S V': singular values between 0.7 and 1.2.

    The Newton-Schulz steps are taken on the small square Gram matrix, of which each step is a polynomial, so that the
    long one is multiplied twice in all.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalized(torch.randn(16, 432)))
        >>> bool(values.min() > 0.6 and values.max() < 1.3)
        True
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    smallest = torch.finfo(wide.dtype).tiny
    wide = wide / wide.abs().amax().clamp_min(smallest)  # so that no square is 0 or infinite
    wide = wide / wide.norm().clamp_min(smallest)
    gram = wide @ wide.T
    first, third, fifth = _POLYNOMIAL
    so_far = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_STEPS):
        step = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        step.diagonal().add_(first)
        so_far = step @ so_far
        gram = step @ gram @ step
    found: Tensor = so_far @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.T


class Muon(torch.optim.AdamW):
    """Nesterov momentum, orthogonalized, for the kernels of convolutions; AdamW for everything else.

    A network's last layers, see `mark_outputs`, are AdamW's too: a training that turned them had found none of 23
    organs after 750 steps (benchmarks/RESULTS.md).

    A kernel ``(out, in, i, j, k)`` is the matrix ``(out, in i j k)``. Its step is scaled to the root mean square that
    AdamW's have, so that one learning rate serves both and is found where AdamW's is.

    Args:
        params: Weights, or groups of them.
        lr: Learning rate.
        momentum: Of the kernels.
        weight_decay: Decoupled, as AdamW's.
        options: AdamW's, for the rest.

    Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025,
    arXiv:2502.16982, for the scale.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, **options)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, not in [0, 1)")
        for group in self.param_groups:
            group.setdefault("momentum", momentum)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # as torch's own
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = [(each, group) for group in self.param_groups for each in group["params"]]
        kernels = [(*one, gradient) for one in weights if (gradient := _gradient_of_kernel(one[0])) is not None]
        for kernel, group, gradient in kernels:
            self._turn(kernel, gradient, group)
            kernel.grad = None  # AdamW has no part in it
        super().step()
        for kernel, _, gradient in kernels:
            kernel.grad = gradient
        return loss

    def _turn(self, kernel: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            # nobody but AdamW's `load_state_dict` asks for the step
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(kernel))
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"]).flatten(1)
        scale = 0.2 * max(ahead.shape) ** 0.5
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(orthogonalized(ahead).view_as(kernel), alpha=-group["lr"] * scale)


def mark_outputs(net: nn.Module, classes: int) -> None:
    """Have `Muon` leave the convolutions that give the logits, known by their ``classes`` channels, to AdamW."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if getattr(module, "out_channels", None) == classes and isinstance(weight, Tensor):
            weight.gives_logits = True  # type: ignore[attr-defined]  # read below


def _gradient_of_kernel(weight: Tensor) -> Tensor | None:
    """None for what is no matrix, or too small a one, or gives logits, or was not trained in this step."""
    if getattr(weight, "gives_logits", False):
        return None
    if weight.ndim < 2 or min(len(weight), weight[0].numel()) < _SMALLEST_RANK:
        return None
    return weight.grad
