"""What the settings come to: do they agree, learning rate and margin at each step, the optimizer, bundles of flags.

Schedules are pure functions of the step, counted in epochs of crops, so that neither the number of GPUs nor an
interruption changes anything.
"""

import importlib.util
import math
import textwrap
from pathlib import Path

import torch

from tools import InputError
from training.state import has_state

# ---- schedules -------------------------------------------------------------------------------------------------------


def learning_rate(args, step, steps_per_epoch):
    """The learning rate of a step (0, 1, ...), counted over the whole run.

    args.schedule: "step", from lr down by the factor lr_decay each epoch; "exponential" or "cosine", from lr to
    lr_final over max_epoch epochs, by equal factors or along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017).
    In the first ``warmup`` epochs that is multiplied by a ramp up to 1.
    """
    done = step / (args.max_epoch * steps_per_epoch)
    if args.schedule == "step":
        rate = args.lr * args.lr_decay ** (step // steps_per_epoch)
    elif args.schedule == "exponential":
        rate = args.lr * (args.lr_final / args.lr) ** done
    else:
        rate = args.lr_final + (args.lr - args.lr_final) * (1 + math.cos(math.pi * done)) / 2
    return rate * min(1.0, (step + 1) / max(1.0, args.warmup * steps_per_epoch))


def margin(args, step, steps_per_epoch):
    """The margin of a step (0, 1, ...), in radians: 0 at first, m at last.

    args.margin_rise: (begin, end), epochs gone by when it begins to rise and when it is there; (0, 0): always m. As in
    wespeaker the rise is steep at first, and what is missing shrinks by equal factors, a thousandfold in all.
    """
    begin, end = args.margin_rise
    epochs = step / steps_per_epoch
    if epochs >= end:
        return args.m
    if epochs <= begin:
        return 0.0
    return args.m * (1 - 0.001 ** ((epochs - begin) / (end - begin)))


# ---- optimizer -------------------------------------------------------------------------------------------------------


OPTIMIZERS = "adam", "adamw", "sgd"


def make_optimizer(args, parameters, device):
    """Adam with an L2 penalty, AdamW (Loshchilov and Hutter, ICLR 2019) or SGD with Nesterov's momentum of 0.9."""
    # Fused: one pass over all weights instead of a dozen for each tensor; and a step can be skipped (take_step).
    settings = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": device.type != "mps"}
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **settings)
        for weight in optimizer.param_groups[0]["params"]:  # a first step that is skipped would leave it uninitialised
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer](parameters, **settings)


def take_step(optimizer, spoilt):
    """A step of the optimizer, which does nothing if ``spoilt`` is 1 and not 0: a 0-d float tensor, not waited for."""
    if optimizer.param_groups[0]["fused"]:
        optimizer.found_inf = spoilt  # what torch.amp.GradScaler tells an optimizer
        optimizer.step()
    elif not spoilt.item():
        optimizer.step()


# ---- bundles of flags ------------------------------------------------------------------------------------------------

# --recipe: what each sets, as published: the rates for a batch of 64, the epochs of warm-up and margin for max_epoch.
RECIPES = {
    "customary": {},
    "strong": {
        "max_epoch": 150, "optimizer": "sgd", "lr": 0.1, "lr_final": 5e-5, "schedule": "exponential", "warmup": 6.0,
        "weight_decay": 1e-4, "m": 0.2, "s": 32.0, "margin_rise": [20.0, 40.0], "speed_perturb": True, "average": 10,
        "sub_centres": 3, "top_k": 5,
    },
}  # fmt: skip

# --finetune_margin: the second stage of training (Thienpondt et al., "The IDLab VoxSRC-20 submission", ICASSP 2021).
FINETUNE = {
    "max_epoch": 5, "num_frames": 600, "optimizer": "sgd", "lr": 1e-4, "lr_final": 2.5e-5, "schedule": "exponential",
    "warmup": 1.0, "weight_decay": 1e-4, "m": 0.5, "margin_rise": [0.0, 0.0], "speed_perturb": False, "average": 0,
    "top_k": 0,
}  # fmt: skip

SOURCES = {
    "--recipe customary": "the defaults, which are TaoRuijie's recipe",
    "--recipe strong": "wespeaker's ECAPA-TDNN; sub-centres and the penalty of the nearest as in asv-subtools",
    "--finetune_margin": "wespeaker's second stage",
}


def bundle(name, given, args):
    """{flag: value} that "customary", "strong" or "finetune_margin" sets, for the flags that the user has not given.

    given: names of the flags that were given; args: their values, of which max_epoch and batch_size count for others:
    learning rates are in proportion to the batch, the epochs of warm-up and margin to max_epoch, and no more than a
    fifth of the epochs are averaged. InputError for another optimizer without a learning rate of its own.
    """
    published = {**RECIPES, "finetune_margin": FINETUNE}[name]
    if not published:
        return {}
    if "optimizer" in given and args.optimizer != published["optimizer"] and not {"lr", "lr_final"} <= given:
        flag = "--finetune_margin" if name == "finetune_margin" else f"--recipe {name}"
        raise InputError(
            f"{flag} has learning rates for {published['optimizer']}: with --optimizer {args.optimizer} give --lr and "
            "--lr_final"
        )
    max_epoch = args.max_epoch if "max_epoch" in given else published["max_epoch"]
    batches, share = args.batch_size / 64, max_epoch / published["max_epoch"]
    settings = {
        **published,
        "lr": published["lr"] * batches,
        "lr_final": published["lr_final"] * batches,
        "warmup": published["warmup"] * share,
        "margin_rise": [epochs * share for epochs in published["margin_rise"]],
        "average": min(published["average"], max(2, max_epoch // 5), max_epoch),
    }
    return {flag: value for flag, value in settings.items() if flag not in given}


def describe_bundles():
    """Lines for --help: what each bundle sets, and whose numbers they are."""
    bundles = {**{f"--recipe {name}": flags for name, flags in RECIPES.items()}, "--finetune_margin": FINETUNE}
    lines = ["bundles of flags (what is given beside them counts more):"]
    for name, flags in bundles.items():
        lines.append(f"  {name}: {SOURCES[name]}")
        words = " ".join(in_words(flag, value) for flag, value in flags.items())
        lines += textwrap.wrap(words, 120, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    rules = (
        "The rates are for --batch_size 64 and in proportion to it, --warmup and --margin_rise for that --max_epoch "
        "and in proportion to it; --average is at most a fifth of it, but not below 2."
    )
    return "\n".join([*lines, *textwrap.wrap(rules, 120, initial_indent="  ", subsequent_indent="  ")])


def in_words(flag, value):
    """As on the command line."""
    if isinstance(value, bool):
        return f"--{flag}" if value else f"(no --{flag})"
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{flag}", *(each if isinstance(each, str) else f"{each:g}" for each in values)])


# ---- do the settings agree? ------------------------------------------------------------------------------------------


def check_settings(args):
    """InputError naming the flag, unless the flags agree and their numbers make sense."""
    _check_mode(args)
    _check_numbers(args)


def _check_mode(args):
    modes = [name for name in ("eval", "demo", "compare", "report", "finetune_margin") if getattr(args, name)]
    if len(modes) > 1:
        raise InputError(f"--{' and --'.join(modes)} are different things to do: choose one")
    if args.finetune_margin and args.recipe != "customary":
        raise InputError(f"--recipe {args.recipe} and --finetune_margin are bundles for two stages: choose one")
    begun = not args.eval and has_state(args.save_path)  # its weights are in there
    if args.initial_model and not begun and not Path(args.initial_model).exists():
        raise InputError(f"--initial_model {args.initial_model} does not exist")
    if args.eval and not args.initial_model:
        raise InputError("--eval needs --initial_model FILE, the model to evaluate")
    if args.finetune_margin and not args.initial_model and not begun:
        raise InputError("--finetune_margin needs --initial_model FILE, the model to go on from")
    if (args.eval or args.compare) and not args.eval_list:
        raise InputError(f"--{modes[0]} needs --eval_list with at least one trial list")
    if args.compare and len(args.eval_list) > 1:
        raise InputError("--compare needs one --eval_list, that of both score files")
    if args.as_norm | args.calibrate and not args.eval:
        raise InputError(f"--{'as_norm' if args.as_norm else 'calibrate'} is part of an evaluation: give --eval")
    without = [name for name in ("cohort", "top_n") if name in args.given and not (args.as_norm or args.calibrate)]
    if without:
        raise InputError(f"--{without[0]} is for the scores of --eval --as_norm and --calibrate: give one of them")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs a package that is not here: pip install tensorboard")


def _check_numbers(args):
    # A batch of 1 has no statistics for batch norm.
    least = {"num_frames": 2, "max_epoch": 1, "batch_size": 2, "accumulate": 1, "test_step": 1, "n_cpu": 1,
             "n_class": 1, "seed": 0, "lr_decay": 0, "weight_decay": 0, "m": 0, "bank_mb": 1, "warmup": 0, "clip": 0,
             "ema": 0, "average": 0, "valid_speakers": 0, "top_n": 2, "sub_centres": 1, "top_k": 0,
             "save_minutes": 0}
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and not minimum <= value < math.inf:
            raise InputError(f"--{name} must be at least {minimum}, not {value}")
    for name in ("lr", "lr_final", "s"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} must be more than 0, not {getattr(args, name)}")
    ends = args.schedule != "step"  # the learning rate at --lr_final
    useless = {"lr_final": not ends, "lr_decay": ends}
    for name in ("lr_final", "lr_decay"):
        if useless[name] and name in args.given:
            raise InputError(f"--{name} has no part in --schedule {args.schedule}: leave it out, or choose another")
    if ends and args.lr_final > args.lr:
        raise InputError(f"--lr_final {args.lr_final} is more than --lr {args.lr}: the learning rate would rise")
    if args.lr_decay > 1:
        raise InputError(f"--lr_decay must be at most 1, not {args.lr_decay}")
    if args.m >= math.pi / 2:
        raise InputError(f"--m must be less than pi/2, not {args.m}: an angle in radians, customarily 0.2 to 0.5")
    if args.top_k and not args.m:
        raise InputError("--top_k needs a margin: its penalty rises with --m, which is 0")
    if args.warmup > args.max_epoch:
        raise InputError(f"--warmup {args.warmup} is more than the {args.max_epoch} epochs that there will be")
    if args.ema >= 1:
        raise InputError(f"--ema must be less than 1, not {args.ema}: the share of the average that stays")
    if not 0 <= args.margin_rise[0] <= args.margin_rise[1] < math.inf:
        raise InputError(f"--margin_rise must be two epochs, the second not before the first, not {args.margin_rise}")
    if args.margin_rise[1] > args.max_epoch:
        raise InputError(f"--margin_rise ends in epoch {args.margin_rise[1]:g}, but there will be {args.max_epoch}")
    if args.average == 1:
        raise InputError("--average 1 is the last model itself: give 2 or more, or 0")
    if args.average > args.max_epoch:
        raise InputError(f"--average {args.average} is more than the {args.max_epoch} epochs that there will be")
    if args.seed >= 2**63:
        raise InputError(f"--seed must be less than 2**63, not {args.seed}")
    if args.C < 8 or args.C % 8:
        raise InputError(f"--C must be a multiple of 8, not {args.C}")
