"""Several processes, started by torchrun, one per GPU, that train as one process would.

Every process runs the whole script on its rows of each batch. Each function does nothing special where there is one
process only, so that the script reads as if there were.
"""

import contextlib
import datetime
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn

from tools import InputError, RunError, gather, rank, size


def own_device(name):
    """The --device of this process: of several, each takes its own GPU ("auto", "cuda"), or all share the CPU."""
    if size() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name if size() == 1 else "cpu"
    if name not in ("auto", "cuda"):
        raise InputError(f"--device {name} is one device for {size()} processes: remove it, each takes its own GPU")
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= gpus:
        raise InputError(f"--nproc_per_node is more than the {gpus} GPUs of this machine")
    torch.cuda.set_device(local)  # else each process would hold memory on the first GPU, too
    return f"cuda:{local}"


@contextlib.contextmanager
def connected():
    """Connect the processes. As long as this lasts, only the first prints to the standard output."""
    if size() == 1:
        yield
        return
    # What only the CPU needs to know goes over gloo, past the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        with contextlib.redirect_stdout(open(os.devnull, "w")) if rank() else contextlib.nullcontext():
            yield
        dist.destroy_process_group()  # not after an error: it would wait for the others
    except RuntimeError as error:
        # NCCL has a class for it; what gloo says begins with the place in its source.
        if isinstance(error, RunError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RunError(f"process {rank()} lost the others; one of them has probably ended") from error


def first(function, *args):
    """function(*args) in the first process only; the others wait for it."""
    if rank() == 0:
        function(*args)
    gather(None)


def check_same(thing, fix):
    """InputError unless all processes have the same."""
    if any(each != thing for each in gather(thing)):
        raise InputError(f"the processes of this run disagree: {fix}")


def any_rank(flag):
    """Whether the flag is set in any process; called by all of them at the same place."""
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


def check(args, device, utterances):
    """InputError for a --batch_size, --accumulate or --sync_bn that is not possible here, or weeks on a CPU unasked."""
    micro_batches(args.batch_size, args.accumulate)
    if args.sync_bn and device.type != "cuda":
        raise InputError("--sync_bn needs CUDA GPUs: without it, batch norm sees the rows of each process")
    if utterances >= 100_000 and device.type == "cpu" and "device" not in args.given:
        found = f"PyTorch {torch.__version__} finds no GPU (is its driver new enough? docs/training.md#several-gpus)"
        raise InputError(f"{found}, and {utterances:,} utterances take weeks on a CPU: --device cpu if that is meant")


def micro_batches(batch_size, accumulate):
    """Where this process's parts of each batch start, and how many rows they have: ([first row, ...], rows).

    A batch is cut in accumulate * processes equal parts, dealt out to the processes in turn, so that the batch is the
    same whatever their number.
    """
    parts = accumulate * size()
    if batch_size % parts or batch_size // parts < 2:
        why = f"--accumulate {accumulate} x {size()} process{'es' * (size() > 1)}"
        fix = f"try --batch_size {max(2, round(batch_size / parts)) * parts}"
        raise InputError(f"--batch_size {batch_size} cannot be cut in {parts} equal parts of at least 2 ({why}): {fix}")
    rows = batch_size // parts
    return [(part * size() + rank()) * rows for part in range(accumulate)], rows


def parallel(network, device):
    """The network as one of several, its gradients averaged over the processes."""
    if size() == 1:
        return network
    # No broadcasting: running statistics are linear in the batches, so it is enough to average them when they are
    # needed (average_statistics).
    device_ids = [device.index] if device.type == "cuda" else None
    # Of the weights of 1x1 convolutions, whose gradients have the same order in other words.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(
        network, device_ids=device_ids, broadcast_buffers=False,
        gradient_as_bucket_view=True,  # no copies between gradients and what is sent
    )  # fmt: skip


def average_gradients(network, on):
    """Whether the next backward pass averages gradients over the processes: with --accumulate the last part's does."""
    if size() > 1:
        for module in network.modules():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                module.require_backward_grad_sync = on


def batch_norms(network):
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def average_statistics(network):
    """Average the running statistics of batch norm over the processes, each of which saw other rows."""
    for norm in batch_norms(network):
        norm.running_mean.copy_(mean(norm.running_mean))
        norm.running_var.copy_(mean(norm.running_var))


def reset_broken_statistics(network):
    """Restart running statistics of batch norm that are not finite; with momentum 0.1, 50 steps later they are back."""
    for norm in batch_norms(network):
        if not (norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()):
            norm.reset_running_stats()
