"""How fast is this machine with this recipe, what holds it back, and how long will VoxCeleb2 take?

    python benchmark.py                                          every stage beside its limit; needs no corpus
    python benchmark.py --train_list LIST --train_path ROOT      the same on a corpus, a folder or a pack of it
    python benchmark.py --baseline --train_list LIST ...         reading and augmentation against the customary loader
    python benchmark.py --embed                                  embedding files alone: one by one, and in batches

A rate is the median of repetitions after a warm-up, its spread their quartiles. The limit of a stage is what this very
device does in a large copy and in a large matrix product, divided by the bytes and the operations that the stage cannot
do without; how far it stays behind is what could be gained. What fits into a cache may pass it.
"""

import argparse
import collections
import contextlib
import itertools
import json
import math
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from augmentation import Augmentation
from corpora.audio import SAMPLE_RATE
from corpora.pack import Pack, PackedFile, write_pack
from dataLoader import CropLoader, to_device
from inference.encoder import SpeakerEncoder, Utterance, choose_device, score_trials
from loss import AAMsoftmax
from model import ECAPA_TDNN, compiled
from tests.studies.customary import compare_with_customary
from tools import (
    InputError,
    RunError,
    check_flags,
    check_writable,
    equal_error_rate,
    keep_memory,
    min_dcf,
    ran_out_of_memory,
    run_command,
    threshold_at,
    write_text,
)
from training.run import SpeakerNet
from training.settings import take_step
from trainSpeakerNet import multiplies_bf16, open_training_list

VOXCELEB2 = SimpleNamespace(utterances=1_092_009, speakers=5_994, epochs=80)  # its development part; the recipe
# Trials and utterances of the lists most evaluated on, and the length of the vectors that are compared.
TRIALS = {"Vox1-O cleaned": (37_611, 4_708), "Vox1-E cleaned": (579_818, 145_160)}
VECTOR = 2 * 192
PARTS = ("augment", "features", "forward + backward", "optimizer")  # of a step
EMBEDDED_SECONDS = {"cpu": 128}  # of audio that is embedded, on other devices 8192: many batches
UTTERANCE_SECONDS = 8  # the mean of VoxCeleb2 dev: 2,360 hours / 1,092,009


# ---- settings --------------------------------------------------------------------------------------------------------


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [flags]", allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=120),
    )  # fmt: skip
    # fmt: off
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data", choices=["synthetic", "corpus"], help="made-up audio, the default without --train_list, or a corpus")
    add("--synthetic_gb", type=float, default=0.2, help="size of the made-up audio; more than the memory, and the disk "
                                                        "is measured too (0.2)")
    add("--train_list", default="", help="training list, lines <speaker> <path>")
    add("--train_path", default="", help="folder that its paths start from, or a pack of it")
    add("--paths_anywhere", action="store_true", help="its paths may be absolute, or leave that folder by ..")
    add("--musan_path", default="", help="MUSAN, folder or pack; '' for none")
    add("--rir_path", default="", help="room responses, folder or pack; '' for none")
    add("--bank_mb", type=float, default=512, help="memory for noises and responses, MB (512)")
    group = parser.add_argument_group("what to do")
    add = group.add_argument
    add("--baseline", action="store_true", help="compare with the customary loader; needs a corpus in folders")
    add("--embed", action="store_true", help="measure nothing but embedding")
    add("--pack", default="", help="with --baseline: a pack of the same list, read as well")
    add("--json", default="", metavar="FILE", help="write all numbers there")
    add("--work", default="exps/benchmark", help="folder for made-up audio (exps/benchmark)")
    add("--seconds", type=float, default=5, help="time for the repetitions of each stage, of which there are at least "
                                                 "three (5)")
    group = parser.add_argument_group("the training that is measured; defaults and meanings as in trainSpeakerNet.py")
    add = group.add_argument
    add("--C", type=int, default=1024, help="channels of the network (1024)")
    add("--batch_size", type=int, default=400, help="crops per step (400)")
    add("--num_frames", type=int, default=200, help="length of a crop in frames of 10 ms (200)")
    add("--n_cpu", type=int, default=4, help="threads that read audio (4)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (auto)")
    add("--amp", choices=["auto", "bf16", "off"], default="auto", help="mixed precision (auto)")
    add("--compile", action="store_true", help="torch.compile the network")
    # fmt: on
    return parser


FLAGS = {  # that belong to one thing alone
    "measuring training": {
        "data", "synthetic_gb", "train_list", "train_path", "paths_anywhere", "musan_path", "rir_path", "bank_mb",
        "baseline", "pack", "batch_size", "num_frames", "amp", "compile",
    },
    "--embed": {"embed"},
}  # fmt: skip


def read_settings(arguments):
    """The command line (a list of strings) as a namespace, checked. Raises InputError naming the flag."""
    args = build_parser().parse_args(arguments)
    check_flags(arguments, "--embed" if args.embed else "measuring training", FLAGS)
    args.data = args.data or ("corpus" if args.train_list else "synthetic")
    if (args.data == "corpus") != bool(args.train_list) or bool(args.train_list) != bool(args.train_path):
        raise InputError("a corpus needs --train_list and --train_path; made-up audio (--data synthetic) neither")
    if args.baseline and not args.train_list:
        raise InputError("--baseline needs files to read: --train_list, --train_path, --musan_path, --rir_path")
    if args.baseline and not (args.musan_path and args.rir_path):
        raise InputError("--baseline augments as is customary: it needs --musan_path and --rir_path")
    if args.pack and not args.baseline:
        raise InputError("--pack goes with --baseline; give a pack as --train_path otherwise")
    for name, least in {"num_frames": 2, "batch_size": 2, "n_cpu": 1, "bank_mb": 1, "seconds": 0}.items():
        if not least <= getattr(args, name) < math.inf:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    if not 0 < args.synthetic_gb < math.inf:
        raise InputError(f"--synthetic_gb must be more than 0, not {args.synthetic_gb}")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")
    args.samples = args.num_frames * 160 + 240
    return args


# ---- made-up audio ---------------------------------------------------------------------------------------------------


class MadeUp:
    """Noise under every name, in place of a Folder that is to be packed; under names of responses, it fades."""

    def __init__(self, root, seconds):
        self.root, self.seconds = Path(root), seconds

    def open(self, file):
        random = np.random.default_rng(zlib.crc32(file.encode()))
        noise = random.normal(0, 0.05, int(self.seconds * SAMPLE_RATE)).astype(np.float32)
        if "response" in file:
            noise *= np.exp(-np.arange(len(noise)) / (0.1 * SAMPLE_RATE), dtype=np.float32)
            noise[0] = 1
            return PackedFile(noise)
        return PackedFile((32768 * noise).clip(-32768, 32767).astype(np.int16))


def make_corpus(args):
    """Point the data flags to made-up packs under --work, which are made unless they are there."""
    work = Path(args.work) / f"{args.synthetic_gb:g}GB"
    check_writable(work, "--work")
    count = max(2, round(args.synthetic_gb * 1e9 / (2 * SAMPLE_RATE * UTTERANCE_SECONDS)))
    files = [f"id{number % VOXCELEB2.speakers:05d}/{number}.wav" for number in range(count)]
    speakers = [file.split("/")[0] for file in files]
    noises = [f"{category}/{number}.wav" for category in ("noise", "music", "speech") for number in range(20)]
    responses = [f"response{number}.wav" for number in range(50)]
    for kind, seconds, names, who in (("speech", UTTERANCE_SECONDS, files, speakers), ("noises", 10, noises, None),
                                      ("responses", 0.5, responses, None)):  # fmt: skip
        write_pack(work / kind, kind, MadeUp(work, seconds), names, who, threads=args.n_cpu)
    args.train_list, args.train_path = str(work / "train_list.txt"), str(work / "speech")
    args.musan_path, args.rir_path = str(work / "noises"), str(work / "responses")
    write_text(args.train_list, "".join(f"{speaker} {file}\n" for speaker, file in zip(speakers, files)))


# ---- measuring -------------------------------------------------------------------------------------------------------


def synchronise(device):
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def named(stage):
    """Running out of memory in here is a RunError that says so in one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise RunError(f"out of memory in the stage '{stage}': try a smaller --batch_size, or --amp bf16") from error


def repeat(works, device, seconds, least=3):
    """{stage: seconds that each repetition took} of {stage: function}, after a repetition of each that does not count.

    In turns, so that what disturbs the machine for a while disturbs all of them.
    """
    taken = {stage: [] for stage in works}
    for counts in itertools.chain([False], itertools.repeat(True)):
        for stage, work in works.items():
            with named(stage):
                began = time.perf_counter()
                work()
                synchronise(device)
                taken[stage] += [time.perf_counter() - began] if counts else []
        rounds = len(next(iter(taken.values())))
        if rounds >= least and sum(map(sum, taken.values())) >= seconds * len(works):
            return taken


class Stage:
    """A measured stage. count: of utterances or trials in a repetition; seconds: of each repetition; operations and
    bytes: the least that one utterance or trial takes; limits: of the device that does it (``measure_limits``).
    """

    def __init__(self, name, count, seconds, limits, operations=0.0, bytes=0.0, unit="utt"):
        self.name, self.count, self.seconds, self.unit = name, count, seconds, unit
        self.operations, self.bytes = operations, bytes
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
        self.rate, self.low, self.high = count / median, count / high, count / low
        computing, moving = operations / limits["matrix"], bytes / limits["copy"]
        self.bound = "matrix" if computing > moving else "memory"
        self.limit = 1 / max(computing, moving)
        self.share = None  # of the whole step, for its parts

    def line(self):
        share = "" if self.share is None else f"{100 * self.share:.0f} %"
        return (
            f"{self.name:<24} {self.rate:>11,.1f} {self.unit}/s {f'{self.low:,.1f} .. {self.high:,.1f}':>25} "
            f"{1e6 / self.rate:>11,.2f} {share:>6} {self.limit:>13,.0f} {self.bound} "
            f"{100 * self.rate / self.limit:>6.1f} %"
        )

    HEADER = (
        f"{'stage':<24} {'median':>17} {'quartiles':>25} {'µs each':>11} {'share':>6} {'limit, by':>20} {'achieved':>8}"
    )

    def record(self):
        kept = ("rate", "low", "high", "unit", "count", "share", "operations", "bytes", "bound", "limit")
        return {**{name: getattr(self, name) for name in kept}, "repetitions": len(self.seconds),
                "achieved": self.rate / self.limit}  # fmt: skip


def measure_limits(device, dtype, seconds):
    """What a device does at most: {"copy": bytes/s read and written, "matrix": floating-point operations/s}."""
    small = device.type == "cpu"
    source, target = torch.ones(2, (64 if small else 1024) * 2**20, device=device)  # of 256 MB, 4 GB
    copying = repeat({"large copy": lambda: target.copy_(source)}, device, seconds)["large copy"]
    size = 1536 if small else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    multiplying = repeat({"large product": lambda: left @ right}, device, seconds)["large product"]
    return {"copy": 2 * source.nbytes / min(copying), "matrix": 2 * size**3 / min(multiplying)}


def count_work(embed, features, loss):
    """What the network needs for one utterance: (operations, bytes kept for the backward pass).

    embed: the network, (B, 80, T) -> (B, D); features (6, 80, T); loss: function of embeddings. From the difference
    between six utterances and two, so that weights, which all utterances share, do not count.
    """
    found = []
    for count in (2, 6):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        # The counter lies inside: what it sees is then the work, not the bookkeeping.
        with saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as counter:
            loss(embed(features[:count].clone())).backward()
        found.append((counter.get_total_flops(), sum(kept.values())))
    return tuple((more - less) / 4 for less, more in zip(*found))


# ---- the stages ------------------------------------------------------------------------------------------------------


def endless(loader):
    """Batches of epoch after epoch."""
    for epoch in itertools.count(1):
        yield from loader.epoch(epoch)


def measure_training(args, device, limits, exact, host):
    """The stages of training, as trainSpeakerNet.py goes through them: ([Stage], whether the corpus is packed).

    limits: what the device does in the precision of training; exact: in float32; host: what the CPU does.
    """
    listing, source = open_training_list(args)
    size = args.batch_size
    loader = CropLoader(listing, source, args.samples, size, 0, args.n_cpu, device.type == "cuda")
    augmentation = Augmentation(args.musan_path, args.rir_path, args.samples, args.bank_mb, 0, args.n_cpu).to(device)
    augmentation.redraw(1)
    encoder = ECAPA_TDNN(C=args.C)
    network = SpeakerNet(encoder, AAMsoftmax(max(VOXCELEB2.speakers, len(listing.speakers)))).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, weight_decay=2e-5, fused=device.type != "mps")
    faster = compiled if args.compile else lambda function: function

    def forward(function, *inputs):
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            return function(*inputs)

    def learn(function, *inputs):
        optimizer.zero_grad()
        forward(function, *inputs)[0].backward()

    def move():
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), math.inf)
        take_step(optimizer, 1 - norm.isfinite().float())

    whole = faster(network)

    def step(waveform, label):
        waveform = augmentation(to_device(waveform, device), 1, 0)
        margin = to_device(torch.tensor(0.2), device)
        learn(whole, waveform, to_device(label, device), augmentation.masks(size, 1, 0), margin)
        move()

    # What each stage gets from the one before it.
    batches = endless(loader)
    _, host_waveform, host_label = next(batches)
    waveform, label = to_device(host_waveform, device), to_device(host_label, device)
    with named("augment"):
        augmented = augmentation(waveform, 1, 0)
        features = encoder.specaug(encoder.features(augmented))
    front_end = faster(lambda waveform: encoder.specaug(encoder.features(waveform)))
    back_end = faster(lambda features: network.speaker_loss(encoder.embed(features), label))
    several = 4 if device.type == "cpu" else 8  # steps between two looks at the clock: a GPU works ahead of Python
    works = {  # stage: utterances at a time, work
        "read": (8 * size, lambda: collections.deque(itertools.islice(batches, 8), maxlen=0)),
        "augment": (size, lambda: augmentation(waveform, 1, 0)),
        "features": (size, lambda: front_end(augmented)),
        "forward + backward": (size, lambda: learn(back_end, features)),
        "optimizer": (size, move),
        "whole step": (several * size, lambda: [step(host_waveform, host_label) for _ in range(several)]),
        "end to end": (several * size, lambda: [step(*batch) for _, *batch in itertools.islice(batches, several)]),
    }
    operations, moved = count_training(args, network, augmentation, features, forward)
    found = {}
    # The two last not in turns: what was read ahead during the one would be a present to the other.
    for group in (["read"], ["augment"], ["features"], PARTS[2:], ["whole step"], ["end to end"]):
        for name, seconds in repeat({name: works[name][1] for name in group}, device, args.seconds).items():
            where = {"read": host, "features": exact}.get(name, limits)
            found[name] = Stage(name, works[name][0], seconds, where, operations.get(name, 0), moved[name])
    batches.close()  # its threads read ahead no more
    parts = [found[name] for name in PARTS]
    for part in parts:
        part.share = found["whole step"].rate / part.rate
    for name in ("whole step", "end to end"):  # one part after the other
        found[name].limit = 1 / sum(1 / part.limit for part in parts)
        found[name].bound = min(parts, key=lambda part: part.limit).bound
    return list(found.values()), isinstance(source, Pack)


def count_training(args, network, augmentation, features, forward):
    """({stage: operations}, {stage: bytes}) for an utterance: the least, everything that is needed read once and
    everything that is left written once.
    """
    size, crop, (_, bands, frames) = args.batch_size, args.samples, features.shape
    label = torch.zeros(6, dtype=torch.int64, device=features.device)
    some = features[:1].repeat(6, 1, 1)
    embed, loss = network.speaker_encoder.embed, network.speaker_loss
    with named("forward + backward"):
        network_operations, kept = forward(count_work, embed, some, lambda each: loss(each, label[: len(each)])[0])
    weights = 4 * sum(weight.numel() for weight in network.parameters()) / size
    reverberated, _, noisy, _, _ = augmentation._draw(size, 1, 0, 0)
    spectra = 8 * augmentation.spectra.shape[-1]
    operations = {  # the front end: the transforms of the power spectrum (2.5 n log n), and the filters
        "features": frames * (2.5 * 512 * math.log2(512) + 2 * 257 * bands),
        "forward + backward": network_operations,
    }
    moved = {
        "augment": (2 + 4) * crop + (2 * crop * len(noisy) + spectra * len(reverberated)) / size,
        "features": 4 * (crop + bands * frames),
        # What is kept for the backward pass, written and read; the weights, read twice, and their slopes, written.
        "forward + backward": 2 * kept + 3 * weights,
        # Weights, slopes and Adam's two means read, the slopes once more for their norm; weights and means written.
        "optimizer": 8 * weights,
    }
    for name in ("whole step", "end to end"):
        operations[name], moved[name] = (sum(part.get(each, 0) for each in PARTS) for part in (operations, moved))
    return operations, {"read": 2 * 2 * crop, **moved}


def measure_embedding(args, device, limits):
    """[Stage]: files to embeddings, one by one and in batches; short ones, and such as VoxCeleb's."""
    encoder, found = SpeakerEncoder(ECAPA_TDNN(C=args.C), device), []
    for seconds in (1, UTTERANCE_SECONDS):
        files = make_utterances(Path(args.work) / f"{seconds}s", seconds, EMBEDDED_SECONDS.get(device.type, 8192))
        with FlopCounterMode(display=False) as counter:
            encoder.embed_batch(torch.zeros(1, seconds * SAMPLE_RATE))
        works = {
            f"embed {seconds} s, one by one": lambda files=files: [encoder.embed(file) for file in files],
            f"embed {seconds} s, in batches": lambda files=files: list(encoder.embed_files(files, threads=args.n_cpu)),
        }
        for name, taken in repeat(works, device, args.seconds).items():
            found.append(Stage(name, len(files), taken, limits, counter.get_total_flops()))
    return found


def make_utterances(folder, seconds, total):
    """[path] of files of noise, ``total`` seconds in all, half to one and a half times as long as ``seconds``."""
    lengths = np.random.default_rng(0).permutation(np.linspace(0.5, 1.5, total // seconds)) * seconds
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.wav" for number in range(len(lengths))]
    for file, length in zip(files, lengths):
        soundfile.write(file, MadeUp(folder, length).open(file.name).packed, SAMPLE_RATE)
    return files


def measure_scoring(args, limits):
    """[Stage]: scores and error rates of trial lists of the usual sizes, from made-up vectors."""
    found, host = [], torch.device("cpu")
    for name, (count, utterances) in TRIALS.items():
        random = np.random.default_rng(0)
        vectors = random.standard_normal((utterances, VECTOR), dtype=np.float32)
        vectors = {file: Utterance(vector, vector, 0.0) for file, vector in enumerate(vectors)}
        enrol, test = random.integers(utterances, size=(2, count)).tolist()
        trials = SimpleNamespace(enrol=enrol, test=test, label=np.arange(count) % 2)
        scores = score_trials(trials, vectors)

        def judge(scores=scores, label=trials.label):
            equal_error_rate(scores, label)
            for prior in (0.01, 0.05):
                min_dcf(scores, label, p_target=prior)
            for rate in (0.01, 0.001):
                threshold_at(scores, label, rate)

        works = {f"score {name}": lambda t=trials, v=vectors: score_trials(t, v), f"metrics {name}": judge}
        for (stage, seconds), least in zip(repeat(works, host, args.seconds).items(), (2 * 4 * VECTOR, 4 + 8)):
            found.append(Stage(stage, count, seconds, limits, bytes=least, unit="trl"))
    return found


# ---- what it means ---------------------------------------------------------------------------------------------------


def hours(rate, utterances=VOXCELEB2.utterances, epochs=VOXCELEB2.epochs):
    """How long training takes at so many utterances a second."""
    return utterances * epochs / rate / 3600


def advise(stages, packed, amp, is_compiled, bf16_possible):
    """What holds training back and what to do about it, in a sentence, from {name: Stage}."""
    read, whole, end = stages["read"], stages["whole step"], stages["end to end"]
    if end.rate < 0.9 * whole.rate:
        lost = f"training runs at {100 * end.rate / whole.rate:.0f} % of what its steps allow"
        if end.rate < 0.9 / (1 / read.rate + 1 / whole.rate):  # as if nothing were read while a step is computed
            return f"{lost}, which reading does not explain: the machine is busy with other things, measure again"
        if read.rate > 1.2 * whole.rate:
            return f"reading alone is fast enough, yet {lost}: reader and step share too few cores"
        mend = "raise --n_cpu, or use a faster disk" if packed else "pack the corpus (prepareData.py --pack)"
        return f"bound by reading: {lost}; {mend}"
    part = max((stages[name] for name in PARTS), key=lambda each: each.share)
    achieved = 100 * part.rate / part.limit
    said = f"reading keeps up; '{part.name}' takes {100 * part.share:.0f} % of a step, at {achieved:.0f} % of its limit"
    if achieved < 30:
        mend = "a larger --batch_size" if is_compiled else "--compile, or a larger --batch_size"
        return f"{said}: the time goes between and around the products and copies; try {mend}"
    if amp == "off" and bf16_possible:
        return f"{said}, by {part.bound}: --amp bf16 raises that limit"
    if part.bound == "memory":
        return f"{said}: bound by memory" + ("" if is_compiled else "; --compile joins operations and spares traffic")
    return f"{said}: bound by computation, only a smaller --C or a faster device would be quicker"


def introduce(device, limits, what):
    """Print what is measured where; returns the device's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}; {what}")
    print(f"limits: copy {limits['copy'] / 1e9:,.1f} GB/s, matrix product {limits['matrix'] / 1e12:,.3f} Tflop/s\n")
    return name


def show(found):
    """Print the table of [Stage]; returns {name: Stage}."""
    print(Stage.HEADER)
    for each in found:
        print(each.line())
    return {each.name: each for each in found}


def benchmark_embedding(args):
    device = choose_device(args.device)
    check_writable(args.work, "--work")
    limits = measure_limits(device, torch.float32, args.seconds / 5)
    name = introduce(device, limits, f"C={args.C}, float32; files of noise, {args.n_cpu} reading threads")
    stages = show(measure_embedding(args, device, limits))
    return {
        "device": str(device), "name": name, "limits": limits,
        "stages": {name: stage.record() for name, stage in stages.items()},
    }  # fmt: skip


def benchmark(args):
    device = choose_device(args.device)
    if args.amp == "auto":
        args.amp = "bf16" if multiplies_bf16(device) else "off"
    if args.data == "synthetic":
        make_corpus(args)
    host = torch.device("cpu")
    limits = measure_limits(device, torch.bfloat16 if args.amp == "bf16" else torch.float32, args.seconds / 5)
    exact = limits if args.amp == "off" else measure_limits(device, torch.float32, args.seconds / 5)
    host_limits = exact if device.type == "cpu" else measure_limits(host, torch.float32, args.seconds / 5)
    name = introduce(
        device, limits, f"C={args.C}, batch {args.batch_size}, {args.num_frames} frames, amp {args.amp}"
        f"{', compiled' if args.compile else ''}; {args.data} data, {args.n_cpu} reading threads",
    )  # fmt: skip
    found, packed = measure_training(args, device, limits, exact, host_limits)
    found += measure_embedding(args, device, exact) + measure_scoring(args, host_limits)
    stages = show(found)
    predicted = hours(stages["end to end"].rate)
    advice = advise(stages, packed, args.amp, args.compile, multiplies_bf16(device))
    print(f"\n{advice}")
    print(
        f"{VOXCELEB2.epochs} epochs of VoxCeleb2 ({VOXCELEB2.utterances:,} utterances) at the rate from end to end: "
        f"{predicted:,.1f} hours, if its disk keeps up"
    )
    return {
        "device": str(device), "name": name, "limits": limits, "host_limits": host_limits, "advice": advice,
        "hours": predicted, "stages": {each.name: each.record() for each in found},
    }  # fmt: skip


def main():
    args = read_settings(sys.argv[1:])
    keep_memory()
    measure = compare_with_customary if args.baseline else benchmark_embedding if args.embed else benchmark
    result = measure(args)
    if args.json:
        content = {"settings": vars(args), "torch": str(torch.__version__), **result}
        write_text(args.json, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
