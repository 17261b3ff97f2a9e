"""The parts of a training without its loop, to be measured; and all that runs on a GPU, checked and timed."""

import itertools
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from corpora.lists import TrainingList, open_training_list
from corpora.make_lists import make_trials
from dataLoader import copied_ahead, to_device
from evaluation.backend import Cohort, TrialScorer
from evaluation.scoring import compute_metrics, score_trials
from inference.encoder import BATCH_SECONDS, SpeakerEncoder, Utterance
from tools import RunError, one_line, write_text
from training.run import Compiled, git_commit, make_network, make_optimizer, maybe_compile, new_encoder

UTTERANCES, SPEAKERS = 1_092_009, 5_994  # of VoxCeleb2 dev
VOX1_E = 1_251, 145_160, 581_480  # speakers, utterances, trials
STEPS = {"cuda": 20}  # that are timed together, so that the wait for the last one counts little
LAST_START = 330  # seconds after which no part begins: the corpus takes 30 before, a part with torch.compile 90


def measure(count, work, device, seconds):
    """Quartiles of the rate, in 1/s, at which work() processes ``count`` things, after a first time as warm-up."""
    taken = []
    while len(taken) < 4 or sum(taken[1:]) < seconds:
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - began)
    return np.quantile(count / np.array(taken[1:]), [0.25, 0.5, 0.75])


def limits(args, device):
    """What the device reaches: FLOP/s of a large product in the type of --amp; bytes/s that a copy reads and writes."""
    size, length, times = (8192, 2**30, 20) if device.type == "cuda" else (1024, 2**26, 1)
    dtype = torch.bfloat16 if args.amp == "bf16" else torch.float32
    matrix, memory = torch.randn(size, size, device=device, dtype=dtype), torch.zeros(2, length // 4, device=device)
    product = measure(2 * times * size**3, lambda: [matrix @ matrix for _ in range(times)], device, args.seconds)
    copy = measure(2 * times * length, lambda: [memory[0].copy_(memory[1]) for _ in range(times)], device, args.seconds)
    return product[1], copy[1]


def setting(args, device):
    """Machine and network in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return (
        f"{device} ({name}), torch {torch.__version__}; C={args.C}, batch {args.batch_size}, {args.num_frames} frames, "
        f"amp {args.amp}; {args.n_cpu} reading threads"
    )


class Training:
    """What trainSpeakerNet.py trains with, for the classes of VoxCeleb2. ``batch``: [waveform, label] of one step.

    functions: make_loader and train_step of trainSpeakerNet.py, which this cannot import. ``batches``: endless, those
    of CropLoader.epoch; ``ahead``: the same, copied to the device ahead.
    """

    def __init__(self, args, device, *functions):
        train_list, self.source = open_training_list(args)
        self.args = args.replace(n_class=max(SPEAKERS, len(train_list.speakers)), system="ours")
        self.device, self.functions, (make_loader, self.train_step) = device, functions, functions
        # A small list many times over, because nothing is read ahead past the end of an epoch.
        lines = np.resize(np.arange(len(train_list)), max(len(train_list), 1000 * args.batch_size))
        loader, self.augmentation = make_loader(self.args, train_list.subset(lines), self.source, device)
        self.augmentation.redraw(1)
        self.network = make_network(self.args, new_encoder(args), device)
        self.optimizer = make_optimizer(self.args, self.network.parameters(), device)
        self.batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count(1))
        self.ahead, self.number = copied_ahead(self.batches, device), itertools.count()
        _, *self.batch = next(self.ahead)
        torch.backends.cudnn.benchmark = True  # as in training

    def step(self, network, waveform, label):
        args, position = self.args.replace(batch_size=len(label)), (1, next(self.number))
        self.train_step(args, network, self.optimizer, self.augmentation, position, waveform, label, args.lr, args.m)

    def rate(self, network, crops=None, reading=False):
        """Quartiles of utterances/s in steps on the first crops of one batch; ``reading``: on new batches."""
        batch, steps = [each[:crops] for each in self.batch], STEPS.get(self.device.type, 4)

        def work():
            for _ in range(steps):
                self.step(network, *(next(self.ahead)[1:] if reading else batch))

        return measure(steps * len(batch[1]), work, self.device, self.args.seconds)

    def flop(self):
        """FLOP of the products and convolutions of a step, for each crop."""
        crops = 2 * self.args.accumulate
        with FlopCounterMode(display=False) as counter:
            self.step(self.network, *(each[:crops] for each in self.batch))
        return counter.get_total_flops() / crops


class GPUCheck(Training):
    """Checks, each of which yields (what, result, unit)."""

    def run(self, path):
        """Run them, the most important first; after each write <path>.json and .md. Returns the latter, a table.

        One that fails has its error as the result.
        """
        large, small = self.args.batch_size, max(2, self.args.batch_size // 8)
        checks = {
            "device": self.limits(), "relative difference from the CPU": self.numbers(),
            f"step of {large} crops": self.steps(large), f"step of {small} crops": self.steps(small),
            f"step of {large} crops, compiled": self.compiled_steps(large, False), "end to end": self.end_to_end(),
            f"step of {small} crops, compiled, CUDA graphs": self.compiled_steps(small, True),
            "embedding": self.embedding(), "evaluation": self.evaluation(),
            f"step of {small} crops, compiled": self.compiled_steps(small, False),
            f"step of {large} crops, compiled, CUDA graphs": self.compiled_steps(large, True),
        }  # fmt: skip
        rows, began, about = [], time.monotonic(), f"{setting(self.args, self.device)}; commit {git_commit()}"
        for check, results in checks.items():
            try:
                if time.monotonic() - began > LAST_START:
                    raise RunError("not begun, to end within 8 minutes")
                rows.extend((check, *row) for row in results)
            except Exception as error:
                kind = "" if isinstance(error, RunError) else f"failed: {type(error).__name__}: "
                rows.append((check, "", one_line(f"{kind}{error}", 300), ""))
            shown = [(*row[:2], row[2] if isinstance(row[2], str) else f"{row[2]:,.5g}", row[3]) for row in rows]
            table = "".join(f"| {check} | {what} | {result} {unit} |\n" for check, what, result, unit in shown)
            table = f"{about}\n\n| check | | result |\n|---|---|---|\n{table}"
            content = {"about": about, "settings": self.args.as_dict(), "rows": rows}
            write_text(f"{path}.json", json.dumps(content, indent=2) + "\n")
            write_text(f"{path}.md", table)
        return table

    def limits(self):
        product, copy = limits(self.args, self.device)
        yield "product of matrices", product / 1e12, "TFLOP/s"
        yield "copy, read and written", copy / 1e9, "GB/s"
        yield "step", self.flop() / 1e9, "GFLOP a crop"

    def numbers(self):
        """Of 8 crops in float32 without TF32, all but the augmentation from the same crops."""
        on_cpu, crops, found = Training(self.args, torch.device("cpu"), *self.functions), None, []
        on_cpu.network.load_state_dict(self.network.state_dict())
        for training in (on_cpu, self):
            device, network, encoder = training.device, training.network, training.network.speaker_encoder
            augmented, label, masks = training.augmentation(*(each[:8] for each in training.batch), 1, 0)
            crops = augmented if crops is None else to_device(crops, device)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                loss, _ = network(crops, label, masks, to_device(torch.tensor(self.args.m), device))
                gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, [*network.parameters()])])
            embedding = SpeakerEncoder(encoder, device).embed_batch(crops.cpu())
            results = augmented, encoder.features(crops), loss.detach(), gradient, embedding
            found.append([each.cpu() for each in results])
        for what, expected, result in zip(("augmentation", "features", "loss", "gradient", "embedding"), *found):
            yield what, float((result - expected).norm() / expected.norm()), ""

    def steps(self, crops, network=None):
        network, batch = network or self.network, [each[:crops] for each in self.batch]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield "rate", self.rate(network, crops)[1], "utterances/s"
        self.need_cuda()
        yield "memory", torch.cuda.max_memory_reserved(self.device) / 2**30, "GiB"
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.step(network, *batch)
            torch.cuda.set_sync_debug_mode("default")
        waits = [f"{Path(each.filename).name}:{each.lineno}" for each in found if "called a sync" in str(each.message)]
        yield "waits for the GPU (one is known)", len(waits), ", ".join(waits)

    def compiled_steps(self, crops, graphs):
        self.need_cuda()
        torch._dynamo.reset()  # else it would compile for batches of any size
        network, began = Compiled(self.network, graphs), time.perf_counter()
        self.step(network, *(each[:crops] for each in self.batch))
        if network.compiled is self.network:
            raise RunError("torch.compile failed")
        yield "first step", time.perf_counter() - began, "s"
        yield from self.steps(crops, network)

    def need_cuda(self):
        if self.device.type != "cuda":
            raise RunError("needs CUDA")

    def end_to_end(self):
        network = maybe_compile(self.args, self.network, self.device, crops=10**6)
        yield f"from a {type(self.source).__name__.lower()}", self.rate(network, reading=True)[1], "utterances/s"

    def embedding(self):
        encoder = SpeakerEncoder(self.network.speaker_encoder, self.device)
        rows = 0.1 * torch.randn(BATCH_SECONDS[self.device.type], 4 * 16000)
        for count in (1, len(rows)):
            rate = measure(count, partial(encoder.embed_batch, rows[:count]), self.device, self.args.seconds)[1]
            yield f"4 s, {count} at once", rate, "utterances/s"

    def evaluation(self):
        """Random vectors, as many as in VoxCeleb1-E and a cohort of VoxCeleb2; on a CPU a hundredth of them."""
        share = 1 if self.device.type == "cuda" else 100
        speakers, count, most = (number // share for number in VOX1_E)
        names = [f"id{row % speakers}" for row in range(count)]
        files = [f"{name}/{row}.wav" for row, name in enumerate(names)]
        trials = make_trials(TrainingList.of("random", names, files), "random", most=most // 2)
        vectors = np.random.default_rng(0).standard_normal((count + SPEAKERS // share, 192), np.float32)
        utterances = {file: Utterance(vector, vector, 8.0) for file, vector in zip(files, vectors)}
        began = time.perf_counter()
        compute_metrics(score_trials(trials, utterances), trials)
        scored = time.perf_counter()
        yield f"scores, error rates and intervals of {len(trials):,} trials", scored - began, "s"
        TrialScorer(utterances, Cohort(vectors[count:], "random"), device=self.device).score(trials)
        yield f"AS-norm of {count:,} utterances", time.perf_counter() - scored, "s"
