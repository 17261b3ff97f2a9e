"""Several processes as one: what torchrun starts, one process per GPU, trains as a single process would.

Every process runs the whole script on its rows of each batch; what must be the same everywhere is agreed on here. Each
function does nothing special where there is one process only, so the script reads as if there were.
"""

import contextlib
import datetime
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce  # one that gradients go through

from tools import InputError, RunError, gather, rank, size


def in_words():
    """How many processes there are, to be put behind a device's name; nothing if there is one."""
    return f" x {size()} processes" if size() > 1 else ""


def own_device(name):
    """The --device of this process: of several, each takes its own GPU ("auto", "cuda"), or all share the CPU."""
    if size() == 1 or name == "cpu":
        return name
    if name not in ("auto", "cuda"):
        raise InputError(f"--device {name} is one device for {size()} processes: leave it out, each takes its own GPU")
    if not torch.cuda.is_available():
        return "cpu" if name == "auto" else name
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
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    except ValueError as error:  # the environment says how many, and not where
        raise InputError(f"WORLD_SIZE is {size()}: start with torchrun, or unset it ({error})") from error
    try:
        with contextlib.redirect_stdout(open(os.devnull, "w")) if rank() else contextlib.nullcontext():
            yield
        dist.destroy_process_group()  # not after an error: it would wait for the others
    except RuntimeError as error:
        # NCCL has a class for it; what gloo says begins with the place in its source.
        if isinstance(error, RunError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"process {rank()} lost the others; most likely one of them has ended ({reason})") from error


@contextlib.contextmanager
def first_complains():
    """What the other processes write to the standard error in here is dropped: it would be the same."""
    with contextlib.redirect_stderr(open(os.devnull, "w")) if rank() else contextlib.nullcontext():
        yield


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
        if rank() != failed[0]:
            time.sleep(1)  # torchrun ends all when the first one goes: let that be the one that speaks
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


def check_same(thing, mend):
    """InputError unless all processes have the same."""
    if any(each != thing for each in gather(thing)):
        raise InputError(f"the processes of this run disagree: {mend}")


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
    # No broadcasting: running statistics are linear in the batches, so it is enough to average them once, when they are
    # needed (mean_statistics).
    return nn.parallel.DistributedDataParallel(
        network, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def mean_statistics(network):
    """Average the running statistics of batch norm over the processes, each of which saw other rows."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(mean(module.running_mean))
            module.running_var.copy_(mean(module.running_var))


def synchronise_batch_norm(network, device):
    """Let the statistics of batch norm be those of the whole batch, over all processes; weights and keys stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = SyncedBatchNorm


class SyncedBatchNorm(nn.BatchNorm1d):
    """What nn.SyncBatchNorm, which is for GPUs only, does elsewhere: equal parts of a batch normalised as one."""

    def forward(self, x):
        """(B, C) or (B, C, T) -> the same."""
        if not self.training or size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            axes = [0, *range(2, x.dim())]
            wide = x.float()
            var, mean = torch.var_mean(wide, axes, unbiased=False)
            # Each process fills its own place: one sum over all of them hands round every pair.
            own, others = torch.stack([mean, var]), torch.zeros(2, len(mean), device=x.device)
            pairs = torch.stack([own if each == rank() else others for each in range(size())])
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
