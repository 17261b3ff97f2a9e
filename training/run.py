"""A training run: its weights, optimizer and position, written as states to resume from and as models to use."""

import copy
import platform
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataLoader import SPEEDS
from evaluation.backend import make_cohort
from inference.encoder import SpeakerEncoder
from inference.systems import SYSTEMS
from loss import AAMsoftmax
from model import ECAPA_TDNN
from tools import InputError, RunError, load_checkpoint, rank, save_checkpoint, size
from training import distributed
from training.settings import fine_tunes, same_speakers
from training.state import save_state


class SpeakerNet(torch.nn.Module):
    """Encoder and loss as one module, under the names of TaoRuijie's checkpoints."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.speaker_encoder = encoder
        self.speaker_loss = classifier

    def forward(self, waveform, label, masks, margin):
        """(B, samples), (B,) int64, (B, 4) random numbers for SpecAugment, 0-d tensor -> (loss, accuracy in %)."""
        return self.speaker_loss(self.speaker_encoder(waveform, aug=True, masks=masks), label, margin)


def new_encoder(args):
    """An untrained ECAPA-TDNN. ``build_network`` (inference/systems.py) must know its settings from its tensors."""
    return ECAPA_TDNN(C=args.C, keep_spectrum=args.keep_spectrum)


def make_network(args, encoder, device):
    """The SpeakerNet of an encoder and a new classifier for args.n_class speakers."""
    classifier = AAMsoftmax(
        args.n_class * (SPEEDS if args.speed_perturb else 1), m=args.m, s=args.s,
        embedding_size=encoder.embedding_size, continuous=SYSTEMS[args.system].continuous_margin,
        sub_centres=args.sub_centres, top_k=args.top_k,
    )  # fmt: skip
    return SpeakerNet(encoder, classifier).to(device)


OPTIMIZERS = "adam", "adamw", "sgd"


def make_optimizer(args, parameters, device):
    """Adam with an L2 penalty, AdamW (Loshchilov and Hutter, ICLR 2019) or SGD with Nesterov momentum 0.9."""
    # Fused: one pass over all weights instead of a dozen for each tensor.
    settings = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": device.type != "mps"}
    if args.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **settings)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer](parameters, **settings)


def with_amp(args, device):
    """Settings with --amp auto decided: bf16 where the device has arithmetic of it that is faster than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            can = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        can = known.get("amx_bf16") or known.get("avx512_bf16")
    return args.replace(amp="bf16" if can else "off") if args.amp == "auto" else args


class Compiled(torch.nn.Module):
    """A network as torch.compile makes it, with fewer, larger kernels; where the compiler fails, as it is."""

    def __init__(self, network, graphs=False):
        super().__init__()
        self.network = network
        self.compiled = torch.compile(network, mode="reduce-overhead" if graphs else None)
        # So that the compiler fails here or not at all, and not in the first backward pass.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        # Its cache would else return kernels made for another number of threads (pytorch issue 167463).
        torch._inductor.config.cpp.threads = torch.get_num_threads()
        warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")  # of the FFT

    def forward(self, *inputs):
        try:
            return self.compiled(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            inner = getattr(error, "inner_exception", error)
            reason = next((line for line in str(inner).splitlines() if line), type(inner).__name__)
            tqdm.write(f"torch.compile failed, training goes on without it, more slowly: {reason}")
            self.compiled = self.network
            return self.network(*inputs)


def maybe_compile(args, network, device, crops):
    """The network for training, compiled where that earns its minute; crops: of the whole run."""
    # What nn.SyncBatchNorm exchanges in every layer would cut the graph in pieces; nobody has tried Apple's GPU.
    long = crops >= 100_000 and device.type != "mps" and not args.sync_bn
    if args.no_compile or not (long or args.compile):
        return network
    # With few crops a GPU waits for the CPU to launch its kernels: CUDA graphs launch all of them at once. Gradients
    # cannot be accumulated over several: they lie in memory that the next one overwrites (pytorch issue 169545). Nor
    # with several processes, where it is reported broken (140395).
    few = args.batch_size < 100 and args.accumulate == 1 and size() == 1
    return Compiled(network, graphs=few and device.type == "cuda")


class Run:
    """Weights, optimizer and position of a training run; ``epoch`` (1, 2, ...) and ``step`` (0, 1, ...) come next.

    sums: the meter's up to there. Random numbers have no state to keep: they are functions of the position (see
    dataLoader). Of several processes each has its own Run, and the first one writes.
    about: what every file of the run says beside the weights: {"speakers", "valid_speakers", "earlier_speakers",
    "trained_on", "train_list_sha256"}; the third are of the models before it, the fourth of both, by their folders.
    """

    def __init__(self, args, network, about):
        self.args, self.network, self.about = args, network, about
        self.folder, self.device = Path(args.save_path), next(network.parameters()).device
        self.optimizer = make_optimizer(args, network.parameters(), self.device)
        self.epoch, self.step, self.sums = 1, 0, None
        self.saved_at, self.saved_time = None, time.monotonic()
        self.last_is_damaged = False

    # ---- states ------------------------------------------------------------------------------------------------------

    def resume(self, state):
        """Continue from a training state, as ``load_state`` returns it."""
        self.network.load_state_dict(state["weights"])
        # It may have been written on another device.
        state["optimizer"]["param_groups"][0]["fused"] = self.optimizer.param_groups[0]["fused"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
        self.saved_at, self.last_is_damaged = (self.epoch, self.step), state["last_is_damaged"]

    def save_is_due(self):
        return time.monotonic() - self.saved_time >= 60 * self.args.save_minutes

    def save(self, sums):
        """Write all that is needed to continue from (epoch, step) exactly, unless that was done. RunError for NaN."""
        self.sums = sums
        if (self.epoch, self.step) == self.saved_at:
            return
        distributed.average_statistics(self.network)
        if not all(weight.isfinite().all() for weight in self.network.state_dict().values()):
            raise RunError(f"the weights are no longer finite in epoch {self.epoch}: try a smaller --lr; not saved")
        if rank() == 0:
            state = {"epoch": self.epoch, "step": self.step, "sums": sums, "weights": self.network.state_dict()}
            state |= {**self._contents("training state"), "optimizer": self.optimizer.state_dict()}
            save_state(self.folder, state, self.last_is_damaged)
        distributed.any_rank(False)  # none goes on, or ends, before it is written
        self.last_is_damaged, self.saved_at, self.saved_time = False, (self.epoch, self.step), time.monotonic()

    # ---- models ------------------------------------------------------------------------------------------------------

    def networks(self):
        """{"model": the SpeakerNet; "average": the mean of it and others, at the end of training}.

        These are those of the last --average epochs, or in fine-tuning the one that it began with, so that the encoder
        keeps more of what it knew (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
        """
        distributed.average_statistics(self.network)
        networks, last, number = {"model": self.network}, self.args.max_epoch, self.args.average
        others = [self.model_file("model", epoch) for epoch in range(last - number + 1, last)]
        if number == 0 and fine_tunes(self.args):
            others = list(self.folder.glob("model/model_0000.model"))  # runs of earlier versions have none
        if self.epoch == last and self.step > 0 and others:
            networks["average"] = copy.deepcopy(self.network)
            networks["average"].load_state_dict(mean_of_models(others, self.network.state_dict()))
        return networks

    def model_file(self, kind, epoch):
        return self.folder / "model" / f"{kind}_{epoch:04d}.model"

    def save_model(self, kind, network, results, best=False):
        """Write <kind>_<epoch>.model (0000 before the first step) with its results; best: as best.model, too."""
        if rank():
            return
        epoch = self.epoch if self.step else 0
        model = {**self._contents("model"), "epoch": epoch, "weights": network.state_dict(), "scores": results}
        save_checkpoint(self.model_file(kind, epoch), model)
        if best:
            save_checkpoint(self.folder / "model" / "best.model", model)

    def _contents(self, kind):
        return {"kind": kind, "settings": self.args.as_dict(), "versions": versions(), **self.about}


def mean_of_models(paths, last):
    """The mean of the weights in model files and of ``last``, a state dict like theirs. Counts are those of the last.

    Summed in float64 on the CPU. InputError when a file is absent or damaged.
    """
    sums = {key: value.cpu().double() for key, value in last.items() if value.is_floating_point()}
    for path in paths:
        weights = load_checkpoint(path, "model")["weights"]
        for key in sums:
            sums[key] += weights[key]
    return {**last, **{key: (value / (len(paths) + 1)).to(last[key].dtype) for key, value in sums.items()}}


def take_classifier(network, initial, train_list, source, args):
    """Copy a Pretrained model's classifier into a SpeakerNet if it has the same speakers. Returns what was done.

    If it has not, a class vector begins as the mean embedding of the speaker (Qi et al., "Low-shot learning with
    imprinted weights", CVPR 2018), at most 20 utterances of the Folder or Pack ``source``, with a new one's length.

    InputError if it has not and --initial_classifier or --finetune_margin, whose learning rate is too small for a new
    classifier, was asked for.
    """
    theirs, ours = initial.classifier, network.speaker_loss.weight
    if theirs is None:
        reason = "the file has no classifier"
    elif not same_speakers(initial, train_list, args) or theirs[: len(ours)].shape != ours.shape:
        other = "speeds or sub-centres" if same_speakers(initial, train_list, args) else "speakers"
        reason = f"its classifier of {len(theirs)} classes is for other {other}"
    else:
        ours.data.copy_(theirs[: len(ours)])  # the first of speed perturbation's are the speakers at their own speed
        return f"encoder and {len(ours)} of the {len(theirs)} classes of its classifier"
    if args.initial_classifier or args.finetune_margin:
        flag = "--initial_classifier" if args.initial_classifier else "--finetune_margin"
        raise InputError(
            f"{flag} {args.initial_model}: {reason}, {train_list.path} has {len(train_list.speakers)} speakers"
            f"{', and the learning rate is too small for a new one' * args.finetune_margin}; use the --train_list, "
            "--valid_speakers and --n_class of its training"
        )
    encoder = SpeakerEncoder(network.speaker_encoder, ours.device, initial)
    means = torch.from_numpy(make_cohort(encoder, train_list, source, args.n_cpu).vectors).to(ours)
    if len(means) < len(train_list.speakers):  # one has no readable file
        return f"encoder; {reason}: a new one for {args.n_class} speakers"
    speeds = len(ours) // args.n_class
    centres = ours.data.view(speeds, args.n_class, -1, ours.shape[-1])[:, : len(means), 0]
    centres.copy_(F.normalize(means) * centres.norm(dim=-1, keepdim=True))
    return f"encoder; {reason}: a new one of the mean embeddings of {len(means)} speakers"


def describe(network):
    """A network in a few words."""
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    return f"{type(network).__name__}{f' C={network.C}' if hasattr(network, 'C') else ''}, {millions:.1f} M weights"


def versions():
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
        "processes": size(),
    }  # fmt: skip


def git_commit():
    """The commit of this code, with -dirty if files were changed since; None where git does not know it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    if shutil.which("git"):
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None


def provenance(args, lists):
    """What a result rests on but the audio, for settings.json and results.json. lists: {path: SHA-256}."""
    code = {**versions(), "git_commit": git_commit()}
    return {"settings": args.as_dict(), "sha256": lists, "versions": code, "command": sys.argv}
