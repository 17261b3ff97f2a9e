"""Settings: the command line and recipe files resolved once and checked; what a resumed or pretrained run changes."""

import argparse
import importlib.util
import math
import shlex
from pathlib import Path

from dataLoader import SPEEDS
from inference.hub import local_model
from model import ECAPA_TDNN
from tools import InputError, count, rank, read_text, size
from training.state import has_state

DATA_FLAGS = {"train_list", "train_path", "eval_list", "eval_path", "musan_path", "rir_path"}

# What a resumed run may change: where things lie, how often it evaluates, how long it trains, how it is computed.
FREE_TO_CHANGE = DATA_FLAGS | {
    "save_path", "max_epoch", "test_step", "n_cpu", "device", "compile", "no_compile", "accumulate", "tensorboard",
    "wandb", "save_minutes", "paths_anywhere", "no_check",
}  # fmt: skip

RESUME = "to resume it use the same, for a new run another --save_path"


class Settings(argparse.Namespace):
    """Read-only settings. ``given``: names of the flags on the command line."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __setattr__(self, name, value):
        raise AttributeError(f"settings are read-only: use replace({name}=...)")

    def replace(self, **changes):
        """A copy with other values."""
        return Settings(**{**vars(self), **changes})

    def as_dict(self):
        """{flag: value}, as checkpoints and settings.json have them."""
        return {name: value for name, value in vars(self).items() if name != "given"}


def read_settings(parser, arguments, demo=None):
    """Command line (list of strings) -> Settings, checked. Raises InputError naming the flag.

    @FILE stands for the flags in that file. demo: {flag: default} that replace the parser's with --demo. What --recipe
    and --finetune_margin set is filled in by ``with_recipe``.
    """
    arguments = [each for one in arguments for each in (file_arguments(one[1:]) if one.startswith("@") else [one])]
    given = {argument[2:].split("=")[0] for argument in arguments if argument.startswith("--")}
    if "demo" in given:
        parser.set_defaults(**demo)
    args = parser.parse_args(arguments)
    if args.demo and not has_state(args.save_path):  # a resumed one stays as it began
        given |= set(demo) - ({"C"} if args.initial_model else set())
    args.eval_list = [path for path in args.eval_list if path]  # '' for none, as for other paths
    if "save_path" not in given and args.eval:
        args.save_path = "exps/eval"  # never over an experiment's own scores
    settings = Settings(**vars(args), given=given)
    _check_mode(settings)
    _check_numbers(settings)
    return settings


# ---- sizes and recipes -----------------------------------------------------------------------------------------------

LARGE_LIST = 100_000  # utterances: from here on the customary sizes, which were published for a million
STRONG_EPOCHS = 150  # of the published strong recipe
LARGE_RUN = 10_000_000  # crops, of all epochs: from here on --recipe strong is the published one, for 164 million
SMALL_RUN = 1_000_000  # crops of strong_small.args, which many epochs do not wear out (docs/results.md)
FINE_TUNING = 6_000  # crops: with more the encoder forgets what it knew of other speakers (docs/results.md)
EVALUATIONS = 10  # of a run: an epoch of a small list takes less time than an evaluation


def with_sizes(parser, args, train_list, device):
    """Settings with the sizes that fit a TrainingList, where none were given, and with the recipe for them.

    From LARGE_LIST utterances on, these are the defaults. Prints what was chosen for a smaller list.
    """
    utterances, sizes = len(train_list), {}
    if utterances < LARGE_LIST:
        parts, batch_size = args.accumulate * size(), 32 if utterances < 10_000 else 64
        sizes = {"C": 64 if device.type == "cpu" else 512, "batch_size": max(2, -(-batch_size // parts)) * parts}
        if args.initial_model:
            del sizes["C"]  # the model has it
            if fine_tunes(args):
                epochs = min(20, max(2, round(FINE_TUNING / utterances)))
                sizes |= {"max_epoch": epochs, "lr": 1e-4, "freeze_bn": "on"}
        elif args.recipe == "strong" and utterances * STRONG_EPOCHS < LARGE_RUN:
            sizes["max_epoch"] = min(300, max(80, round(SMALL_RUN / utterances)))
        fixed = args.given - ({"freeze_bn"} if args.freeze_bn == "auto" else set())
        sizes = {name: each for name, each in sizes.items() if name not in fixed}
    args = with_recipe(parser, args.replace(**sizes), utterances, sizes)
    if utterances < LARGE_LIST and "test_step" not in args.given and args.max_epoch >= 2 * EVALUATIONS:
        sizes["test_step"] = args.max_epoch // EVALUATIONS
        args = args.replace(test_step=sizes["test_step"])
    if sizes and rank() == 0:
        chosen = ", ".join(f"--{name} {getattr(args, name)}" for name in sizes)
        few = f"{count(utterances, 'utterance')} of {count(len(train_list.speakers), 'speaker')}"
        better = "; with so few, first try a published model, and fine-tune it (--initial_model)"
        print(f"{few}: {chosen}{better * (utterances < 10_000 and not args.initial_model)}")
    return args


def fine_tunes(args):
    """Whether a model is fine-tuned, by neither --finetune_margin nor another recipe."""
    return bool(args.initial_model) and not args.finetune_margin and args.recipe == "customary"


def with_recipe(parser, args, utterances, chosen=()):
    """Settings with what --recipe and --finetune_margin set, for this number of training utterances.

    chosen: names of settings that stay as they are, as if they had been given.
    """
    name = "finetune_margin" if args.finetune_margin else args.recipe
    given = args.given | set(chosen)
    if name == "strong" and utterances * (args.max_epoch if "max_epoch" in given else STRONG_EPOCHS) < LARGE_RUN:
        name = "strong_small"
    if name != "customary":
        args = args.replace(**recipe_settings(parser, name, args, given))
        if rank() == 0:
            print(f"recipe: training/{name}.args")
    _check_schedule(args)
    return args


def file_arguments(path):
    """The arguments in a file of flags, one or several a line, with # comments."""
    return shlex.split(read_text(path), comments=True)


def recipe_settings(parser, name, args, given):
    """{flag: value} of training/<name>.args for the flags that were not given, scaled to this run.

    Learning rates, given for a batch of 64, are proportional to the batch size, with Adam to its square root; epochs of
    warm-up and margin to max_epoch, and at most a fifth of the epochs is averaged. InputError for another optimizer
    without learning rates of its own.
    """
    arguments = file_arguments(Path(__file__).parent / f"{name}.args")
    flags = [argument[2:] for argument in arguments if argument.startswith("--")]
    published = vars(parser.parse_args(arguments))
    if "optimizer" in given and args.optimizer != published["optimizer"] and not {"lr", "lr_final"} <= given:
        rest = f"those of training/{name}.args are for {published['optimizer']}"
        raise InputError(f"--optimizer {args.optimizer} needs --lr and --lr_final: {rest}")
    max_epoch = args.max_epoch if "max_epoch" in given else published["max_epoch"]
    batches, share = args.batch_size / 64, max_epoch / published["max_epoch"]
    if published["optimizer"] != "sgd":
        batches = math.sqrt(batches)
    scaled = {
        **published,
        "lr": published["lr"] * batches,
        "lr_final": published["lr_final"] * batches,
        "warmup": published["warmup"] * share,
        "margin_rise": [epochs * share for epochs in published["margin_rise"]],
        "average": min(published["average"], max(2, max_epoch // 5), max_epoch),
    }
    return {flag: scaled[flag] for flag in flags if flag not in given}


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_mode(args):
    modes = [name for name in ("eval", "demo", "finetune_margin") if getattr(args, name)]
    if len(modes) > 1:
        raise InputError(f"--{' and --'.join(modes)} exclude each other: choose one")
    if args.demo and args.given & DATA_FLAGS:
        raise InputError(f"--demo generates its own data: remove --{' --'.join(sorted(args.given & DATA_FLAGS))}")
    if args.finetune_margin and args.recipe != "customary":
        raise InputError(f"--recipe {args.recipe} and --finetune_margin are two stages of training: choose one")
    started = not args.eval and has_state(args.save_path)  # the weights are in there
    if args.initial_model and not started:
        local_model(args.initial_model, "--initial_model")  # before all else: it may have to be downloaded
    if args.initial_classifier and not args.initial_model:
        raise InputError("--initial_classifier needs --initial_model FILE")
    if not args.initial_model and (args.eval or (args.finetune_margin and not started)):
        raise InputError(f"--{modes[0]} needs --initial_model FILE")
    if args.eval and has_state(args.save_path):
        raise InputError(f"--save_path {args.save_path} holds a run, whose scores --eval would replace: choose another")
    if args.eval and not args.eval_list:
        raise InputError("--eval needs --eval_list with at least one trial list")
    if (args.as_norm or args.calibrate) and not args.eval:
        raise InputError(f"--{'as_norm' if args.as_norm else 'calibrate'} is part of an evaluation: add --eval")
    for name in {"cohort", "top_n"} & args.given:
        if not (args.as_norm or args.calibrate):
            raise InputError(f"--{name} needs --eval with --as_norm or --calibrate")
    for package in ("tensorboard", "wandb"):
        if getattr(args, package) and importlib.util.find_spec(package) is None:
            raise InputError(f"--{package} needs a package that is not installed: pip install {package}")


def _check_numbers(args):
    smallest = {
        "num_frames": 2, "max_epoch": 1, "batch_size": 2, "accumulate": 1, "test_step": 1, "n_cpu": 1, "n_class": 1,
        "seed": 0, "lr_decay": 0, "weight_decay": 0, "m": 0, "bank_mb": 1, "warmup": 0, "clip": 0, "average": 0,
        "valid_speakers": 0, "top_n": 2, "sub_centres": 1, "top_k": 0, "save_minutes": 0,
    }  # fmt: skip
    for name, minimum in smallest.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            raise InputError(f"--{name} must be at least {minimum}, not {value}")
    for name in ("lr", "lr_final", "s"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} must be more than 0, not {getattr(args, name)}")
    if args.m >= math.pi / 2:
        raise InputError(f"--m must be less than pi/2, not {args.m}: it is in radians, customarily 0.2 to 0.5")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")


def _check_schedule(args):
    unused = "lr_final" if args.schedule == "step" else "lr_decay"
    if unused in args.given:
        raise InputError(f"--{unused} has no effect with --schedule {args.schedule}: remove it")
    start, end = args.margin_rise
    if not 0 <= start <= end <= args.max_epoch:
        raise InputError(f"--margin_rise {start:g} {end:g}: must be 0 <= start <= end <= --max_epoch {args.max_epoch}")
    if args.average == 1 or args.average > args.max_epoch:
        raise InputError(f"--average must be 0 or from 2 to --max_epoch {args.max_epoch}, not {args.average}")


# ---- what the data, a training state or a pretrained model decide ----------------------------------------------------


def schedule_is_open(args):
    """Whether a larger --max_epoch leaves the earlier epochs as they are: not if a schedule ends with the last one."""
    return args.schedule == "step" and args.recipe == "customary" and not args.finetune_margin


def with_classes(args, train_list):
    """Settings with n_class, the number of training speakers unless it was given."""
    speakers = len(train_list.speakers)
    if speakers < 2:
        raise InputError(f"{train_list.path} has a single speaker: classification needs at least two")
    if args.n_class is not None and args.n_class < speakers:
        raise InputError(f"--n_class {args.n_class}, but {train_list.path} has {speakers} speakers")
    return args.replace(n_class=args.n_class or speakers)


def of_resumed_run(args, state):
    """Settings that continue a training state: what is not given stays, but for --device and paths that are gone.

    InputError for what would make it another experiment.
    """
    before = state["settings"]
    paths = {name: [each] if isinstance(each, str) else each for name, each in before.items() if name in DATA_FLAGS}
    gone = {name for name, each in paths.items() if not all(Path(path).exists() for path in each)}  # '' exists
    now_given = args.given - ({"freeze_bn"} if args.freeze_bn == "auto" else set())
    now_given |= {"compile", "no_compile"} if args.compile or args.no_compile else set()
    kept = (before.keys() & vars(args).keys()) - now_given - gone - {"save_path", "device"}  # another machine's device
    args = args.replace(**{name: before[name] for name in kept})
    args = args.replace(system=args.system or before.get("system", "ours"))
    free = FREE_TO_CHANGE - (set() if schedule_is_open(args) else {"max_epoch"})
    if args.max_epoch < state["epoch"]:
        raise InputError(f"{args.save_path} is in epoch {state['epoch']}, past --max_epoch {args.max_epoch}: {RESUME}")
    changed = []
    for name, value in before.items():
        now = getattr(args, name, value)  # flags that have gone are ignored
        switched = name in ("musan_path", "rir_path") and bool(now) != bool(value)
        if switched or (name not in free and now != value):
            changed.append(f"--{name} {value!r}, not {now!r}")
    if added := sorted((args.given & vars(args).keys()) - before.keys() - free):
        raise InputError(f"{args.save_path} was started with a version without --{added[0]}: leave it out")
    if changed:
        raise InputError(f"{args.save_path} was started with {'; '.join(changed)}: {RESUME}")
    return args


def of_pretrained_run(args, initial, train_list, held_out):
    """Settings with what a Pretrained model decides: its system and width; scale and sub-centres for its speakers."""
    if not isinstance(initial.network, ECAPA_TDNN):
        raise InputError(f"--initial_model {args.initial_model}: only ECAPA-TDNNs can be trained further")
    known = set(initial.trained_on()) & set(held_out)
    if known:
        known = f"{count(len(known), 'speaker')}, such as {min(known)}, that {args.initial_model} was trained on"
        raise InputError(f"--valid_speakers {args.valid_speakers} holds out {known}: use that of its run")
    wanted, args = args, with_width(args, initial.network).replace(system=initial.system)
    if wanted.keep_spectrum and not args.keep_spectrum and rank() == 0:
        print(f"without --keep_spectrum, since {args.initial_model} was trained so")
    if initial.classifier is not None and same_speakers(initial, train_list, args):
        sub_centres = initial.classifier.shape[1] if initial.classifier.dim() == 3 else 1
        kept = {"sub_centres": sub_centres, "s": initial.scale or args.s}
        args = args.replace(**{name: value for name, value in kept.items() if name not in args.given})
    return args


def same_speakers(initial, train_list, args):
    """Whether a Pretrained model's classifier is of a list's speakers: by name, or on the word of --initial_classifier.

    Files of other systems have no names. Their classes, too, are those of all speakers at their own speed, then slower.
    """
    if not args.initial_classifier:  # numbers may be names of other people: their folders tell
        known = train_list.speaker_names() <= set(initial.trained_on())
        return initial.speakers == train_list.speakers and known
    speakers = len(train_list.speakers)
    return len(initial.speakers or initial.classifier) in (speakers, SPEEDS * speakers * (not initial.speakers))


def with_width(args, network):
    """Settings with the channels and the features of a loaded network; InputError if another --C was given."""
    width = getattr(network, "C", args.C)
    if "C" in args.given and width != args.C:
        raise InputError(f"--C {args.C}, but {args.initial_model} has C={width}: remove --C")
    keep_spectrum = getattr(network, "keep_spectrum", False)
    if "keep_spectrum" in args.given and not keep_spectrum:
        raise InputError(f"--keep_spectrum, but {args.initial_model} was trained without it: remove it")
    return args.replace(C=width, keep_spectrum=keep_spectrum)
