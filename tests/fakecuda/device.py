"""A CUDA device on a machine without one: inside ``FakeGPU()``, CPU tensors are real and CUDA tensors are fake.

PyTorch's fake tensors have a shape, a type, a device and strides, but no values. Autograd, autocast and the choice of
operations are those for a GPU, and so are the errors where tensors lie on different devices. Import this before torch.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
OURS = {ROOT, *(ROOT / folder for folder in ("corpora", "inference", "evaluation", "training"))}
assert "torch" not in sys.modules, "the shim must be loaded before torch"
with tempfile.TemporaryDirectory() as folder:
    library = f"{folder}/libcuda.so.1"
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library,
                    Path(__file__).with_name("shim.cpp")], check=True)  # fmt: skip
    ctypes.CDLL(library, os.RTLD_GLOBAL)

import torch  # noqa: E402
from torch._subclasses import fake_tensor  # noqa: E402
from torch._subclasses.fake_impls import register_op_impl  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, total_memory=143771 * 2**20, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, L2_cache_size=60 * 2**20,
)  # fmt: skip


def memory_format(x, weight, backend):
    """That of a convolution's output, as cuDNN's in aten/src/ATen/native/ConvUtils.h."""
    last = torch.channels_last
    return last if any(torch._prims_common.suggest_memory_format(each) == last for each in (x, weight)) else None


def made_up(tensor):
    """Random values in the shape of a fake tensor, on the CPU."""
    with torch._C._DisableTorchDispatch():
        values = torch.rand(tensor.shape)
        return (values if tensor.is_floating_point() else values.ceil()).to(tensor.dtype)


@register_op_impl([torch.ops.aten._fused_sgd_.default, torch.ops.aten._fused_sgd_.tensor_lr])
def fused_sgd(mode, func, *args, **kwargs):
    """PyTorch has this for Adam only."""


torch.cuda._lazy_init = lambda: None
torch.cuda.Stream = torch.cuda.current_stream = lambda device=None: SimpleNamespace(wait_stream=lambda other: None)
torch.cuda.stream = lambda stream: contextlib.nullcontext()
torch.cuda.get_device_properties = lambda device=None: H200
torch.cuda.empty_cache = torch.cuda.reset_peak_memory_stats = lambda device=None: None
torch.cuda.max_memory_reserved = lambda device=None: 2**30
torch.cuda.get_rng_state = lambda device="cuda": torch.zeros(16, dtype=torch.uint8)
torch.cuda.set_rng_state = lambda state, device="cuda": None
torch.utils.swap_tensors = lambda old, new: None  # Module.to(device) does this with fake parameters that are there
torch._C._select_conv_backend = lambda *_, **__: torch._C._ConvBackend.Cudnn
torch._C._conv_determine_backend_memory_format = memory_format
fake_tensor.init_gpu_context = lambda device: None
FakeTensorMode.avoid_device_init = True  # torch.tensor(..., device="cuda") is made on the CPU and copied
_foreach_utils._foreach_supported_types.append(FakeTensor)  # else gradients are clipped one by one
FakeTensor.__reduce_ex__ = lambda self, protocol: made_up(self).__reduce_ex__(protocol)  # for torch.save


class FakeGPU(TorchDispatchMode):
    """``waits``: the operations so far for which the CPU waited for the GPU, and where, of our own functions.

    Values that the CPU asks for are random, and conditions have the value ``truth``. Operations whose shape depends on
    values (nonzero) are errors.
    """

    def __init__(self, truth=True):
        super().__init__()
        self.truth, self.waits, self.pinned = truth, [], set()
        self.mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)

    def __enter__(self):
        self.mode.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.mode.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose():
            with self:  # outside of inference mode this has been done before
                return func.decompose(*args, **kwargs)
        if name == "is_pinned":
            return self.is_pinned(args[0])
        if name == "_local_scalar_dense" and args[0].is_cuda:
            self.wait(name)
            return self.truth if args[0].dtype == torch.bool else 0.5 if args[0].is_floating_point() else 1
        if name in ("_to_copy", "copy_"):
            to, source = (args[0].device, args[1]) if name == "copy_" else (kwargs.get("device"), args[0])
            in_background = args[2:] == (True,) or kwargs.get("non_blocking")
            if to and to.type != source.device.type and not (in_background and self.is_pinned(source)):
                self.wait(name)
                source = made_up(source) if source.is_cuda else source
            args = (args[0], source, *args[2:]) if name == "copy_" else (source,)
        device = kwargs.get("device")
        fake = any(isinstance(each, FakeTensor) for each in tree_leaves((args, kwargs)))
        if fake or (device and device.type == "cuda"):
            return func(*args, **kwargs)
        pin = kwargs.pop("pin_memory", None) or name == "_pin_memory"
        with torch._C._DisableTorchDispatch():
            result = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        if pin:
            self.pinned.add(StorageWeakRef(result.untyped_storage()))
        return result

    def is_pinned(self, tensor):
        return StorageWeakRef(tensor.untyped_storage()) in self.pinned

    def wait(self, name):
        frames = [(Path(frame.f_code.co_filename), line, frame) for frame, line in traceback.walk_stack(None)]
        where = [f"{each.f_code.co_name} ({file.name}:{line})" for file, line, each in frames if file.parent in OURS]
        self.waits.append(" < ".join([name, *where]))
        if torch.cuda.get_sync_debug_mode():
            at = next((str(file), line) for file, line, each in frames if file.parent in OURS)
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, *at)
