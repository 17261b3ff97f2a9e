"""What a training step does on a GPU, counted where PyTorch dispatches it (device.py), without a GPU.

    python tests/fakecuda/count.py [--C 512] [--batch 50] [--frames 300] [--amp off]

Every operation but views counts as one call, which reads its inputs and writes its outputs once; what libraries do
inside (a batch norm's second pass, a convolution's bias) is not seen. Times are those of the bytes or the products,
whichever take longer, on an H200 without a lost moment: what the hardware allows, not what is measured.
"""

import argparse
import bisect
import collections
import contextlib
import copy
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = map(str, Path(__file__).parents[1:3])
from fakecuda.device import FakeGPU  # isort: skip, before torch

import torch
import triton
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from triton.backends.compiler import GPUTarget

import trainSpeakerNet
from loss import AAMsoftmax
from model import ECAPA_TDNN, LogMel, SpecAugment, SqueezeExcitation
from training.run import SpeakerNet, make_optimizer

LAST = torch.channels_last
BYTES_PER_SECOND, PRODUCTS_PER_SECOND = 4.0e12, 790e12  # of an H200 as measured: memory, bf16
STAGES = {
    "front end": [(LogMel, "forward"), (SpecAugment, "forward")],
    "squeeze-excitation": [(SqueezeExcitation, "forward")],
    "pooling": [(ECAPA_TDNN, "pool")],
    "loss": [(AAMsoftmax, "forward")],
    "clipping, optimizer": [(torch.nn.utils, "clip_grad_norm_"), (torch.optim.Adam, "step")],
}
KINDS = {"conv": "convolutions", "mm": "convolutions", "batch_norm": "batch norm", "relu": "ReLU",
         "threshold": "ReLU", "cat": "joins and copies", "clone": "joins and copies", "_to_copy": "casts"}  # fmt: skip


class Counts(collections.Counter):
    """Of a step or a part of it: calls, bytes, flop, seconds, turned.

    turned: bytes that cuDNN moves to bring the tensors of a convolution into channels-last memory and back.
    """

    def summary(self, batch):
        """The same of a step, in ms, and of one of its crops, in MB and GFLOP."""
        per_crop = {"GFLOP": self["flop"] / 1e9, "MB": self["bytes"] / 1e6, "turned MB": self["turned"] / 1e6}
        per_crop = {name: value / batch for name, value in per_crop.items()}
        return {"calls": self["calls"], **per_crop, "ms": 1e3 * self["seconds"]}


def seconds_of(size, flop):
    return max(size / BYTES_PER_SECOND, flop / PRODUCTS_PER_SECOND)


class Counter(TorchDispatchMode):
    """``parts``: {part of the step: Counts}, of all operations but views and allocations."""

    def __init__(self):
        super().__init__()
        self.parts = collections.defaultdict(Counts)
        self.stage, self.began = [None], [(0, None)]  # stages that began with this autograd sequence number

    @contextlib.contextmanager
    def stages(self):
        """Operations are counted for the stage that computes them or, backward, whose gradient they compute."""
        with contextlib.ExitStack() as stack:
            for stage, functions in STAGES.items():
                for owner, name in functions:
                    stack.enter_context(mock.patch.object(owner, name, self.within(stage)(getattr(owner, name))))
            yield

    @contextlib.contextmanager
    def within(self, stage):
        self.enter([*self.stage, stage])
        try:
            yield
        finally:
            self.enter(self.stage[:-1])

    def enter(self, stage):
        self.stage = stage
        self.began.append((torch._C._autograd._get_sequence_nr(), stage[-1]))

    def part(self, name):
        node = torch._C._current_autograd_node()
        stage = self.stage[-1]
        if node is not None:
            at = bisect.bisect_right(self.began, node._sequence_nr(), key=lambda each: each[0])
            stage = self.began[at - 1][1]
        return stage or next((part for kind, part in KINDS.items() if kind in name), "sums and rest")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func._schema.name.split("::")[1]
        read, written = on_gpu((args, kwargs)), on_gpu(result)
        if not (read or written) or func.is_view or "empty" in name or name in ("_unsafe_view", "device"):
            return result
        changed = on_gpu([each for each, given in zip(args, func._schema.arguments) if given.is_write])
        read = on_gpu(args[1:]) if changed and name in ("copy_", "fill_", "zero_") else read
        formula = flop_registry.get(func._overloadpacket)
        part = self.parts[self.part(name)]
        size = bytes_of(*read, *(changed or written))
        flop = formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        part.update(calls=1, bytes=size, flop=flop, seconds=seconds_of(size, flop))
        if "convolution" in name:  # of more than one frame
            long = [each for each in (*read, *written) if each.shape[-1] > 1]
            part["turned"] += 2 * bytes_of(*(each for each in long if not each.is_contiguous(memory_format=LAST)))
        return result


def on_gpu(tree):
    return [each for each in tree_leaves(tree) if isinstance(each, torch.Tensor) and each.is_cuda]


def bytes_of(*tensors):
    """Those that differ: an expanded axis is read once."""
    strided = [(each, zip(each.shape, each.stride())) for each in tensors]
    return sum(each.element_size() * math.prod(size for size, stride in axes if stride) for each, axes in strided)


def count(network, batch=400, frames=200, amp="bf16"):
    """Counts of a step of a SpeakerNet from the CPU, after a first one; batch: crops, frames: of each."""
    args = SimpleNamespace(batch_size=batch, accumulate=1, clip=0.0, amp=amp, optimizer="adam", lr=0.1, weight_decay=0)
    waveform, label = torch.zeros(batch, frames * 160 + 240, dtype=torch.int16), torch.zeros(batch, dtype=torch.int64)
    kept, counter = {}, Counter()

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def augmentation(waveform, label, epoch, step, first):
        return waveform.float(), label, torch.rand(len(label), 4, device="cuda")

    with FakeGPU() as gpu:
        network = network.train().to("cuda")
        optimizer = make_optimizer(args, network.parameters(), torch.device("cuda"))

        def step():
            trainSpeakerNet.train_step(args, network, optimizer, augmentation, (1, 0), waveform, label, 0.1, 0.2)

        step()  # makes the optimizer's state
        gpu.waits.clear()
        with counter, counter.stages(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        weights = {each.untyped_storage()._cdata for each in network.state_dict(keep_vars=True).values()}
        memory = sum(each.untyped_storage().nbytes() for key, each in kept.items() if key not in weights)
    parts = {name: part.summary(batch) for name, part in counter.parts.items()}
    total = {name: sum(part[name] for part in parts.values()) for name in Counts().summary(1)}
    return {**total, "kept MB": memory / batch / 1e6, "waits": gpu.waits, "parts": parts}


def count_compiled(network, batch=400, frames=200, amp="bf16"):
    """Counts of the kernels that torch.compile generates for the same SpeakerNet, forward and backward; takes 30 s."""
    kernel = re.compile(r"^ +(?:buf\d+ = )?(\w+\.run|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", re.M)
    total, counter = Counts(), Counter()

    def generate(graph):
        """In place of compiling and loading the generated code: what runs are the operations it was made from."""
        calls = len(kernel.findall(graph.codegen()[0].value))
        size = sum(node.get_read_write_buffers_sizes() for node in graph.scheduler.nodes)
        total.update(calls=calls, bytes=size, seconds=size / BYTES_PER_SECOND)
        return SimpleNamespace(call=lambda inputs: run(graph.module, *inputs), __file__=None)

    def run(module, *inputs):
        with counter:
            return torch.fx.Interpreter(module).run(*inputs)

    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    # Folding and padding would compute on the device.
    settings = {"force_disable_caches": True, "joint_graph_constant_folding": False, "shape_padding": False}
    with FakeGPU() as gpu:
        network, waveform = network.train().to("cuda"), torch.rand(batch, frames * 160 + 240, device="cuda")
        label, masks = torch.zeros(batch, dtype=torch.int64, device="cuda"), torch.rand(batch, 4, device="cuda")
        margin = torch.tensor(0.2, device="cuda")
    with gpu.mode, mock.patch.object(GraphLowering, "_compile_to_module", generate), config.patch(settings):
        with torch.autocast("cuda", torch.bfloat16, enabled=amp == "bf16"):
            loss, _ = torch.compile(network)(waveform, label, masks, margin)
        loss.backward()
    products = counter.parts["convolutions"]  # may take longer than their bytes
    del products["calls"]
    products["seconds"] -= products.pop("bytes") / BYTES_PER_SECOND
    total.update(products)
    return total.summary(batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--C", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--amp", default="bf16", choices=["bf16", "off"])
    parser.add_argument("--compile", action="store_true", help="also count the kernels of torch.compile")
    args = parser.parse_args()
    network, sizes = SpeakerNet(ECAPA_TDNN(C=args.C), AAMsoftmax(5994)), (args.batch, args.frames, args.amp)
    found = count(copy.deepcopy(network), *sizes)
    print(f"C={args.C}, {args.batch} crops of {args.frames} frames, amp {args.amp}; MB and GFLOP a crop, ms a step\n")
    print("| part, forward + backward | calls | GFLOP | MB | turned MB | ms |\n|---|---|---|---|---|---|")
    rows = {**found["parts"], "**all**": found}
    if args.compile:
        rows["**compiled, without the optimizer**"] = count_compiled(network, *sizes)
    for name, row in rows.items():
        numbers = f"{row['GFLOP']:.2f}", f"{row['MB']:.1f}", f"{row['turned MB']:.1f}", f"{row['ms']:.2f}"
        print(f"| {' | '.join([name, str(row['calls']), *numbers])} |")
    print(f"\nkept for the gradient: {found['kept MB']:.1f} MB a crop; waits for the GPU: {', '.join(found['waits'])}")


if __name__ == "__main__":
    main()
