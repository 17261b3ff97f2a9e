"""What a training step does on a GPU, counted where PyTorch dispatches it (device.py), without a GPU.

    python tests/fakecuda/count.py [--C 512] [--batch 50] [--frames 300] [--amp off]

Every operation but views counts as one call, which reads its inputs and writes its outputs once; what libraries do
inside (the passes of a batch norm, a convolution's bias, copies to another memory format) is not seen.
"""

import argparse
import bisect
import collections
import contextlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = map(str, Path(__file__).parents[1:3])
from fakecuda.device import FakeGPU  # isort: skip, before torch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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


class Counter(TorchDispatchMode):
    """``parts``: {part of the step: {"calls", "bytes", "flop", "seconds", "turned"}}, of all but views and allocations.

    turned: bytes that cuDNN moves to bring the tensors of a convolution into channels-last memory and back.
    """

    def __init__(self):
        super().__init__()
        self.parts = collections.defaultdict(collections.Counter)
        self.stage, self.began = [None], [(0, None)]  # stages that began with this autograd sequence number

    @contextlib.contextmanager
    def stages(self):
        """Operations are counted for the stage that computes them or, backward, whose gradient they compute."""
        with contextlib.ExitStack() as stack:
            for stage, functions in STAGES.items():
                for owner, name in functions:
                    stack.enter_context(mock.patch.object(owner, name, self.within(stage, getattr(owner, name))))
            yield

    def within(self, stage, function):
        def wrapped(*args, **kwargs):
            self.enter([*self.stage, stage])
            try:
                return function(*args, **kwargs)
            finally:
                self.enter(self.stage[:-1])

        return wrapped

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
        part.update(calls=1, bytes=size, flop=flop, seconds=max(size / BYTES_PER_SECOND, flop / PRODUCTS_PER_SECOND))
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
    total = sum(counter.parts.values(), collections.Counter())
    per_crop = {"MB": total["bytes"], "turned MB": total["turned"], "kept MB": memory, "GFLOP": total["flop"] / 1000}
    per_crop = {name: value / batch / 1e6 for name, value in per_crop.items()}
    whole = {"calls": total["calls"], "ms": 1e3 * total["seconds"], **per_crop}
    return {"parts": counter.parts, "waits": gpu.waits, **whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--C", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--n_class", type=int, default=5994)
    parser.add_argument("--amp", default="bf16", choices=["bf16", "off"])
    args = parser.parse_args()
    found = count(SpeakerNet(ECAPA_TDNN(C=args.C), AAMsoftmax(args.n_class)), args.batch, args.frames, args.amp)
    print(f"C={args.C}, {args.batch} crops of {args.frames} frames, amp {args.amp}; MB and GFLOP a crop, ms a step\n")
    row = "| {:22} | {:>6} | {:>7} | {:>6} | {:>6} |"
    print(row.format("part, forward + backward", "calls", "GFLOP", "MB", "ms"))
    print("|---|---|---|---|---|")
    for name, part in [*found["parts"].items(), ("**all**", sum(found["parts"].values(), collections.Counter()))]:
        per_crop = f"{part['flop'] / args.batch / 1e9:.2f}", f"{part['bytes'] / args.batch / 1e6:.1f}"
        print(row.format(name, part["calls"], *per_crop, f"{1e3 * part['seconds']:.2f}"))
    print(f"\nturned to channels-last and back: {found['turned MB']:.1f} MB a crop; "
          f"kept for the gradient: {found['kept MB']:.1f} MB a crop; waits for the GPU: {found['waits']}")


if __name__ == "__main__":
    main()
