"""Several processes as one: what torchrun starts, one process per GPU, trains as a single process would.

Every process runs the whole script on its rows of each batch; what must be the same everywhere is agreed on here. Each
function does nothing special where there is one process only, so the script reads as if there were.
"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce  # one that gradients go through

from tools import InputError, RunError


def rank():
    """Which of the processes this is: 0, 1, ...; the first is the one that writes and prints."""
    return int(os.environ.get("RANK", 0))


def size():
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def in_words():
    return f" x {size()} processes" if size() > 1 else ""


def own_device(name):
    """The --device of this process: "cuda" or "auto" becomes its own GPU where several processes share a machine."""
    if size() == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise InputError(f"--nproc_per_node is more than the {gpus} GPUs of this machine")
    torch.cuda.set_device(local)  # else each process would hold memory on the first GPU, too
    return f"cuda:{local}"


@contextlib.contextmanager
def connected():
    """Find the other processes. As long as this lasts, only the first prints to the standard output.

    RunError when another process ends in the middle of the work, where this one notices it.
    """
    if size() == 1:
        yield
        return
    # What only the CPU needs to know goes over gloo, past the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        with contextlib.redirect_stdout(open(os.devnull, "w")) if rank() else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        # NCCL has a class for it; what gloo says begins with the place in its source.
        if isinstance(error, RunError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RunError(f"process {rank()}: another process of this run has ended") from error
    finally:
        dist.destroy_process_group()


def gather(thing):
    """[what each process brings], the same list everywhere. Anything that can be pickled."""
    if size() == 1:
        return [thing]
    things = [None] * size()
    dist.all_gather_object(things, thing)
    return things


def together(function, *args):
    """function(*args) in every process; where it fails in one, all end, and one of them says why."""
    result = error = None
    try:
        result = function(*args)
    except (InputError, RunError, OSError) as caught:
        error = caught
    errors = gather(error)
    failed = [which for which, each in enumerate(errors) if each is not None]
    if failed:
        # The others know already, so torchrun has no time to end the one that speaks.
        if rank() != failed[0]:
            raise SystemExit(2 if isinstance(errors[failed[0]], InputError) else 1)
        raise error
    return result


def first(function, *args):
    """function(*args) in the first process only; the others wait for it."""
    together(function if rank() == 0 else lambda *_: None, *args)


def share(function, things, *args):
    """function(things, *args) -> dict, each process taking its share of the things; the whole dict everywhere."""
    if size() == 1:
        return function(things, *args)
    found = gather(together(function, list(dict.fromkeys(things))[rank() :: size()], *args))
    return {key: value for part in found for key, value in part.items()}


def anyone(flag):
    """Whether any process says so; asked by all at the same place."""
    if size() == 1:
        return bool(flag)
    flag = torch.tensor(int(bool(flag)))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def mean(tensor):
    """The mean over the processes of a tensor that each has."""
    if size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor / size()


def share_of_batch(batch_size, accumulate):
    """Where this process's parts of each batch begin, and how many rows they have: ([first row, ...], rows).

    A batch is cut in accumulate * processes equal parts; this process takes one of each run of neighbours. So the
    batch is the same, however many processes and parts there are.
    """
    parts = accumulate * size()
    if batch_size % parts or batch_size // parts < 2:
        cut = f"--accumulate {accumulate} x {size()} process" + "es" * (size() > 1)
        raise InputError(f"--batch_size {batch_size} cannot be cut in equal parts of at least 2 by {cut}")
    rows = batch_size // parts
    return [(part * size() + rank()) * rows for part in range(accumulate)], rows


def parallel(network, device):
    """The network as one of several: its gradients are averaged over the processes."""
    if size() == 1:
        return network
    # Its own gradients it has averaged; running statistics are linear in the batches, so averaging them once, when
    # they are needed, is enough (mean_statistics).
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def mean_statistics(network):
    """Average the running statistics of batch norm over the processes, each of which saw other rows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(mean(module.running_mean))
            module.running_var.copy_(mean(module.running_var))


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the whole batch, over all processes (equal parts each).

    PyTorch's own SyncBatchNorm does the same on GPUs only; this one runs, and is tested, on CPUs too.
    """

    @classmethod
    def convert(cls, network):
        """Make all nn.BatchNorm1d of a network such; weights and keys stay."""
        for module in network.modules():
            if type(module) is nn.BatchNorm1d:
                module.__class__ = cls

    def forward(self, x):
        """(B, C) or (B, C, T) -> the same."""
        if not self.training or size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            axes = [0, *range(2, x.dim())]
            wide = x.float()
            var, mean = torch.var_mean(wide, axes, unbiased=False)
            # Each process fills its own place: one sum over all of them hands round every pair.
            pairs = x.new_zeros(size(), 2, len(mean), dtype=torch.float32)
            pairs = pairs.index_copy(0, torch.tensor([rank()], device=x.device), torch.stack([mean, var])[None])
            means, variances = all_reduce(pairs).unbind(1)
            mean = means.mean(0)
            var = (variances + (means - mean).square()).mean(0)
            self._follow(mean.detach(), var.detach(), size() * wide.numel() // len(mean))
            shape = [1, -1] + [1] * (x.dim() - 2)
            scale = self.weight * (var + self.eps).rsqrt()
            return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean, var, count):
        """Move the running statistics on; theirs is the unbiased variance."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)
        self.num_batches_tracked += 1
