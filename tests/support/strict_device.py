"""An accelerator without one: tensors with real values that call themselves ``meta`` and refuse to meet the CPU's.

What a GPU allows is allowed: copies, numbers (tensors without dimensions) from the CPU, indices from the CPU.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class StrictTensor(torch.Tensor):
    """A tensor on the strict device; ``values`` are kept on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        described = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, device=DEVICE, **described)

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def numpy(self, **_):
        raise TypeError("a tensor on the strict device cannot become an array: copy it to the CPU first")

    is_meta = property(lambda self: False)  # it has values: PyTorch need not warn that a copy is lost

    def __array__(self, *_):
        return self.numpy()

    def new_tensor(self, data, *, dtype=None, device=DEVICE):
        return torch.as_tensor(data, dtype=dtype or self.dtype).to(device)

    def tolist(self):
        return self.values.detach().tolist()

    def data_ptr(self):
        return self.values.data_ptr()

    def __deepcopy__(self, memo):
        copied = StrictTensor(self.values.detach().clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    def __reduce_ex__(self, protocol):
        return self.values.detach().__reduce_ex__(protocol)  # a file is read to the CPU


class StrictDevice(TorchDispatchMode):
    """While entered, tensors asked for on ``meta`` are made strict."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    strict = [x for x in tensors if isinstance(x, StrictTensor)]
    device = kwargs.get("device")
    device = None if device is None else torch.device(device)
    if any(type(x) is torch.Tensor and x.is_meta for x in tensors):
        raise RuntimeError(f"{func}: a tensor on meta that no mode has seen: it has no values")
    if strict:
        _refuse_mixing(func, args, tensors)
    generator = kwargs.get("generator")
    drawn_there = device == DEVICE if device is not None else bool(strict)
    if generator is not None and drawn_there:
        raise RuntimeError(f"{func}: a generator of the CPU cannot draw on the strict device")
    if device == DEVICE:
        kwargs = kwargs | {"device": torch.device("cpu")}
    known = {id(x.values): x for x in strict}
    args, kwargs = tree_map(lambda x: x.values if isinstance(x, StrictTensor) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if func is _aten.copy_.default:
        there = id(args[0]) in known
    else:
        there = device == DEVICE if device is not None else bool(strict)
    if not there:
        return result

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known.get(id(x)) if id(x) in known else StrictTensor(x)

    return tree_map(wrap, result)


def _refuse_mixing(func, args, tensors):
    if func in _COPIES:
        return
    if func in _INDEXED:
        # the tensor and what is put into it; indices may come from the CPU, but not go there
        wrong = any(not isinstance(x, StrictTensor) for x in (args[0], *args[2:3]) if _array(x))
    else:
        wrong = any(not isinstance(x, StrictTensor) for x in tensors if _array(x))
    if wrong:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, found strict ones beside others on the CPU"
        )


def _array(x):
    return isinstance(x, torch.Tensor) and x.dim() > 0


@contextlib.contextmanager
def strict_device(monkeypatch):
    """Enter the mode; autocast, which does not know ``meta``, is the CPU's there, and MONAI makes no MetaTensors."""

    def of_the_cpu(function):
        return lambda device="cpu", *args, **kwargs: function("cpu" if device == "meta" else device, *args, **kwargs)

    def made_here(function):  # PyTorch makes these without asking a mode, and leaves the values out
        def make(data, *args, device=None, **kwargs):
            made = function(data, *args, **kwargs)
            return made if device is None else made.to(device)

        return make

    with monkeypatch.context() as patch, StrictDevice():
        for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
            patch.setattr(torch, name, of_the_cpu(getattr(torch, name)))
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, made_here(getattr(torch, name)))
        patch.setattr("monai.transforms.post.array.get_track_meta", lambda: False)
        yield DEVICE
