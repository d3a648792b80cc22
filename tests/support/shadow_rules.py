"""What CUDA asks of an operation, by its name, and the account of what happened; see `support.shadow_cuda`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


READS = words("_local_scalar_dense item equal is_nonzero")
SIZES = words(
    "nonzero nonzero_numpy argwhere masked_select bincount repeat_interleave _unique _unique2 unique_dim "
    "unique_consecutive"
)
INDEXING = words("index index_put index_put_ _index_put_impl_ _unsafe_index")
WHOLLY = words("cat stack gather scatter scatter_ scatter_add scatter_add_ index_select index_add_ mm bmm embedding")
"""What takes no number from the host either."""
COPIES = words("clone copy_ _to_copy contiguous")
UNREPEATABLE = words(
    "avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
    "max_pool3d_with_indices_backward adaptive_max_pool2d_backward fractional_max_pool3d_backward "
    "upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward "
    "upsample_trilinear3d_backward reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward "
    "grid_sampler_2d_backward grid_sampler_3d_backward nll_loss2d_forward histc kthvalue median put_ cumsum "
    "max_unpool3d replication_pad1d_backward"
)
"""What `torch.use_deterministic_algorithms` says it refuses on CUDA."""

LOWERED = words(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul __matmul__ __rmatmul__ mm "
    "bmm addmm baddbmm einsum prelu scaled_dot_product_attention"
)
RAISED = words(
    "softmax log_softmax layer_norm group_norm exp log pow sum cumsum prod norm softplus mse_loss nll_loss "
    "cross_entropy binary_cross_entropy_with_logits"
)
"""What autocast computes in 16 bits, and in float32."""


class MixedDevicesError(RuntimeError):
    """Operands on two devices."""


@dataclass
class Ledger:
    """What happened, by (kind, operation, line)."""

    waits: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    unrepeatable: Counter[str] = field(default_factory=Counter)
    copied_bytes: int = 0
    pinned: bool = False

    def clear(self) -> None:
        """Begin anew."""
        self.waits.clear()
        self.unrepeatable.clear()
        self.copied_bytes = 0

    def total(self, *kinds: str) -> int:
        """Waits of some kinds, of all where none is named."""
        return sum(times for (kind, *_), times in self.waits.items() if kind in (kinds or (kind,)))

    def by_file(self) -> Counter[str]:
        """Waits of each file."""
        found: Counter[str] = Counter()
        for (_, _, place), times in self.waits.items():
            found[place.rpartition(":")[0]] += times
        return found

    def __str__(self) -> str:
        return "\n".join(f"{times} x {' '.join(wait)}" for wait, times in sorted(self.waits.items()))


LEDGER = Ledger()
"""Of the shadow that is there."""


def line() -> str:
    """Where in medseg, or else in whoever is neither torch nor this file, something is done."""
    frame, other = sys._getframe(1), ""
    while frame := frame.f_back:  # type: ignore[assignment]
        file = frame.f_code.co_filename
        _, found, inner = file.rpartition(f"{os.sep}medseg{os.sep}")
        if found and "site-packages" not in file and not (other and inner.startswith("cli")):
            return f"{inner}:{frame.f_lineno}"
        if (
            not other
            and f"{os.sep}torch{os.sep}" not in file
            and "support" + os.sep + "shadow_" not in file
            and "<" not in file
        ):
            other = f"{'/'.join(file.split(os.sep)[-2:])}:{frame.f_lineno}"
    return other


def wait(kind: str, operation: str) -> None:
    LEDGER.waits[kind, operation, line()] += 1
