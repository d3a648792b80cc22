"""A CUDA device made of CPU tensors: what CUDA would refuse, and every wait for it, seen on a machine without one.

A `Shadow` says that it lies on ``cuda:0`` and holds a CPU tensor. Whatever is done with it is held to CUDA's rules (one
device for all operands, but a tensor without axes is a number; generators of the device; no `numpy`), then done on the
CPU: every branch for CUDA runs, with values that must be the CPU's. A `Ledger` counts by line of code

* waits: ``read`` (a value on the host), ``size`` (of a result, such as `nonzero`'s) and ``upload`` (pageable memory to
  the device, after which PyTorch waits for its stream);
* operations that have no repeatable form on CUDA;
* bytes that are copied from one tensor of the device into another, which is what a change of layout costs.

It knows no streams, no memory, no kernels of CUDA and no time.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
import torch._dynamo  # it looks at what is replaced below when it is imported
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from medseg.checkpoints import plain
from support.shadow_rules import (
    COPIES,
    INDEXING,
    LEDGER,
    LOWERED,
    RAISED,
    READS,
    SIZES,
    UNREPEATABLE,
    WHOLLY,
    MixedDevicesError,
    wait,
)

CUDA = torch.device("cuda", 0)
_TO_C = torch.device("meta")  # what C++ is told, whose autograd ends a process over a device torch was built without
_SMALL = (torch.bfloat16, torch.float16)


class Shadow(torch.Tensor):
    """A tensor on ``cuda:0`` whose values are those of `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Shadow:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=_TO_C,
        )
        made.host = host
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, new):
        """As a module gives a parameter another layout: the same object, with other strides."""
        torch._C.TensorBase.data.__set__(self, new)
        self.host = new.host

    def get_device(self):
        return CUDA.index

    def tolist(self):
        wait("read", "tolist")
        return self.host.tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __array__(self, dtype=None):
        return self.numpy()

    def __repr__(self, *, tensor_contents=None):
        return f"Shadow({self.host})"

    def __reduce_ex__(self, protocol):
        return Shadow, (self.host,)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = Shadow(self.host.detach().clone()).requires_grad_(self.requires_grad)
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
            )
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatched(func, args, kwargs or {})


def to_host(value: Any) -> Any:
    """Values, wherever they lie, without a wait."""
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, Shadow) else leaf, value)


def _wrapped(value: Any) -> Any:
    return Shadow(value) if isinstance(value, Tensor) and not isinstance(value, Shadow) else value


def _place(device: Any) -> torch.device | None:
    """The device that is meant; what C++ makes beside a shadow lies beside it."""
    found = None if device is None else torch.device(device)
    return CUDA if found is not None and found.type in (_TO_C.type, CUDA.type) else found


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    call = _Call(func, args, kwargs)
    if torch.is_inference_mode_enabled() and call.composite and (call.ours or call.name == "to"):
        return call.in_parts()
    if call.name == "_to_copy" and call.asked is not None and (done := call.moved()) is not None:
        return done
    if call.ours and call.theirs:
        if call.name == "copy_":
            return call.filled()
        call.require_one_device()
    if not call.ours and call.asked != CUDA:
        return func(*args, **kwargs)
    call.note()
    return call.done()


class _Call:
    """One operation that a shadow takes part in, or is to come of."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = func.name().partition(".")[0].removeprefix("aten::")
        self.flat, self.spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in self.flat if isinstance(leaf, Tensor)]
        self.ours = [tensor for tensor in tensors if isinstance(tensor, Shadow)]
        self.theirs = [tensor for tensor in tensors if not isinstance(tensor, Shadow)]
        self.asked = _place(kwargs.get("device"))
        assert not any(tensor.is_meta for tensor in self.theirs), f"{self.name}: a shadow has lost its values"

    @property
    def composite(self) -> bool:
        return self.func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)

    def in_parts(self) -> Any:
        """Under inference mode an operation comes whole that is made of others elsewhere."""
        if self.name != "to":
            return self.func.decompose(*self.args, **self.kwargs)
        named = dict(zip((a.name for a in self.func._schema.arguments), self.args, strict=False)) | self.kwargs
        source, wanted, kind = self.args[0], _place(named.get("device")), named.get("dtype")
        here = CUDA if isinstance(source, Shadow) else source.device
        if wanted in (None, here) and kind in (None, source.dtype) and not named.get("copy"):
            return source
        kept = {name: named[name] for name in ("non_blocking", "memory_format") if named.get(name) is not None}
        options = {"dtype": kind, "device": wanted or here, **kept}
        return _dispatched(torch.ops.aten._to_copy.default, self.args[:1], options)

    def moved(self) -> Any:
        """A copy from one device to the other; None for what stays where it is."""
        source = self.args[0]
        here = {**self.kwargs, "device": torch.device("cpu")}
        if isinstance(source, Shadow) and self.asked != CUDA:
            wait("read", self.name)
            return self.func(source.host, *self.args[1:], **here)
        if not isinstance(source, Shadow) and self.asked == CUDA:
            pinned = LEDGER.pinned or getattr(source, "_pinned", False)
            if not (self.kwargs.get("non_blocking") and pinned):
                wait("upload", self.name)
            return Shadow(self.func(source, *self.args[1:], **here))
        as_it_is = self.kwargs.get("memory_format") in (None, torch.preserve_format)
        if isinstance(source, Shadow) and as_it_is and self.kwargs.get("dtype") in (None, source.dtype):
            return Shadow(source.host.view_as(source.host))  # C++ took cuda:0 for another device than its own
        return None

    def filled(self) -> Tensor:
        """`copy_` over the border."""
        target, source = self.args[:2]
        wait("upload" if isinstance(target, Shadow) else "read", self.name)
        to_host(target).copy_(to_host(source))
        return target

    def require_one_device(self) -> None:
        if self.name in INDEXING:  # indices may come from the host
            strangers = [tensor for tensor in self.theirs if tensor is self.args[0]]
        else:
            strangers = [tensor for tensor in self.theirs if tensor.ndim > 0 or self.name in WHOLLY]
        if strangers:
            raise MixedDevicesError(f"{self.name}: Expected all tensors to be on the same device, found cuda:0 and cpu")

    def note(self) -> None:
        if self.name in READS:
            wait("read", self.name)
        if self.name in SIZES:
            wait("size", self.name)
        if self.name in INDEXING:
            self._note_indices()
        if self.name in UNREPEATABLE and (self.name != "cumsum" or self.ours[0].is_floating_point()):
            LEDGER.unrepeatable[self.name] += 1
        if self.name in COPIES and self.ours:
            LEDGER.copied_bytes += self.ours[0].numel() * self.ours[0].element_size()

    def _note_indices(self) -> None:
        for index in self.args[1]:
            if index is None:
                continue
            if not isinstance(index, Shadow):
                wait("upload", self.name)
            if index.dtype in (torch.bool, torch.uint8) and not (len(self.args) > 2 and self.args[2].numel() == 1):
                wait("size", self.name)

    def done(self) -> Any:
        """The operation on the values."""
        args, kwargs = tree_unflatten([to_host(leaf) for leaf in self.flat], self.spec)
        if self.asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
            kwargs.pop("pin_memory", None)
        try:
            out = self.func(*args, **kwargs)
        except NotImplementedError:  # the CPU has this kernel in float32 alone
            kind = next((tensor.dtype for tensor in self.ours if tensor.dtype in _SMALL), None)
            if kind is None:
                raise
            args, kwargs = _in_dtype((args, kwargs), _SMALL, torch.float32)
            out = _in_dtype(self.func(*args, **kwargs), (torch.float32,), kind)
        if not any(isinstance(leaf, Tensor) for leaf in tree_flatten(out)[0]):
            return out
        out = tree_map(_wrapped, out)
        return return_and_correct_aliasing(self.func, self.args, self.kwargs, out) if self.ours else out


def _in_dtype(value: Any, those: tuple[torch.dtype, ...], wanted: torch.dtype) -> Any:
    return tree_map(lambda v: v.to(wanted) if isinstance(v, Tensor) and v.dtype in those else v, value)


class _Autocast(contextlib.ContextDecorator):
    """`torch.autocast`, of which C++ has none for this device."""

    now: ClassVar[list[torch.dtype | None]] = []

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        self.dtype = (dtype or torch.float16) if enabled and device_type == "cuda" else None

    def __enter__(self):
        self.now.append(self.dtype)
        return self

    def __exit__(self, *reason):
        self.now.pop()


_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


class _AboveAutograd(TorchFunctionMode):
    """What C++ would hide: autocast, what is made on the host and uploaded, and whose a generator is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        wanted = _place(kwargs.get("device")) if "device" in kwargs else None
        generator = kwargs.get("generator")
        if func is torch.Tensor.cuda:
            return args[0].to(CUDA)
        if func is torch.Tensor.pin_memory:
            copied = args[0].clone()
            copied._pinned = True
            return copied
        if func is torch.Tensor.new_tensor and isinstance(args[0], Shadow):
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(CUDA)
        if (
            func in (torch.tensor, torch.as_tensor, torch.asarray)
            and not isinstance(args[0], Tensor)
            and wanted == CUDA
        ):
            return func(*args, **{key: value for key, value in kwargs.items() if key != "device"}).to(CUDA)
        if generator is not None and wanted == CUDA and id(generator) not in _generators:
            raise MixedDevicesError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
        if func is not torch.device:
            args, kwargs = tuple(map(_numbered, args)), {key: _numbered(value) for key, value in kwargs.items()}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Shadow):
            args = (args[0], _as_indices(args[1]), *args[2:])
        args, kwargs = _cast(name, args, kwargs)
        return func(*args, **kwargs)


def _cast(name: str, args: Any, kwargs: Any) -> Any:
    lower = _Autocast.now[-1] if _Autocast.now else None
    if lower is None or name not in LOWERED | RAISED:
        return args, kwargs
    wanted = lower if name in LOWERED else torch.float32
    kinds = (torch.float32, *_SMALL)
    return tree_map(lambda v: v.to(wanted) if isinstance(v, Shadow) and v.dtype in kinds else v, (args, kwargs))


def _numbered(value: Any) -> Any:
    """C++ would ask CUDA which device ``cuda`` is."""
    unnumbered = isinstance(value, torch.device) and value.type == "cuda" and value.index is None
    return CUDA if unnumbered or (isinstance(value, str) and value == "cuda") else value


def _as_indices(where: Any) -> Any:
    """C++ would make tensors of lists on a device of its own."""
    if isinstance(where, tuple):
        return tuple(map(_as_indices, where))
    return torch.tensor(where) if isinstance(where, list) and where and not isinstance(where[0], slice) else where


class _BelowAutograd(TorchDispatchMode):
    """Operations without a shadow that one is to come of."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatched(func, args, kwargs or {})


_Generator = torch.Generator
_generators: dict[int, torch.Generator] = {}


class _AnyGenerator(_Generator):
    """`torch.Generator`, of the shadow too."""

    def __new__(cls, device="cpu"):
        made = _Generator()
        if torch.device(device).type == "cuda":
            _generators[id(made)] = made
        return made


_CARD = SimpleNamespace(name="Shadow", major=9, minor=0, total_memory=140 * 2**30, multi_processor_count=132)
_STREAM = SimpleNamespace(record_event=lambda: None, wait_event=lambda event: None)
_ANSWERS = {
    "_lazy_init": None,
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_capability": (9, 0),
    "get_device_properties": _CARD,
    "get_device_name": _CARD.name,
    "is_bf16_supported": True,
    "max_memory_allocated": 0,
    "Stream": _STREAM,
    "current_stream": _STREAM,
    "stream": contextlib.nullcontext(),
    "mem_get_info": (_CARD.total_memory, _CARD.total_memory),
    **dict.fromkeys(("set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "set_rng_state")),
}


@contextlib.contextmanager
def shadow_cuda(*, pinned: bool = False):
    """While it lasts, ``cuda`` is there; gives the ledger.

    Args:
        pinned: Take every upload that asks not to block for one from pinned memory, as a loader on CUDA hands it over.
    """
    LEDGER.clear()
    LEDGER.pinned = pinned
    with contextlib.ExitStack() as stack:
        for name, answer in _ANSWERS.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=answer))
        stack.enter_context(
            mock.patch.object(torch.cuda, "get_rng_state", side_effect=lambda *_: torch.get_rng_state())
        )
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", return_value=None))
        stack.enter_context(
            mock.patch.object(plain, "_TENSORS", plain._TENSORS | {f"{Shadow.__module__}.Shadow"})
        )  # it pickles
        stack.enter_context(mock.patch.object(torch, "Generator", _AnyGenerator))
        stack.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_AboveAutograd())
        stack.enter_context(_BelowAutograd())
        yield LEDGER
