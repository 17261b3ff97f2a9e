"""The recipe as its users run it: from the command line, on a made-up corpus; killed, continued, misused."""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import published
import pytest
import torch
from conftest import ROOT, data_flags, run_script, start_script
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import trainSpeakerNet
import verify
from corpora import demo
from evaluation.scoring import result_line
from inference.checkpoints import load_pretrained
from loss import AAMsoftmax
from training.meter import StopSignal
from training.run import maybe_compile
from verify import SpeakerEncoder

SMALL = ["--C", 8, "--num_frames", 60, "--batch_size", 8, "--max_epoch", 2, "--bank_mb", 5, "--n_cpu", 1,
         "--device", "cpu", "--amp", "off"]  # fmt: skip
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")


def state(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def reached(folder, *position):
    """Whether a run has saved its state at this (epoch, step) or later."""
    with contextlib.suppress(FileNotFoundError):  # before the first one, and while one replaces another
        return (state(folder)["epoch"], state(folder)["step"]) >= position


def assert_same_run(one, other):
    """The same weights, optimizer and records, to the last bit."""
    first, second = state(one), state(other)
    assert (first["epoch"], first["step"]) == (second["epoch"], second["step"])
    assert first["weights"].keys() == second["weights"].keys()
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key
    for key, moments in first["optimizer"]["state"].items():
        assert all(torch.equal(value, second["optimizer"]["state"][key][name]) for name, value in moments.items())
    assert results(one) == results(other)
    models = [{path.name: torch.load(path, weights_only=True)["weights"] for path in (folder / "model").iterdir()}
              for folder in (one, other)]  # fmt: skip
    assert models[0].keys() == models[1].keys()
    for name, weights in models[0].items():  # averages of weights among them
        assert all(torch.equal(value, models[1][name][key]) for key, value in weights.items()), name


def results(folder):
    """What metrics.jsonl says, but for how long things took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in ("seconds", "seconds_left", "utterances_per_second", "waiting_percent"):
            record.pop(name, None)
    return records


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A finished run of two epochs, evaluated after each."""
    folder = tmp_path_factory.mktemp("exps") / "exp1"
    run_script(*data_flags(corpus), *SMALL, "--save_path", folder)
    return folder


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_readme_says(trained):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert names == {"score.txt", "metrics.jsonl", "settings.json", "state.pt", "state_before.pt", "log.txt", ".lock",
                     "training.png", "det.png", "scores/trials.txt", "model/model_0001.model", "model/model_0002.model"}
    form = (r"\d+ epoch, LR 0\.\d{6}, LOSS \d+\.\d{3}, ACC \d+\.\d\d%, EER \d+\.\d\d%, bestEER \d+\.\d\d%, "
            r"minDCF\(0\.05\) \d\.\d{4}, minDCF\(0\.01\) \d\.\d{4}, "
            r"EER95 \d+\.\d\d-\d+\.\d\d%, TRIALS 120, LIST [0-9a-f]{8}\n")
    lines = (trained / "score.txt").read_text().splitlines(keepends=True)
    assert len(lines) == 2 and all(re.fullmatch(form, line) for line in lines)
    assert lines[1].startswith("2 epoch, LR 0.000970, ")
    records = results(trained)
    assert [record["epoch"] for record in records] == [0, 1, 2]
    assert records[2]["step"] == 6 and math.isfinite(records[2]["loss"])
    written = json.loads((trained / "settings.json").read_text())
    assert written["settings"]["n_class"] == 6 and written["settings"]["lr"] == 0.001
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert (written["versions"]["git_commit"] or "").removesuffix("-dirty") == head


def test_a_finished_run_has_no_results_of_another_list(command, corpus, trained, tmp_path):
    other = tmp_path / "trials.txt"  # of the same name
    other.write_text("".join((corpus / "trials.txt").read_text().splitlines(keepends=True)[1:]))
    status, _, error = command(trainSpeakerNet, "--save_path", trained, "--eval_list", other)
    assert status == 2 and f"is finished, without --eval_list {other}: evaluate its model with --eval" in error


def test_the_log_has_the_printed_lines_with_their_times(command, corpus, tmp_path):
    flags = [*data_flags(corpus), *SMALL, "--save_path", tmp_path / "e"]
    shown = [command(trainSpeakerNet, *flags, *more) for more in (["--max_epoch", 1], [], [], ["--lr", 1])]
    assert "resuming after step 3 of epoch 1\n" in shown[1][1] and max(map(len, shown[1][1].split("\n")[2:3])) < 120
    assert "resuming" not in shown[2][1] and "2 epochs done" in shown[2][1] and shown[3][0] == 2
    times, lines = zip(*(re.fullmatch(r"(\d{4}(?:-\d\d){2} \d\d:\d\d:\d\d) (.*\n)", line).groups()
                         for line in (tmp_path / "e" / "log.txt").open()))  # fmt: skip
    assert list(times) == sorted(times)
    assert "".join(lines) == "".join(out + error for _, out, error in shown).replace("trainSpeakerNet.py: ", "")


def test_the_last_model_is_what_the_run_came_to(trained):
    model = torch.load(trained / "model" / "model_0002.model", weights_only=True)
    assert all(torch.equal(value, model["weights"][key]) for key, value in state(trained)["weights"].items())
    assert model["scores"] == json.loads((trained / "metrics.jsonl").read_text().splitlines()[2])["lists"]
    assert model["speakers"] == [f"id{number:05d}" for number in range(6)]


def test_training_learns(succeeds, corpus, tmp_path):
    """The loss falls, and the speakers of the training list come apart."""
    speakers = [line.split() for line in (corpus / "train_list.txt").read_text().splitlines()]
    trials = [f"{int(a[0] == b[0])} {a[1]} {b[1]}\n" for i, a in enumerate(speakers) for b in speakers[i + 1 :]]
    (tmp_path / "seen.txt").write_text("".join(trials))
    flags = [*data_flags(corpus), *SMALL, "--C", 16, "--batch_size", 6, "--lr", 0.003, "--max_epoch", 20,
             "--test_step", 20, "--eval_list", tmp_path / "seen.txt", "--eval_path", corpus / "train",
             "--musan_path", "", "--rir_path", "", "--no_check"]  # fmt: skip
    printed = succeeds(trainSpeakerNet, *flags, "--save_path", tmp_path / "e")
    records = results(tmp_path / "e")
    assert "epoch 20/20 | step 80 | loss" in printed
    before, after = (records[i]["lists"]["seen"]["eer"] for i in (0, -1))
    assert f"EER on seen: {before:.2f}% before training, {after:.2f}% after epoch 20\n" in printed
    assert records[-1]["loss"] < 0.3 * records[1]["loss"]
    assert after < before
    assert [path.name for path in sorted((tmp_path / "e" / "model").iterdir())] == ["model_0020.model"]


@pytest.mark.parametrize(("flags", "tolerance"), [
    (["--amp", "bf16"], 0.01), pytest.param(["--compile"], 1e-5, marks=[pytest.mark.slow, NEEDS_COMPILER]),
])  # fmt: skip
def test_bf16_and_the_compiler_follow_float32(succeeds, corpus, tmp_path, trained, flags, tolerance):
    """In the first step; how rounding grows in Adam's next ones says nothing."""
    one_step = [*data_flags(corpus), *SMALL, "--batch_size", 24, "--max_epoch", 1, "--eval_list"]
    for name, more in (("plain", []), ("other", flags)):
        succeeds(trainSpeakerNet, *one_step, *more, "--save_path", tmp_path / name)
    plain, other = (results(tmp_path / name)[0]["loss"] for name in ("plain", "other"))
    assert other == pytest.approx(plain, rel=tolerance) and (other != plain or "--compile" in flags)
    assert state(tmp_path / "other")["weights"].keys() == state(trained)["weights"].keys()


def test_where_the_compiler_fails_training_goes_on(succeeds, corpus, tmp_path, monkeypatch):
    """Also where it fails in the backward pass, which torch.compile would leave until the first gradient."""
    def failing(graph, inputs):
        raise RuntimeError("no C++ compiler\nand a long explanation")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=failing)
    compiled = functools.partial(torch.compile, backend=backend)
    flags = [*data_flags(corpus), *SMALL, "--max_epoch", 1, "--eval_list", "--save_path"]
    succeeds(trainSpeakerNet, *flags, tmp_path / "eager")
    monkeypatch.setattr(torch, "compile", lambda network, mode: compiled(network))
    printed = succeeds(trainSpeakerNet, *flags, tmp_path / "failed", "--compile")
    assert printed.count("without it, more slowly: no C++ compiler\n") == 1, printed
    assert results(tmp_path / "failed")[0]["loss"] == results(tmp_path / "eager")[0]["loss"]


@pytest.mark.parametrize(("device", "flags", "crops", "compiled"), [
    ("cuda", [], 100_000, True), ("cuda", ["--no_compile"], 10**9, False), ("cpu", [], 99_999, False),
    ("cpu", [], 100_000, True), ("cpu", ["--compile"], 10, True), ("mps", [], 10**9, False),
])  # fmt: skip
def test_torch_compile_is_used_where_it_earns_its_minute(device, flags, crops, compiled):
    args, network = trainSpeakerNet.build_parser().parse_args(flags), torch.nn.Linear(1, 1)
    assert (maybe_compile(args, network, torch.device(device), crops) is not network) == compiled


@pytest.mark.slow
@NEEDS_COMPILER
def test_the_compiler_uses_the_threads_of_this_run_and_not_of_the_one_in_its_cache(tmp_path):
    code = """import torch; from training.run import Compiled
step = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sigmoid())
Compiled(step)(torch.rand(1000, 1000, requires_grad=True)).sum().backward()"""
    for threads in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert any("num_threads(2)" in kernel.read_text() for kernel in tmp_path.rglob("*.cpp"))


# ---- the same again, and going on ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_with_any_number_of_threads(command, corpus, tmp_path, trained):
    for name, more in (("same", ["--n_cpu", 3]), ("other", ["--seed", 1])):
        command(trainSpeakerNet, *data_flags(corpus), *SMALL, *more, "--save_path", tmp_path / name)
    assert_same_run(tmp_path / "same", trained)
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "other", trained)


@pytest.fixture(scope="module")
def long(corpus, tmp_path_factory):
    """Flags of a run with epochs of 32 steps, about a second each, that climbs every rung of the recipe."""
    four_times = tmp_path_factory.mktemp("list") / "train_list.txt"
    four_times.write_text(4 * (corpus / "train_list.txt").read_text())
    return [*data_flags(corpus), *SMALL, "--train_list", four_times, "--batch_size", 2, "--max_epoch", 4,
            "--test_step", 2, "--valid_speakers", 2, "--speed_perturb", "--optimizer", "adamw", "--schedule", "cosine",
            "--warmup", 0.5, "--clip", 5, "--margin_rise", 0.5, 2.5, "--sub_centres", 2, "--top_k", 2,
            "--average", 3]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(long, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exps") / "undisturbed"
    run_script(*long, "--save_path", folder)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(long, tmp_path, undisturbed, number):
    """Stopped in the middle of three epochs, and started again each time; SIGKILL is in test_faults.py."""
    folder = tmp_path / "stopped"
    steps_when_stopped = []
    for epoch in (1, 2, 4):
        process = start_script(*long, "--save_path", folder, "--save_minutes", 0.005)  # its state tells where it is
        while not reached(folder, epoch, 3):
            assert process.poll() is None
        process.send_signal(number)
        _, complained = process.communicate()
        assert process.returncode == 128 + number
        assert f"stopped; to resume from {folder}/state.pt: python trainSpeakerNet.py" in complained
        assert "Traceback" not in complained
        steps_when_stopped.append(state(folder)["step"])
    assert any(0 < step < 32 for step in steps_when_stopped), steps_when_stopped  # saved in the middle of an epoch
    assert "resuming after step" in run_script(*long, "--save_path", folder)[1]
    assert_same_run(folder, undisturbed)
    assert (folder / "score.txt").read_text() == (undisturbed / "score.txt").read_text()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_a_stop_during_evaluation(command, long, tmp_path, undisturbed, monkeypatch):
    """The epoch is kept, and evaluated when the run goes on."""
    evaluate = trainSpeakerNet.evaluate

    def stopped(encoder, *arguments, **more):
        if (tmp_path / "e" / "metrics.jsonl").exists():
            raise KeyboardInterrupt
        return evaluate(encoder, *arguments, **more)

    monkeypatch.setattr(trainSpeakerNet, "evaluate", stopped)
    flags = [*long, "--save_path", tmp_path / "e"]
    assert command(trainSpeakerNet, *flags)[0] == 130
    assert (state(tmp_path / "e")["epoch"], state(tmp_path / "e")["step"]) == (2, 32)
    assert [record["epoch"] for record in results(tmp_path / "e")] == [0, 1]
    monkeypatch.undo()
    run_script(*flags)
    assert_same_run(tmp_path / "e", undisturbed)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """As where a cluster tells every process, and torchrun passes it on. Later, it is impatience."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 1
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        now[0] += 3
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_more_epochs_go_on_from_a_finished_run(succeeds, corpus, tmp_path, trained):
    short, long = tmp_path / "short", tmp_path / "long"
    shutil.copytree(trained, short)
    flags = [*data_flags(corpus), *SMALL, "--max_epoch", 3, "--save_path"]
    for folder in (short, long):
        succeeds(trainSpeakerNet, *flags, folder)
    assert_same_run(short, long)
    assert "3 epochs done" in succeeds(trainSpeakerNet, *flags, short)  # nothing left to do
    assert_same_run(short, long)


def test_a_state_of_another_device_goes_on(succeeds, corpus, tmp_path, trained):
    """As MPS writes it, where Adam is not fused and counts its steps on the CPU."""
    folder = tmp_path / "e"
    shutil.copytree(trained, folder)
    written = state(folder)
    written["optimizer"]["param_groups"][0]["fused"] = False
    torch.save(written, folder / "state.pt")
    succeeds(trainSpeakerNet, *data_flags(corpus), *SMALL, "--max_epoch", 3, "--save_path", folder)
    assert state(folder)["optimizer"]["param_groups"][0]["fused"] is True and state(folder)["epoch"] == 3


def test_a_run_does_not_go_on_as_another(command, corpus, tmp_path, trained):
    folder = tmp_path / "e"
    shutil.copytree(trained, folder)
    before = state(folder)["weights"]

    def complaint(*more):
        status, _, error = command(trainSpeakerNet, *data_flags(corpus), *SMALL, *more, "--save_path", folder)
        assert status == 2 and error.count("\n") == 1
        return error

    assert "was started with --lr 0.001, not 0.01" in complaint("--lr", 0.01)
    assert "was started with --lr 0.001, not 0.01; --C 8, not 16: to" in complaint("--C", 16, "--lr", 0.01)
    assert "was started with --musan_path" in complaint("--musan_path", "")
    assert f"{folder} is in epoch 2, past --max_epoch 1: to" in complaint("--max_epoch", 1)
    assert (folder / "settings.json").read_bytes() == (trained / "settings.json").read_bytes()
    shorter = tmp_path / "shorter.txt"
    shorter.write_text("".join((corpus / "train_list.txt").read_text().splitlines(keepends=True)[:-1]))
    assert "--train_list of other content" in complaint("--train_list", shorter)
    assert all(torch.equal(value, before[key]) for key, value in state(folder)["weights"].items())
    for name in ("state.pt", "state_before.pt"):
        (folder / name).unlink()
    assert "no state.pt to resume" in complaint()


def test_the_demo_trains_on_what_it_generates(command, succeeds, tmp_path, monkeypatch):
    """The README's first command on a small corpus: generated speech in, an error rate of other speakers out."""
    pytest.importorskip("espeakng_loader")
    monkeypatch.setattr(demo, "BACKGROUND_FILES", 3)
    monkeypatch.setattr(trainSpeakerNet, "make_demo", lambda folder: demo.make_demo(folder, 4, 6))
    small = ["--C", 8, "--num_frames", 60, "--batch_size", 12, "--max_epoch", 2, "--device", "cpu", "--amp", "off"]
    printed = succeeds(trainSpeakerNet, "--demo", *small, "--save_path", tmp_path / "demo")
    assert "36 utterances of 4 speakers, 3 steps of 12 an epoch" in printed
    assert re.search(r"2 epochs done.* EER on trials: \d+\.\d\d% before training, \d+\.\d\d% after epoch 2", printed)
    assert results(tmp_path / "demo")[-1]["lists"]["trials"]["utterances"] == 54
    page, pair = (line.partition(": ")[2] for line in printed.splitlines()[-2:])  # what to do next
    assert f"{tmp_path}/demo/training.png" in page and page.endswith(f"python -m evaluation.report {tmp_path}/demo")
    status, printed, _ = command(verify, *shlex.split(pair)[2:])
    assert status in (0, 1) and "threshold" in printed
    assert "2 epochs done" in succeeds(trainSpeakerNet, "--demo", "--save_path", tmp_path / "demo")  # as it began


# ---- evaluating and fine-tuning --------------------------------------------------------------------------------------


def test_evaluation_needs_nothing_but_model_list_and_audio(succeeds, corpus, tmp_path, trained):
    """No training data, no width: and the result is the one noted while training."""
    second = tmp_path / "second.txt"
    second.write_text("\n".join((corpus / "trials.txt").read_text().splitlines()[::-1][:60]) + "\n")
    printed = succeeds(
        trainSpeakerNet, "--eval", "--initial_model", trained / "model" / "model_0002.model", "--device", "cpu",
        "--eval_list", corpus / "trials.txt", second, "--eval_path", corpus / "eval", "--save_path", tmp_path / "out",
    )  # fmt: skip
    noted = results(trained)[2]["lists"]["trials"]
    few = f"EER {noted['eer']:.2f}% (too few speakers or errors for intervals) at "
    assert noted["interval"]["eer"][1] == 100 and f"  trials: {few}" in printed
    noted["interval"]["eer"], noted["speakers"] = [2.344, 56.789], 5
    where = f"at {noted['thresholds']['EER']:.3f} | minDCF(0.05) "
    assert result_line("O", noted).startswith(f"O: EER {noted['eer']:.2f}% [2.34, 56.79] {where}")
    assert "120 trials, 16 utterances, 4 speakers" in printed and "second: EER" in printed and "60 trials" in printed
    found = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert found["trials"]["eer"] == noted["eer"]
    assert (tmp_path / "out" / "scores" / "trials.txt").read_text() == (trained / "scores" / "trials.txt").read_text()
    assert len((tmp_path / "out" / "scores" / "second.txt").read_text().splitlines()) == 60
    assert (tmp_path / "out" / "det.png").stat().st_size > 10_000


def test_an_evaluation_does_not_replace_the_scores_of_a_run(command, corpus, trained):
    scores = (trained / "scores" / "trials.txt").read_text()
    model = trained / "model" / "model_0001.model"
    status, _, error = command(
        trainSpeakerNet, "--eval", "--initial_model", model, *data_flags(corpus), "--save_path", trained
    )
    assert status == 2 and f"--save_path {trained} holds a run" in error
    assert (trained / "scores" / "trials.txt").read_text() == scores


def test_fine_tuning_keeps_the_encoder(succeeds, corpus, tmp_path, trained):
    model = trained / "model" / "model_0002.model"
    weights = torch.load(model, weights_only=True)["weights"]
    still = [*SMALL[2:], "--lr", 1e-12, "--max_epoch", 1, "--initial_model", model]  # the width comes from the model

    printed = succeeds(trainSpeakerNet, *data_flags(corpus), *still, "--save_path", tmp_path / "same")
    assert f"{model}: took its encoder and 6 of the 6 classes of its classifier\n" in printed
    tuned = state(tmp_path / "same")["weights"]
    for key, value in weights.items():  # the statistics of batch norm, too
        assert torch.allclose(tuned[key], value, atol=1e-6), key
    succeeds(trainSpeakerNet, *data_flags(corpus), *still, "--freeze_bn", "off", "--save_path", tmp_path / "off")
    for name, moves in (("running_mean", True), ("weight", False)):
        moved = state(tmp_path / "off")["weights"][f"speaker_encoder.bn5.{name}"]
        assert moves != torch.allclose(moved, weights[f"speaker_encoder.bn5.{name}"], atol=1e-6)

    fewer = tmp_path / "fewer.txt"
    fewer.write_text("".join((corpus / "train_list.txt").read_text().splitlines(keepends=True)[:16]))
    flags = [*data_flags(corpus), *still, "--train_list", fewer]
    printed = succeeds(trainSpeakerNet, *flags, "--save_path", tmp_path / "new")
    assert "took its encoder; its classifier of 6 classes is for other speakers: " in printed
    tuned = state(tmp_path / "new")["weights"]
    encoder, lines = SpeakerEncoder.from_checkpoint(model), [line.split() for line in fewer.read_text().splitlines()]
    for speaker, vector in zip(sorted({speaker for speaker, _ in lines}), tuned["speaker_loss.weight"], strict=True):
        own = [encoder.embed(corpus / "train" / file) for name, file in lines if name == speaker]
        assert torch.cosine_similarity(torch.from_numpy(np.mean(own, axis=0)), vector, dim=0) > 0.9999
    assert torch.allclose(tuned["speaker_encoder.fc6.weight"], weights["speaker_encoder.fc6.weight"], atol=1e-6)
    # Again the same command: it goes on, and does not start from the model once more.
    assert "took its" not in succeeds(trainSpeakerNet, *flags, "--save_path", tmp_path / "new")


def test_large_margin_fine_tuning_takes_the_true_speakers_along(command, succeeds, corpus, tmp_path, undisturbed):
    """Of a model trained with speech at three speeds and two sub-centres; judged on speakers it was not trained on."""
    model = undisturbed / "model" / "average_0004.model"
    before = torch.load(model, weights_only=True)
    assert before["weights"]["speaker_loss.weight"].shape == (12, 2, 192)
    flags = [*data_flags(corpus), "--finetune_margin", "--initial_model", model, "--num_frames", 60, "--batch_size", 8,
             "--max_epoch", 1, "--device", "cpu", "--amp", "off", "--bank_mb", 5]  # fmt: skip
    still = ["--lr", 1e-12, "--lr_final", 1e-12]
    printed = succeeds(trainSpeakerNet, *flags, *still, "--valid_speakers", 2, "--save_path", tmp_path / "e")
    assert "encoder and 4 of the 12 classes of its classifier" in printed
    assert "margin 0.50" in printed and "at one of three speeds" not in printed
    after = state(tmp_path / "e")
    torch.testing.assert_close(
        after["weights"]["speaker_loss.weight"], before["weights"]["speaker_loss.weight"][:4], rtol=0, atol=1e-7
    )
    assert after["settings"]["m"] == 0.5 and after["settings"]["sub_centres"] == 2
    # Fine-tuning may do harm: the model that it began with is one of those to choose from.
    eers = [record["lists"]["valid"]["eer"] for record in results(tmp_path / "e")]
    best, start = (torch.load(tmp_path / "e" / "model" / name, weights_only=True)
                   for name in ("best.model", "model_0000.model"))  # fmt: skip
    assert len(eers) == 2 and best["epoch"] == np.argmin(eers) and start["epoch"] == 0
    assert all(torch.equal(start["weights"][key], value) for key, value in before["weights"].items() if "enc" in key)
    assert (tmp_path / "e" / "scores" / "valid_trials.txt").read_text() == (
        undisturbed / "scores" / "valid_trials.txt"
    ).read_text()
    status, _, error = command(trainSpeakerNet, *flags, "--valid_speakers", 4, "--save_path", tmp_path / "other")
    assert status == 2 and "--valid_speakers 4 holds out 2 speakers, such as id0000" in error
    status, _, error = command(trainSpeakerNet, *flags, "--save_path", tmp_path / "other")  # a new classifier: useless
    assert status == 2 and "is for other speakers, " in error and "the learning rate is too small" in error


def test_the_strong_recipe_of_a_small_run(succeeds, corpus, tmp_path):
    succeeds(
        trainSpeakerNet, *data_flags(corpus), *SMALL, "--recipe", "strong", "--average", 2, "--sub_centres", 3,
        "--top_k", 5, "--save_path", tmp_path / "e",
    )  # fmt: skip
    written = json.loads((tmp_path / "e" / "settings.json").read_text())["settings"]
    assert written["optimizer"] == "adamw" and written["lr"] == pytest.approx(0.004 * (8 / 64) ** 0.5)
    assert written["max_epoch"] == 2  # given
    assert state(tmp_path / "e")["weights"]["speaker_loss.weight"].shape == (18, 3, 192)
    # Its features are those of training also when it is loaded again.
    model, trials = tmp_path / "e" / "model" / "model_0002.model", ["--eval_path", corpus / "eval"]
    trials += ["--eval_list", corpus / "trials.txt", "--device", "cpu", "--n_cpu", 1]
    succeeds(trainSpeakerNet, "--eval", "--initial_model", model, *trials, "--save_path", tmp_path / "eval")
    scores = [np.loadtxt(tmp_path / each / "scores" / "trials.txt", usecols=0) for each in ("e", "eval")]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert (tmp_path / "e" / "model" / "average_0002.model").exists()
    models = [torch.load(tmp_path / "e" / "model" / f"{name}.model", weights_only=True)["weights"]
              for name in ("model_0001", "model_0002", "average_0002")]  # fmt: skip
    for key in ("speaker_encoder.conv1.weight", "speaker_encoder.bn5.running_var", "speaker_loss.weight"):
        torch.testing.assert_close(models[2][key], (models[0][key] + models[1][key]) / 2)


STRANGERS = {
    "speechbrain": lambda: published.speechbrain_shapes(8), "taoruijie": lambda: published.taoruijie_shapes(8, 5),
    "modelscope": lambda: published.speechbrain_shapes(8), "wespeaker": lambda: published.wespeaker_shapes(8),
}  # fmt: skip


SLOW = [pytest.param(system, marks=pytest.mark.slow) for system in ("taoruijie", "modelscope", "wespeaker")]


@pytest.mark.parametrize("system", ["speechbrain", *SLOW])
def test_fine_tuning_a_stranger(succeeds, corpus, tmp_path, system):
    """Its encoder is taken, a new classifier learns the new speakers, and what is written stands alone."""
    model = tmp_path / "theirs.pt"
    torch.save(published.random_state(STRANGERS[system]()), model)
    flags = [*data_flags(corpus), *SMALL[2:], "--initial_model", model]
    named = ["--system", system] if system in ("speechbrain", "modelscope") else []
    still = [*flags, *named, "--lr", 1e-12, "--max_epoch", 1, "--eval_list", "--save_path", tmp_path / "still"]
    printed = succeeds(trainSpeakerNet, *still)
    assert "took its encoder; " in printed and ": a new one of the mean embeddings of 6 speakers\n" in printed
    theirs = load_pretrained(model, system).network.state_dict()
    ours = state(tmp_path / "still")["weights"]
    for key, value in theirs.items():
        if "running" not in key and "batches" not in key:
            assert torch.allclose(ours[f"speaker_encoder.{key}"], value, atol=1e-6), key

    learning = [*flags, *named, "--max_epoch", 8, "--test_step", 8, "--lr", 0.003, "--save_path", tmp_path / "tuned"]
    succeeds(trainSpeakerNet, *learning)
    losses = [record["loss"] for record in results(tmp_path / "tuned")[1:]]
    assert losses[-1] < 0.95 * losses[0]
    tuned = tmp_path / "tuned" / "model" / "model_0008.model"
    start, end, mean = (torch.load(tuned.with_name(f"{name}.model"), weights_only=True)["weights"]
                        for name in ("model_0000", "model_0008", "average_0008"))  # fmt: skip
    assert "averages" in results(tmp_path / "tuned")[-1]
    for key in theirs:
        torch.testing.assert_close(start[f"speaker_encoder.{key}"].to(theirs[key]), theirs[key], rtol=0, atol=0)
        if theirs[key].is_floating_point():
            one, other, middle = (each[f"speaker_encoder.{key}"] for each in (start, end, mean))
            torch.testing.assert_close(middle, (one + other) / 2)
    evaluation = ["--eval", "--initial_model", tuned, *data_flags(corpus), "--save_path", tmp_path / "eval"]
    succeeds(trainSpeakerNet, *evaluation)
    scores = (tmp_path / "tuned" / "scores" / "trials.txt").read_text()
    assert (tmp_path / "eval" / "scores" / "trials.txt").read_text() == scores
    assert load_pretrained(tuned).system == system
    # Going on needs the file no more.
    model.unlink()
    longer = [*data_flags(corpus), *SMALL[2:], "--max_epoch", 9, "--lr", 0.003, "--save_path", tmp_path / "tuned"]
    assert "resuming after step" in succeeds(trainSpeakerNet, *longer)


@pytest.mark.parametrize("classes", [6, 18, 7])
def test_a_classifier_without_names_is_taken_on_the_users_word(command, corpus, tmp_path, classes):
    """Of as many classes as speakers, or of three times as many, in which those at their own speed come first."""
    theirs = published.random_state(published.taoruijie_shapes(8, classes))
    torch.save(theirs, tmp_path / "theirs.pt")
    flags = [*data_flags(corpus), *SMALL[2:], "--lr", 1e-12, "--max_epoch", 1, "--eval_list", "--initial_classifier",
             "--initial_model", tmp_path / "theirs.pt", "--save_path", tmp_path / "e"]  # fmt: skip
    status, printed, error = command(trainSpeakerNet, *flags)
    if classes == 7:
        assert status == 2 and error.count("\n") == 1
        assert "--initial_classifier" in error and "of 7 classes" in error and "has 6 speakers" in error
    else:
        assert status == 0 and f"took its encoder and 6 of the {classes} classes" in printed, error
        weight = state(tmp_path / "e")["weights"]["speaker_loss.weight"]
        torch.testing.assert_close(weight, theirs["speaker_loss.weight"][:6], rtol=0, atol=1e-7)


def test_evaluating_and_not_training_the_x_vector(command, succeeds, corpus, tmp_path):
    torch.save(published.random_state(published.pyannote_shapes()), tmp_path / "pytorch_model.bin")
    model = ["--initial_model", tmp_path / "pytorch_model.bin", "--save_path", tmp_path / "e"]
    printed = succeeds(trainSpeakerNet, "--eval", *model, *data_flags(corpus))
    assert "XVectorSincNet, 4.3 M weights, of pyannote/embedding" in printed and "EER" in printed
    status, _, error = command(trainSpeakerNet, *model, *data_flags(corpus), *SMALL[2:])
    assert status == 2 and "only ECAPA-TDNNs can be trained further" in error and error.count("\n") == 1


def test_a_model_keeps_the_thresholds_of_its_evaluation(trained, corpus):
    """From the scores and labels of the trial list alone: where errors are equal, and at 1 % false alarms."""
    labels = np.array([int(line[0]) for line in (corpus / "trials.txt").read_text().splitlines()])
    scores = np.array([float(line.split()[0]) for line in (trained / "scores" / "trials.txt").read_text().splitlines()])
    last = torch.load(trained / "model" / "model_0002.model", weights_only=True)["scores"]["trials"]
    threshold = last["thresholds"]["EER"]
    misses, alarms = (scores[labels == 1] < threshold).mean(), (scores[labels == 0] >= threshold).mean()
    assert misses == pytest.approx(last["eer"] / 100, abs=0.05) and alarms == pytest.approx(last["eer"] / 100, abs=0.05)
    assert last["thresholds"]["1%"] is None and last["thresholds"]["0.1%"] is None  # 96 impostor trials tell no 1 %
    assert last["list_sha256"] == hashlib.sha256((corpus / "trials.txt").read_bytes()).hexdigest()
    encoder = SpeakerEncoder.from_checkpoint(trained / "model" / "model_0002.model")
    assert (encoder.threshold, encoder.trial_list) == (threshold, "trials")
    first, second = (corpus / "trials.txt").read_text().split()[1:3]
    assert encoder.verify(corpus / "eval" / first, corpus / "eval" / second).score == pytest.approx(scores[0], abs=1e-5)


# ---- misuse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "complaint"), [
    (["--train_list", "{tmp}/none.txt"], "--train_list {tmp}/none.txt does not exist"),
    (["--train_path", "{tmp}"], "train_list.txt line 1: {tmp}/id00000/session0/00000.wav does not exist (24 of 24"),
    (["--eval_list", "{corpus}/train_list.txt"], "line 1: expected '<1|0> <enrol> <test path>'"),
    (["--train_list", "{corpus}/trials.txt"], "line 1: expected '<speaker> <path>'"),
    (["--eval_list", "{corpus}/trials.txt", "{tmp}/trials.txt"], "two lists called trials"),
    (["--musan_path", "{tmp}/none"], "--musan_path {tmp}/none is not a folder"),
    (["--rir_path", "{tmp}"], "--rir_path {tmp} has no room responses"),
    (["--n_class", 3], "--n_class 3, but {corpus}/train_list.txt has 6 speakers"),
    (["--train_list", "{tmp}/one.txt"], "one.txt has a single speaker"),
    (["--train_list", "{tmp}/out.txt"], "out.txt line 1: ../x.wav leads out of --train_path"),
    (["--C", 12], "--C must be a multiple of 8, not 12"),
    (["--lr", "nan"], "--lr must be more than 0"),
    (["--device", "cuda:77"], "--device cuda:77"),
    (["--save_path", "{corpus}/trials.txt"], "--save_path {corpus}/trials.txt cannot be written to"),
    (["--eval"], "--eval needs --initial_model"),
    (["--eval", "--initial_model", "{tmp}/none.model"], "--initial_model {tmp}/none.model does not exist"),
    (["--eval", "--initial_model", "{corpus}/trials.txt"], "trials.txt is not a checkpoint"),
    (["--eval", "--initial_model", "{model}", "--C", 64], "--C 64, but {model} has C=8"),
    (["--eval", "--initial_model", "{model}", "--eval_list"], "--eval needs --eval_list"),
    (["--demo"], "--demo generates its own data: remove --eval_list --eval_path --musan_path"),
    (["--initial_classifier"], "--initial_classifier needs --initial_model FILE"),
    (["--finetune_margin"], "--finetune_margin needs --initial_model FILE"),
    (["--valid_speakers", 7], "--valid_speakers 7: must be from 2 to 4, because 6 of the 6 speakers"),
    (["--m", 30], "--m must be less than pi/2, not 30.0"),
    (["--lr_final", 1e-4], "--lr_final has no effect with --schedule step"),
    (["--top_n", 5], "--top_n needs --eval with --as_norm or --calibrate"),
    (["--as_norm"], "--as_norm is part of an evaluation: add --eval"),
    (["--eval", "--initial_model", "{model}", "--as_norm", "--cohort", "{tmp}/none.npz"], "{tmp}/none.npz does not"),
    (["--eval_list", "{tmp}/valid.txt"], "--eval_list {tmp}/valid.txt"),
    (["--batchsize", 8], "unrecognized arguments: --batchsize 8: did you mean --batch_size?"),
])  # fmt: skip
def test_misuse_gets_one_line(command, corpus, tmp_path, trained, flags, complaint):
    (tmp_path / "trials.txt").write_text("1 a b\n0 a c\n")
    (tmp_path / "one.txt").write_text("id00000 id00000/session0/00000.wav\n")
    (tmp_path / "out.txt").write_text("a ../x.wav\nb b/1.wav\n")
    names = {"tmp": tmp_path, "corpus": corpus, "model": trained / "model" / "model_0001.model"}
    flags = [str(flag).format(**names) for flag in flags]
    status, _, error = command(trainSpeakerNet, *data_flags(corpus), *SMALL[2:], "--save_path", tmp_path / "e", *flags)
    assert status == 2
    assert error.startswith("trainSpeakerNet.py: ") and complaint.format(**names) in error and error.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_weights_before(command, corpus, tmp_path):
    flags = [*data_flags(corpus), *SMALL, "--lr", 1e30, "--max_epoch", 9, "--eval_list", "--save_path", tmp_path / "e"]
    status, _, error = command(trainSpeakerNet, *flags)
    assert status == 1 and "Traceback" not in error
    assert "the gradient is not finite, nor in the 9 steps before: try a smaller --lr" in error
    assert f"with a model of {tmp_path}/e/model as --initial_model" in error
    skipped = (tmp_path / "e" / "skipped_batch.txt").read_text().splitlines()
    assert len(skipped) == 8 and set(skipped) <= set((corpus / "train_list.txt").read_text().splitlines())
    assert all(value.isfinite().all() for value in state(tmp_path / "e")["weights"].values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_gets_one_line(command, corpus, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(AAMsoftmax, "forward", full)
    status, _, complaint = command(trainSpeakerNet, *data_flags(corpus), *SMALL, "--save_path", tmp_path / "e")
    assert status == 1 and complaint.count("\n") == 1
    assert "trainSpeakerNet.py: out of memory with 8 crops at a time: try --accumulate 2" in complaint
    more = ["--accumulate", 2]  # and the sizes of the run that is resumed
    status, _, complaint = command(trainSpeakerNet, *data_flags(corpus), *more, "--save_path", tmp_path / "e")
    assert status == 1 and "out of memory with 4 crops at a time: try --accumulate 4" in complaint


def test_weights_that_explode_are_not_saved(command, corpus, tmp_path, monkeypatch):
    """The last step of an epoch can spoil the weights after a finite loss."""
    step = torch.optim.Adam.step

    def spoiled(optimizer):
        step(optimizer)
        optimizer.param_groups[0]["params"][0].data[0] = math.inf

    monkeypatch.setattr(torch.optim.Adam, "step", spoiled)
    flags = [*data_flags(corpus), *SMALL, "--batch_size", 24, "--save_path", tmp_path / "e"]  # one step an epoch
    status, _, error = command(trainSpeakerNet, *flags)
    assert status == 1 and "the weights are no longer finite in epoch 1" in error
    assert all(value.isfinite().all() for value in state(tmp_path / "e")["weights"].values())


def test_unreadable_training_files_are_replaced_and_counted(command, corpus, tmp_path):
    shutil.copytree(corpus / "train", tmp_path / "train")
    (tmp_path / "train" / "id00002" / "session0" / "00001.wav").write_bytes(b"")
    flags = [*data_flags(corpus), *SMALL, "--train_path", tmp_path / "train", "--save_path", tmp_path / "e"]
    status, printed, error = command(trainSpeakerNet, *flags)
    assert status == 0 and error.count("replaced by the next line") == 1
    assert printed.count("| unreadable 1 |") == 2
