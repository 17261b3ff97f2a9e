"""Schedules against torch's own schedulers and loops; optimizers against their definitions; what the recipes set."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

import trainSpeakerNet
from corpora.lists import TrainingList
from tools import InputError
from training.run import make_optimizer
from training.settings import Settings, of_resumed_run, read_settings, recipe_settings, with_recipe, with_sizes
from trainSpeakerNet import learning_rate
from trainSpeakerNet import margin_at as margin

STEPS = 7  # of an epoch


def settings(**changes):
    return Namespace(**{
        "optimizer": "adam", "lr": 0.02, "lr_decay": 0.97, "lr_final": 0.0005, "schedule": "step", "warmup": 0.0,
        "max_epoch": 12, "weight_decay": 2e-5, "m": 0.2, "margin_rise": [0.0, 0.0], "batch_size": 400, **changes,
    })  # fmt: skip


def rates(args):
    return np.array([learning_rate(args, step, STEPS) for step in range(args.max_epoch * STEPS)])


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["step", "exponential", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 1.5])
def test_learning_rates_are_those_of_torchs_schedulers(schedule, warmup):
    args = settings(schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    total = args.max_epoch * STEPS
    scheduler = {
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, STEPS, 0.97),
        "exponential": lambda: torch.optim.lr_scheduler.ExponentialLR(optimizer, (0.0005 / 0.02) ** (1 / total)),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=0.0005),
    }[schedule]()
    expected = []
    for step in range(total):
        ramp = 1.0 if step >= warmup * STEPS else step / (1.5 * STEPS)
        expected.append(optimizer.param_groups[0]["lr"] * ramp)
        optimizer.step()
        scheduler.step()
    found = rates(args)
    assert found == pytest.approx(np.array(expected), rel=1e-9)
    rising = int(warmup * STEPS)
    assert (np.diff(found[:rising]) > 0).all() and (np.diff(found[rising + 1 :]) <= 0).all()
    if schedule != "step":
        assert 0.0005 < found[-1] < 0.0005 * (1.06 if schedule == "exponential" else 1.02)


def test_margin_rises_as_wespeakers_does():
    args = settings(margin_rise=[2.0, 5.0])
    found = [margin(args, step, STEPS) for step in range(12 * STEPS)]
    missing, expected = 0.2, []
    for step in range(12 * STEPS):
        if step > 2 * STEPS:
            missing *= 0.001 ** (1 / (3 * STEPS))
        expected.append(0.2 - missing if step < 5 * STEPS else 0.2)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[: 2 * STEPS + 1] == [0.0] * (2 * STEPS + 1) and found[5 * STEPS :] == [0.2] * (7 * STEPS)
    assert (np.diff(found[2 * STEPS : 5 * STEPS + 1]) > 0).all()


@pytest.mark.parametrize("at", [0.0, 3.0])
def test_a_margin_may_come_at_once(at):
    args = settings(margin_rise=[at, at])
    found = [margin(args, step, STEPS) for step in range(5 * STEPS)]
    assert found == [0.0] * int(at * STEPS) + [0.2] * (5 * STEPS - int(at * STEPS))


@pytest.mark.parametrize("schedule", ["step", "exponential", "cosine"])
def test_schedules_count_crops(schedule):
    """Steps of 64 crops, or half as many of 128: the same where the same crops are done."""
    args = settings(schedule=schedule, warmup=2.0, margin_rise=[1.5, 4.0])
    for step in range(12 * STEPS):
        assert margin(args, step, STEPS) == pytest.approx(margin(args, 2 * step, 2 * STEPS), rel=1e-12)
    fine = [learning_rate(args, step, 2 * STEPS) for step in range(24 * STEPS)]
    assert rates(args)[2 * STEPS :] == pytest.approx(fine[4 * STEPS :: 2], rel=1e-12)
    ramp = settings(warmup=2.0, lr_decay=1.0)
    fine = [learning_rate(ramp, step, 2 * STEPS) for step in range(24 * STEPS)]
    assert rates(ramp) == pytest.approx(fine[::2], rel=1e-12)


# ---- optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [
    ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD),
])  # fmt: skip
def test_optimizers(name, kind):
    weight = torch.nn.Parameter(torch.ones(3))
    ours = make_optimizer(settings(optimizer=name, weight_decay=0.1), [weight], torch.device("cpu"))
    assert type(ours) is kind and (ours.defaults["lr"], ours.defaults["weight_decay"]) == (0.02, 0.1)
    assert name != "sgd" or (ours.defaults["momentum"], ours.defaults["nesterov"]) == (0.9, True)
    assert ours.defaults["fused"] is True
    assert make_optimizer(settings(optimizer=name), [weight], torch.device("mps")).defaults["fused"] is False


# ---- recipes ---------------------------------------------------------------------------------------------------------


def resolved(*flags):
    return read_settings(trainSpeakerNet.build_parser(), list(map(str, flags)), trainSpeakerNet.DEMO)


def of_recipe(name, given=(), **values):
    return recipe_settings(trainSpeakerNet.build_parser(), name, settings(**values), set(given))


def for_list(utterances, *flags, speakers=10, device="cpu"):
    """The settings of these flags for a training list of this size."""
    train_list = TrainingList.of("list.txt", *zip(*((f"s{i % speakers}", f"{i}.wav") for i in range(utterances))))
    return with_sizes(trainSpeakerNet.build_parser(), resolved(*flags), train_list, torch.device(device))


def test_settings_are_read_only():
    args = resolved("--lr", 0.1)
    with pytest.raises(AttributeError, match="read-only"):
        args.lr = 0.2
    assert (args.replace(lr=0.2).lr, args.lr, args.given) == (0.2, 0.1, {"lr"})
    assert isinstance(args, Settings) and "given" not in args.as_dict()


def test_a_file_of_flags(tmp_path):
    (tmp_path / "my.args").write_text("# mine\n--lr 0.5  # large\n--margin_rise 1 2\n")
    args = resolved(f"@{tmp_path}/my.args", "--max_epoch", 7)
    assert (args.lr, args.margin_rise, args.max_epoch) == (0.5, [1, 2], 7)
    assert args.given == {"lr", "margin_rise", "max_epoch"}


def test_strong_has_wespeakers_schedule_at_the_size_of_voxceleb2():
    """Against the formulas of wespeaker/utils/schedulers.py, whose iterations count from 0."""
    args = with_recipe(trainSpeakerNet.build_parser(), resolved("--recipe", "strong", "--batch_size", 256), 1_092_009)
    steps = 1_092_009 // 256
    for step in [0, 1, 2, *range(500, 150 * steps, 7919), 19 * steps, 39 * steps - 1, 39 * steps, 150 * steps - 1]:
        ramp = min(1.0, step / (6 * steps))
        rate = 256 / 64 * ramp * 0.1 * math.exp(step / (150 * steps) * math.log(0.00005 / 0.1))
        assert learning_rate(args, step, steps) == pytest.approx(rate, rel=1e-12)
        rising = (step - 19 * steps) / (20 * steps)
        ratio = 1 - math.exp(rising * math.log(1e-3 / (1 + 1e-6))) if 0 <= rising < 1 else float(rising >= 1)
        assert margin(args, step, steps) == pytest.approx(0.2 * ratio, abs=1e-6)
    assert (args.optimizer, args.weight_decay, args.s, args.average) == ("sgd", 1e-4, 32, 10)


def test_sizes_that_fit_the_list(capsys):
    def sizes(args):
        return args.C, args.batch_size, args.max_epoch

    large = for_list(100_000)
    assert (sizes(large), capsys.readouterr().out) == ((1024, 400, 80), "")
    small = for_list(306, speakers=48)
    assert small.C < 1024 and 306 / small.batch_size >= 9 and small.max_epoch == 80
    assert "306 utterances of 48 speakers: --C 64, --batch_size 32, --test_step 8;" in capsys.readouterr().out
    flags = ["--recipe", "strong"], ["--max_epoch", 19], ["--test_step", 1]
    assert [large.test_step, *(for_list(306, *each).test_step for each in flags)] == [1, 30, 1, 1]  # ten evaluations
    assert for_list(306, device="cuda").C > small.C
    strong = [for_list(n, "--recipe", "strong").max_epoch for n in (306, 5000, 20_000, 70_000)]
    assert strong == [300, 200, 80, 150]  # a million crops, within limits; the last has enough for wespeaker's
    assert sizes(for_list(3000, "--C", 32, "--batch_size", 16, "--max_epoch", 3)) == (32, 16, 3)
    margin = for_list(3000, "--finetune_margin", "--initial_model", __file__)
    assert (margin.max_epoch, margin.freeze_bn) == (5, "auto")


def test_fine_tuning_on_a_small_list_is_short_and_gentle(capsys):
    tuned = for_list(300, "--initial_model", __file__)
    assert (tuned.lr, tuned.freeze_bn, tuned.batch_size) == (1e-4, "on", 32)
    assert tuned.max_epoch == 20 and for_list(3000, "--initial_model", __file__).max_epoch == 2
    assert "--lr 0.0001, --freeze_bn on" in capsys.readouterr().out
    assert for_list(300, "--initial_model", __file__, "--lr", 0.01, "--freeze_bn", "off").lr == 0.01
    assert for_list(100_000, "--initial_model", __file__).freeze_bn == "auto"


def test_a_resumed_run_keeps_what_is_not_given():
    before = resolved("--lr", 0.01, "--recipe", "strong", "--system", "taoruijie").as_dict() | {"amp": "off"}
    before |= {"train_list": __file__, "eval_list": [__file__], "rir_path": "", "train_path": "/has/moved"}
    before |= {"accumulate": 4, "no_check": True, "no_compile": True}
    state = {"settings": before, "epoch": 1}
    for flags in ([], ["--lr", 0.01, "--system", "taoruijie"], ["--n_cpu", 2]):
        found = of_resumed_run(resolved(*flags), state)
        assert (found.lr, found.recipe, found.system, found.amp) == (0.01, "strong", "taoruijie", "off")
        assert found.n_cpu == (2 if "--n_cpu" in flags else 4)
        assert (found.train_list, found.eval_list, found.rir_path) == (__file__, [__file__], "")
        assert found.train_path == resolved().train_path
        assert (found.accumulate, found.no_check, found.no_compile) == (4, True, True)
    assert not of_resumed_run(resolved("--compile"), state).no_compile
    with pytest.raises(InputError, match=r"--lr 0\.01, not 0\.02"):
        of_resumed_run(resolved("--lr", 0.02), state)
    del before["top_k"]
    assert of_resumed_run(resolved(), state).top_k == 0
    with pytest.raises(InputError, match="a version without --top_k: leave it out"):
        of_resumed_run(resolved("--top_k", 5), state)


def test_strong_knows_the_number_of_crops():
    published, small = (of_recipe(name, {"max_epoch"}, max_epoch=80) for name in ("strong", "strong_small"))
    for utterances, flags, expected in [
        (3000, [], small), (3000, ["--max_epoch", 4000], published), (100_000, [], published),
        (100_000, ["--max_epoch", 80], small),
    ]:  # fmt: skip
        args = for_list(utterances, "--recipe", "strong", *flags)
        assert args.optimizer == expected["optimizer"] and args.keep_spectrum == expected.get("keep_spectrum", False)
        assert args.sub_centres == expected.get("sub_centres", 1)
    few = for_list(3000, "--recipe", "strong", "--max_epoch", 8)
    assert few.margin_rise == pytest.approx([0, 6.4]) and few.lr == pytest.approx(0.004 / math.sqrt(2))


def test_strong_follows_the_batch_and_the_number_of_epochs():
    found = of_recipe("strong", {"max_epoch", "batch_size"}, max_epoch=30, batch_size=512)
    assert "max_epoch" not in found and "batch_size" not in found
    assert (found["lr"], found["lr_final"]) == pytest.approx((0.8, 4e-4))
    assert found["warmup"] == pytest.approx(6 / 5) and found["margin_rise"] == pytest.approx([3.8, 7.8])
    averages = [of_recipe("strong", {"max_epoch"}, max_epoch=n)["average"] for n in (4, 15, 45, 50, 300)]
    assert averages == [2, 3, 9, 10, 10]
    assert of_recipe("strong", max_epoch=30)["warmup"] == 6  # the default max_epoch was not chosen


def test_large_margin_fine_tuning():
    found = of_recipe("finetune_margin", batch_size=128)
    assert (found["lr"], found["lr_final"]) == pytest.approx((2e-4, 5e-5))
    assert (found["m"], found["num_frames"], found["max_epoch"], found["warmup"]) == (0.5, 600, 5, 1)
    assert not {"sub_centres", "s"} & found.keys()  # the model has them


@pytest.mark.parametrize("name", ["strong", "finetune_margin"])
def test_what_was_given_stays(name):
    everything = set(of_recipe(name))
    for flag in everything:
        assert everything - set(of_recipe(name, {flag, "lr", "lr_final"})) == {flag, "lr", "lr_final"}
    assert of_recipe(name, everything) == {}


def test_rates_are_not_for_another_optimizer():
    with pytest.raises(InputError, match=r"adamw needs --lr and --lr_final: those of training/strong\.args"):
        of_recipe("strong", {"optimizer", "lr"}, optimizer="adamw")
    assert "weight_decay" in of_recipe("strong", {"optimizer", "lr", "lr_final"}, optimizer="adamw")
