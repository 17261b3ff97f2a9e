"""What the settings of a training run come to: learning rate and margin at each step, the optimizer, bundles of flags.

Schedules are pure functions of the step, counted in epochs of crops, so that neither the number of GPUs nor an
interruption changes anything.
"""

import math
import textwrap

import torch

from tools import InputError

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


def make_optimizer(args, parameters, device):
    """Adam with an L2 penalty, AdamW (Loshchilov and Hutter, ICLR 2019) or SGD with Nesterov's momentum of 0.9."""
    # Fused: one pass over all weights instead of a dozen for each tensor.
    settings = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": device.type != "mps"}
    if args.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **settings)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer](parameters, **settings)


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
        "average": min(published["average"], max(2, max_epoch // 5)),
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
