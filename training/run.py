"""A training run: its weights, their averages, its records; going on where it stopped, leaving results."""

import copy
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

from evaluation.plots import draw_training
from evaluation.scoring import VALID, evaluate, evaluated_models, read_history
from inference.checkpoints import SYSTEMS, Pretrained, build_network, load_pretrained
from inference.encoder import SpeakerEncoder, choose_device
from loss import AAMsoftmax
from model import ECAPA_TDNN
from speed import SpeedPerturbation
from tools import InputError, RunError, ran_out_of_memory, save_checkpoint, sha256, write_text
from training import distributed
from training.averaging import MovingAverage, mean_of_models
from training.settings import make_optimizer
from training.state import load_state, save_state

DATA_FLAGS = {"train_list", "train_path", "eval_list", "eval_path", "musan_path", "rir_path"}

# What a continued run may do otherwise than it began: where things lie, how often it looks, how long it goes on, how it
# is computed (parts and processes differ in what batch norm sees, as far as --sync_bn does not hold them together).
FREE_TO_CHANGE = DATA_FLAGS | {"save_path", "max_epoch", "test_step", "n_cpu", "device", "compile", "accumulate",
                               "tensorboard", "save_minutes", "paths_anywhere", "no_check"}


VOXCELEB2_SPEAKERS = 5994


class SpeakerNet(torch.nn.Module):
    """Encoder and loss as one module: what is trained, under the names that the recipe's checkpoints use."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.speaker_encoder = encoder
        self.speaker_loss = classifier

    def forward(self, waveform, label, place, margin):
        """(B, samples), (B,) int64, (B, 4) numbers that place SpecAugment's masks, 0-d -> (loss, accuracy in %)."""
        return self.speaker_loss(self.speaker_encoder(waveform, aug=True, place=place), label, margin)


class Run:
    """What a training run is made of and leaves behind: weights, optimizer, position; its folder and its records.

    ``epoch`` (1, 2, ...) and ``step`` (0, 1, ...) are what comes next; ``sums`` are the meter's up to there. Random
    numbers have no state to keep: they are functions of the position (see dataLoader). Of several processes each has
    its own Run, and the first writes.
    """

    def __init__(self, args, listing, device, held_out=()):
        self.args = args
        self.folder = Path(args.save_path)
        self.speakers, self.held_out = listing.speakers, list(held_out)
        self.device = device
        self.lists = {path: sha256(path) for path in [args.train_list, *args.eval_list]}
        self.epoch, self.step, self.sums = 1, 0, None
        self.saved, self.saved_at = time.monotonic(), None  # the state on disk
        self.skipped_in_a_row = 0
        if len(self.speakers) < 2:
            raise InputError(f"{listing.path} has a single speaker: there is nothing to tell apart")
        if args.n_class is None:
            args.n_class = len(self.speakers)
        elif args.n_class < len(self.speakers):
            raise InputError(f"--n_class {args.n_class}, but {listing.path} has {len(self.speakers)} speakers")

        torch.manual_seed(args.seed)
        state, self.last_is_damaged = load_state(self.folder)
        initial, self.earlier = None, []  # the latter: speakers whom the model that it begins with has heard
        if state:
            encoder, self.earlier = self._encoder_of(state), state.get("earlier_speakers", [])
        elif args.initial_model:
            initial = load_pretrained(args.initial_model, args.system)
            encoder, args.system, self.earlier = initial.network, initial.system, initial.heard()
            if SYSTEMS[initial.system].variant is None:
                raise InputError(f"--initial_model {args.initial_model}: only ECAPA-TDNNs can be trained further here")
        else:
            encoder, args.system = ECAPA_TDNN(C=args.C), "ours"
        take_width(args, encoder)
        if initial:
            self._check_held_out(initial)
            self._take_form_of_loss(initial)
        classifier = AAMsoftmax(
            args.n_class * (len(SpeedPerturbation.FACTORS) if args.speed_perturb else 1), m=args.m, s=args.s,
            embedding_size=encoder.embedding_size, continuous=SYSTEMS[args.system].continuous_margin,
            sub_centres=args.sub_centres, top_k=args.top_k,
        )  # fmt: skip
        self.network = SpeakerNet(encoder, classifier).to(device)
        if args.sync_bn:
            distributed.synchronise_batch_norm(self.network, device)
        self.optimizer = make_optimizer(args, self.network.parameters(), device)
        self.history = read_history(self.folder / "metrics.jsonl")
        if state:
            self.network.load_state_dict(state["weights"])
            # It may have been written on another device.
            state["optimizer"]["param_groups"][0]["fused"] = self.optimizer.param_groups[0]["fused"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.sums = state["epoch"], state["step"], state["sums"]
            self.saved_at = self.epoch, self.step
            self._check_models_to_average()
            print(f"{self.folder}: going on after step {self.step} of epoch {self.epoch}")
        elif self.history:
            raise InputError(
                f"--save_path {self.folder} has results of a run, but no state.pt to go on from: choose another"
            )
        elif initial:
            self._take_classifier(initial)
        self.moving_average = MovingAverage(self.network, args.ema) if args.ema else None
        if state and self.moving_average:
            self.moving_average.network.load_state_dict(state["moving_average"])
        self.is_new = state is None

    def begin(self, tests):
        """Write down what is being done; a new run also its state, so that it is known by its settings."""
        position = self.epoch, self.step, sorted(self.recorded()), self.speakers, sorted(self.lists.values())
        distributed.check_same(position, "--save_path and the lists must lie on a disk that all machines share")
        if distributed.rank() == 0:
            write_text(self.folder / "settings.json", json.dumps(provenance(self.args, self.lists), indent=2) + "\n")
            if VALID in tests:
                write_text(tests[VALID].trials.path, tests[VALID].trials.text())
        if self.is_new:
            self.save_state(None)

    def _encoder_of(self, state):
        """The network of a training state, which is refused if it was begun with other settings."""
        args, before = self.args, state["settings"]
        args.system = args.system or before.get("system", "ours")
        if "initial_model" not in args.given:  # it has served
            args.initial_model = before["initial_model"]
        for name in ("C", "sub_centres", "s"):  # the model decided
            if args.initial_model and name not in args.given and name in before:
                setattr(args, name, before[name])
        self._refuse_other_settings(state)
        prefix = "speaker_encoder."
        weights = {key.removeprefix(prefix): value for key, value in state["weights"].items() if prefix in key}
        return build_network(weights, args.system)

    def _refuse_other_settings(self, state):
        mend = "to continue it give the same, for another run choose another --save_path"
        free = FREE_TO_CHANGE - (set() if can_go_further(self.args) else {"max_epoch"})
        for name, before in state["settings"].items():
            now = getattr(self.args, name, None)
            came_or_went = name in ("musan_path", "rir_path") and bool(now) != bool(before)
            if came_or_went or (name not in free and now != before):
                raise InputError(f"{self.folder} was begun with --{name} {before}, not {now}: {mend}")
        if state["speakers"] != self.speakers or state["train_list_sha256"] != self.lists[self.args.train_list]:
            raise InputError(f"{self.folder} was begun with a --train_list of other content: {mend}")

    def _check_held_out(self, initial):
        """InputError if the model was trained on speakers that are held out here: it knows them."""
        known = set(initial.heard()) & set(self.held_out)
        if known:
            raise InputError(
                f"--valid_speakers {self.args.valid_speakers} holds out {len(known)} speakers, such as {min(known)}, "
                f"that {self.args.initial_model} was trained on: give what that run had"
            )

    def _take_form_of_loss(self, initial):
        """With the same speakers, go on with the model's sub-centres and scale, unless told otherwise."""
        classifier, given = initial.classifier, self.args.given
        if classifier is not None and initial.speakers == self.speakers:
            if "sub_centres" not in given:
                self.args.sub_centres = classifier.shape[1] if classifier.dim() == 3 else 1
            if "s" not in given:
                self.args.s = initial.scale

    def _take_classifier(self, initial):
        """The encoder came with the model; its classifier is taken if it tells the same speakers apart. Says so.

        InputError if it is not and --finetune_margin was asked for, whose small learning rate cannot teach a new one.
        """
        theirs, ours = initial.classifier, self.network.speaker_loss.weight
        encoder = self.network.speaker_encoder
        left, whole = "and its classifier", theirs
        if theirs is not None and len(theirs) == len(SpeedPerturbation.FACTORS) * len(ours):
            theirs = theirs[: len(ours)]  # the first are the speakers at their own speed
            left += f", of which {len(theirs)} of {len(whole)} classes: those of speech at another speed are dropped"
        same = theirs is not None and initial.speakers == self.speakers and theirs.shape == ours.shape
        if same:
            ours.data.copy_(theirs)
        else:
            if theirs is None:
                reason = "it came without a classifier"
            elif initial.speakers is None:
                reason = f"its classifier of {len(whole)} classes does not name its speakers"
            elif initial.speakers != self.speakers:
                reason = f"its classifier is for {len(initial.speakers)} other speakers"
            else:
                reason = f"its classifier has the form {tuple(whole.shape)}, not {tuple(ours.shape)}"
            if self.args.finetune_margin:
                raise InputError(
                    f"--finetune_margin {self.args.initial_model}: {reason}, and the learning rate is too small for a "
                    "new one; --train_list, --valid_speakers and --n_class must be those of its training"
                )
            left = f"; {reason}: a new one begins, for {self.args.n_class} speakers"
        print(
            f"{self.args.initial_model} ({SYSTEMS[initial.system].title}): took the encoder, {describe(encoder)} in "
            f"{len(encoder.state_dict())} tensors{' ' if same else ''}{left}"
        )

    def after_step(self, step, steps_per_epoch):
        """Step ``step`` of this epoch is done."""
        if self.moving_average:
            self.moving_average.follow(self.network, (self.epoch - 1) * steps_per_epoch + step)
        self.step = step + 1

    def evaluated(self, tests):
        """{kind: (SpeakerNet, results)} of "model", of "ema" once trained, and of "average" at the end of training."""
        evaluated = {}
        for kind, network in self._networks().items():
            about = Pretrained(self.args.system, network.speaker_encoder)
            encoder = SpeakerEncoder(network.speaker_encoder, self.device, about)
            evaluated[kind] = network, evaluate(encoder, tests, self.args, kind="" if kind == "model" else kind)
        return evaluated

    def _networks(self):
        """{kind: SpeakerNet} of what there is to be judged now."""
        distributed.mean_statistics(self.network)
        networks = {"model": self.network}
        if self.epoch > 1 or self.step > 0:
            if self.moving_average:
                distributed.mean_statistics(self.moving_average.network)
                networks["ema"] = self.moving_average.network
            if self.args.average > 1 and self.epoch == self.args.max_epoch:
                networks["average"] = copy.deepcopy(self.network)
                files = [self._model_file("model", epoch) for epoch in self._before_average()]
                networks["average"].load_state_dict(mean_of_models(files, self.network.state_dict()))
        return networks

    def _before_average(self):
        """The epochs, but for the last one, whose models --average needs."""
        return range(self.args.max_epoch - self.args.average + 1, self.args.max_epoch)

    def _check_models_to_average(self):
        needed = [self._model_file("model", epoch) for epoch in self._before_average() if epoch in self.recorded()]
        missing = [file for file in needed if not file.exists()]
        if missing:
            raise InputError(
                f"--max_epoch {self.args.max_epoch} with --average {self.args.average} needs {missing[0]}, which was "
                "not kept: give another --max_epoch"
            )

    def _model_file(self, kind, epoch):
        return self.folder / "model" / f"{kind}_{epoch:04d}.model"

    def _contents(self, kind):
        return {
            "kind": kind, "settings": settings_of(self.args), "versions": versions(), "epoch": self.epoch,
            "train_list_sha256": self.lists[self.args.train_list], "speakers": self.speakers,
            "valid_speakers": self.held_out, "earlier_speakers": self.earlier, "weights": self.network.state_dict(),
        }  # fmt: skip

    def save_is_due(self):
        return time.monotonic() - self.saved >= 60 * self.args.save_minutes

    def save_state(self, sums):
        """Write all that is needed to go on from (epoch, step) exactly, unless that was done."""
        self.sums = sums
        if (self.epoch, self.step) == self.saved_at:
            return
        distributed.mean_statistics(self.network)
        finite = torch.stack([weight.isfinite().all() for weight in self.network.state_dict().values()]).all()
        if not finite:
            raise RunError(f"the weights exploded in epoch {self.epoch}: try a smaller --lr; not saved")
        rest = {"step": self.step, "sums": sums, "optimizer": self.optimizer.state_dict()}
        if self.moving_average:
            distributed.mean_statistics(self.moving_average.network)
            rest["moving_average"] = self.moving_average.network.state_dict()
        if distributed.rank() == 0:
            save_state(self.folder, {**self._contents("training state"), **rest}, self.last_is_damaged)
        distributed.anyone(False)  # none goes on, or ends, before it is written
        self.last_is_damaged, self.saved, self.saved_at = False, time.monotonic(), (self.epoch, self.step)

    def next_epoch(self):
        self.epoch, self.step, self.sums = self.epoch + 1, 0, None

    def is_untrained(self):
        return self.epoch == 1 and self.step == 0 and 0 not in self.recorded()

    def recorded(self):
        """The epochs that are on record."""
        return {record["epoch"] for record in self.history}

    def error_rates(self):
        """How the EER of the first list went, in words; nothing if it was never evaluated."""
        name = next((name for record in self.history[-1:] for name in record["lists"]), None)
        eers = {record["epoch"]: record["lists"][name]["eer"] for record in self.history if name in record["lists"]}
        untrained = eers.pop(0, None)
        if not eers:
            return ""
        before = "" if untrained is None else f"{untrained:.2f}% before training, "
        chosen, lowest = "", math.inf
        for record, kind, results in evaluated_models(self.history):
            if VALID in results and name in results and results[VALID]["eer"] < lowest:
                lowest = results[VALID]["eer"]
                chosen = f"; chosen on held-out speakers: epoch {record['epoch']}"
                chosen += f" ({kind})" * (kind != "model") + f", {results[name]['eer']:.2f}%"
        return f". EER on {name}: {before}{eers[max(eers)]:.2f}% after epoch {max(eers)}{chosen}"

    def record(self, summary, evaluated):
        """Put an epoch on record: its models if they were evaluated, metrics.jsonl, score.txt, the plot.

        evaluated: what the method of that name gives, or {}. best.model has the lowest EER on the held-out speakers
        (--valid_speakers), and is not written without. metrics.jsonl is what counts: once the epoch is in there, a
        continued run will not evaluate it again.
        """
        results = {kind: results for kind, (_, results) in evaluated.items()}
        record = {**summary, "lists": results.pop("model", {})}
        if results:
            record["averages"] = results
        before, self.history = self.history, [*self.history, record]
        if distributed.rank():
            return
        if record["epoch"] > 0:
            if not evaluated and self.epoch > self.args.max_epoch - self.args.average:
                evaluated = {"model": (self.network, {})}  # kept to be averaged at the end
            self._save_models(evaluated, lowest_valid_eer(before))
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in self.history))
        write_text(self.folder / "score.txt", "".join(score_lines(self.history)))
        draw_training(self.folder / "training.png", self.history)
        if self.args.tensorboard:
            write_tensorboard(self.folder / "tensorboard", record)

    def _save_models(self, evaluated, lowest):
        for kind, (network, results) in evaluated.items():
            model = {**self._contents("model"), "weights": network.state_dict(), "scores": results}
            save_checkpoint(self._model_file(kind, self.epoch), model)
            if VALID in results and results[VALID]["eer"] < lowest:
                lowest = results[VALID]["eer"]
                save_checkpoint(self.folder / "model" / "best.model", model)


# ---- what is written and shown ------------------------------------------------------------------------------------


def take_width(args, network):
    """Let the model decide C. InputError if the command line says otherwise."""
    width = getattr(network, "C", args.C)
    if "C" in args.given and width != args.C:
        raise InputError(f"--C {args.C}, but {args.initial_model} has C={width}: leave --C out")
    args.C = width


def describe(network):
    """A network in a few words."""
    millions = sum(weight.numel() for weight in network.parameters()) / 1e6
    return f"{type(network).__name__}{f' C={network.C}' if hasattr(network, 'C') else ''}, {millions:.1f} M weights"


def can_go_further(args):
    """Whether a larger --max_epoch changes nothing of the epochs before: not if schedules end with the last epoch."""
    return args.schedule == "step" and args.recipe == "customary" and not args.finetune_margin


def settings_of(args):
    return {name: value for name, value in vars(args).items() if name != "given"}


def provenance(args, lists):
    """All that a result rests on but the audio, for settings.json and results.json. lists: {path: SHA-256}."""
    return {"settings": settings_of(args), "sha256": lists, "versions": versions(), "command": sys.argv}


def versions():
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
        "processes": distributed.size(),
    }  # fmt: skip


def what_fits(args):
    """A line about a memory that was too small: how many crops at a time would fit, tried with the network alone."""
    if args.eval or args.compare or args.report:
        return "out of memory: another process may hold the rest of it"
    size, accumulate = distributed.size(), args.accumulate
    rows = args.batch_size // (accumulate * size)
    said = f"out of memory with {rows} crops at a time"
    device = choose_device(distributed.own_device(args.device))
    if _fits(rows, args, device):
        return f"{said}, though they fit alone: evaluation, or another process, took the rest of the memory"
    while args.batch_size % (2 * accumulate * size) == 0 and rows >= 4:
        rows, accumulate = rows // 2, 2 * accumulate
        if _fits(rows, args, device):
            return f"{said}; {rows} fit: --accumulate {accumulate} keeps the recipe"
    return f"{said}, and with {rows}: try --amp bf16, a smaller --C or --num_frames"


def _fits(rows, args, device):
    """Whether a step of so many crops does not run out of memory. All that it took is given back on return."""
    try:
        classes = (args.n_class or VOXCELEB2_SPEAKERS) * (len(SpeedPerturbation.FACTORS) if args.speed_perturb else 1)
        classifier = AAMsoftmax(classes, sub_centres=args.sub_centres, top_k=args.top_k)
        network = SpeakerNet(ECAPA_TDNN(C=args.C), classifier).to(device)
        _kept = [torch.empty_like(weight) for weight in network.parameters() for _ in range(3)]  # by optimizer and EMA
        crops = torch.randn(rows, args.num_frames * 160 + 240, device=device)
        label = torch.zeros(rows, dtype=torch.int64, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
            loss, _ = network(crops, label, torch.rand(rows, 4), torch.tensor(args.m, device=device))
        loss.backward()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True


def lowest_valid_eer(history):
    """The lowest EER on the held-out speakers so far; infinity if there is none."""
    eers = [results[VALID]["eer"] for *_, results in evaluated_models(history) if VALID in results]
    return min(eers, default=math.inf)


def write_tensorboard(folder, record):
    """Every number of a record as TensorBoard's scalars; the package is only needed by those who ask for it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        for name, value in record.items():
            if isinstance(value, float):
                writer.add_scalar(f"training/{name}", value, record["epoch"])
        for kind, results in {"model": record["lists"], **record.get("averages", {})}.items():
            for name, result in results.items():
                for metric in ("eer", "min_dcf_0.05", "min_dcf_0.01"):
                    writer.add_scalar(f"{name}/{metric}/{kind}", result[metric], record["epoch"])


def score_lines(history):
    """The lines of score.txt, one per evaluation; the EER is that of the first list, with its 95 % interval."""
    lowest = {}
    for record in (record for record in history if record["lists"] and record["epoch"] > 0):
        name, result = next(iter(record["lists"].items()))
        lowest[name] = min(lowest.get(name, math.inf), result["eer"])
        low, high = result["interval"]["eer"]
        yield (
            f"{record['epoch']} epoch, LR {record['learning_rate']:.6f}, LOSS {record['loss']:.3f}, "
            f"ACC {record['accuracy']:.2f}%, EER {result['eer']:.2f}%, bestEER {lowest[name]:.2f}%, "
            f"minDCF(0.05) {result['min_dcf_0.05']:.4f}, minDCF(0.01) {result['min_dcf_0.01']:.4f}, "
            f"EER95 {low:.2f}-{high:.2f}%, TRIALS {result['trials']}, LIST {result['list_sha256'][:8]}\n"
        )
