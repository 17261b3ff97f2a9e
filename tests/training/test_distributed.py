"""Several processes train as one: on the CPU, two processes started by torchrun against one."""

import glob
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import data_flags, run_script, start_script
from test_trainSpeakerNet import SMALL, results, state

import trainSpeakerNet
from tools import InputError
from training import distributed
from training.distributed import micro_batches
from training.settings import read_settings


def wait_for(text, process):
    """Until the process has printed this."""
    shown = ""
    while text not in shown:
        letter = process.stdout.read(1)
        assert letter, shown  # it has ended
        shown += letter


def ours(complained):
    """The lines that the script itself wrote, without torchrun's."""
    return [line for line in complained.splitlines() if line.startswith("trainSpeakerNet.py: ")]


def weights(folder):
    return state(folder)["weights"]


def losses(folder):
    return [record["loss"] for record in results(folder) if record["epoch"] > 0]


@pytest.fixture(scope="module")
def one(corpus, tmp_path_factory):
    """Flags of a short run, and the folder of one process's, whose batch norm sees the parts that two would have."""
    folder = tmp_path_factory.mktemp("exps") / "one"
    flags = [*data_flags(corpus), *SMALL, "--batch_size", 8]
    run_script(*flags, "--accumulate", 2, "--save_path", folder, processes=1)
    return flags, folder


def test_two_processes_train_as_one(one, tmp_path):
    """Same crops, augmentation and learning rate: the same losses and weights to rounding."""
    flags, alone = one
    _, printed, _ = run_script(*flags, "--save_path", tmp_path / "two", processes=2)
    assert "cpu x 2 processes" in printed and printed.count("epoch 1/2 |") == 1  # one of them speaks
    # Adam's first steps go by the sign of a gradient, so that rounding grows.
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), rel=2e-3)
    for found, expected in zip(results(tmp_path / "two"), results(alone)):
        assert found.get("learning_rate") == expected.get("learning_rate")
        for name in ("trials", "utterances", "list_sha256"):
            assert found["lists"]["trials"][name] == expected["lists"]["trials"][name]
    before = [record["lists"]["trials"]["eer"] for record in (results(tmp_path / "two")[0], results(alone)[0])]
    assert before[0] == before[1]  # the untrained network is the same, shared out or not
    for key, value in weights(tmp_path / "two").items():
        if "running" in key or "tracked" in key:  # of two halves the mean, of two parts one after the other
            continue
        assert torch.allclose(value.float(), weights(alone)[key].float(), atol=2e-2), key
    written = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (tmp_path / "two", alone)]
    assert written[0] == written[1]
    settings = json.loads((tmp_path / "two" / "settings.json").read_text())
    assert settings["versions"]["processes"] == 2


def test_two_processes_evaluate_as_one(one, corpus, tmp_path):
    _, alone = one
    evaluation = ["--eval", "--initial_model", alone / "model" / "model_0002.model", "--device", "cpu",
                  "--eval_list", corpus / "trials.txt", "--eval_path", corpus / "eval"]  # fmt: skip
    _, printed, _ = run_script(*evaluation, "--save_path", tmp_path / "e", processes=2)
    found = json.loads((tmp_path / "e" / "results.json").read_text())["results"]["trials"]
    assert found["eer"] == results(alone)[2]["lists"]["trials"]["eer"] and printed.count("trials: EER") == 1
    scores = [[float(line.split()[0]) for line in (folder / "scores" / "trials.txt").read_text().splitlines()]
              for folder in (alone, tmp_path / "e")]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_cohort(one, corpus, tmp_path):
    _, alone = one
    evaluation = [*data_flags(corpus), "--eval", "--calibrate", "--top_n", 3, "--device", "cpu"]
    found = {}
    for processes in (1, 2):
        model = tmp_path / f"{processes}.model"
        shutil.copy(alone / "model" / "model_0002.model", model)
        folder = tmp_path / str(processes)
        more = ["--initial_model", model, "--save_path", folder]
        _, _, complained = run_script(*evaluation, *more, processes=processes)
        assert complained.count("held no speakers") == 1, complained
        lines = (folder / "scores" / "trials.calibrated.txt").read_text().splitlines()
        found[processes] = [float(line.split()[0]) for line in lines]
        (cohort,) = glob.glob(f"{model}.cohort_*.npz")
        assert np.load(cohort)["embeddings"].shape[1] == 192
    assert found[1] == pytest.approx(found[2], rel=1e-3, abs=1e-3)


def test_the_first_step_is_equal_to_rounding(one, tmp_path):
    """One step from the same weights: the gradient of four parts, whoever computes them."""
    flags, _ = one
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        more = ["--batch_size", 24, "--accumulate", 4 // processes, "--max_epoch", 1, "--lr", 1e-5]
        run_script(*flags, *more, "--save_path", folder, processes=processes)
        found.append((losses(folder), state(folder)["optimizer"]["state"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for number, one_state in found[0][1].items():  # after a step from nothing, the mean gradient times 0.1
        gradient, other = one_state["exp_avg"], found[1][1][number]["exp_avg"]
        assert torch.linalg.vector_norm(gradient - other) <= 1e-3 * torch.linalg.vector_norm(gradient) + 1e-7


@pytest.mark.slow
def test_the_strong_recipe_in_two_processes(one, tmp_path):
    flags, _ = one
    flags = [*flags, "--speed_perturb", "--valid_speakers", 2, "--average", 2, "--margin_rise", 0.5, 1.5, "--clip", 1]
    run_script(*flags, "--save_path", tmp_path / "two", processes=2)
    run_script(*flags, "--accumulate", 2, "--save_path", tmp_path / "parts", processes=1)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "parts"), rel=2e-3)
    found = {(each, kind): torch.load(tmp_path / each / "model" / f"{kind}_0002.model", weights_only=True)["weights"]
             for each in ("two", "parts") for kind in ("model", "average")}  # fmt: skip
    for key in ("speaker_encoder.fc6.weight", "speaker_encoder.conv1.weight", "speaker_loss.weight"):
        apart = torch.dist(found["two", "average"][key], found["parts", "average"][key])
        assert apart < 0.2 * torch.dist(found["two", "average"][key], found["two", "model"][key]), key


@pytest.mark.slow
def test_stopped_as_two_and_continued_as_one(one, tmp_path):
    flags, _ = one
    folder = tmp_path / "e"
    flags = [*flags, "--batch_size", 4, "--max_epoch", 20, "--test_step", 1, "--save_path", folder]
    process = start_script(*flags, processes=2)
    wait_for("epoch 1/20 |", process)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=300)
    assert process.returncode and len([line for line in complained.splitlines() if line.startswith("stopped;")]) == 1
    stopped = state(folder)
    _, printed, _ = run_script(*flags, "--max_epoch", stopped["epoch"] + 1, processes=1)
    assert f"resuming after step {stopped['step']} of epoch {stopped['epoch']}" in printed
    assert [record["epoch"] for record in results(folder)] == [*range(stopped["epoch"] + 2)]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(one, tmp_path):
    flags, alone = one
    flags = [*flags, "--save_path", tmp_path / "e"]
    process = start_script(*flags, "--max_epoch", 50, processes=2)
    wait_for("epoch 1/50 |", process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, complained = process.communicate(timeout=300)
    assert process.returncode
    lost = "lost the others; one of them has probably ended"
    assert any(lost in line for line in ours(complained)) or "stopped;" in complained
    assert "SIGKILL" in complained  # torchrun says which
    reached = state(tmp_path / "e")["epoch"]
    _, printed, _ = run_script(*flags, "--max_epoch", reached + 1, processes=2)
    assert "resuming after step" in printed
    assert results(tmp_path / "e")[1]["loss"] == pytest.approx(losses(alone)[0], rel=2e-3)


def test_misuse_gets_one_line_from_all_processes(one, tmp_path):
    flags, _ = one
    nine = ["--batch_size", 9, "--save_path", tmp_path / "e"]
    status, _, complained = run_script(*flags, *nine, processes=2, check=False)
    complaint = "--batch_size 9 cannot be cut in 2 equal parts of at least 2 (--accumulate 1 x 2 processes): try "
    assert status != 0 and set(ours(complained)) == {f"trainSpeakerNet.py: {complaint}--batch_size 8"}
    listed = Path(flags[flags.index("--train_list") + 1]).read_text()
    (tmp_path / "list.txt").write_text(listed + "id1 absent.wav\n")  # one process finds it, both know
    absent = ["--train_list", tmp_path / "list.txt", "--save_path", tmp_path / "f"]
    status, _, complained = run_script(*flags, *absent, processes=2, check=False)
    (line,) = set(ours(complained))
    assert status != 0 and "absent.wav does not exist (1 of" in line and not (tmp_path / "f").exists()


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_parts_are_the_batch(monkeypatch, processes, accumulate):
    rows = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        first, count = micro_batches(24, accumulate)
        assert len(first) == accumulate
        rows += [row for start in first for row in range(start, start + count)]
    assert sorted(rows) == list(range(24))


def test_each_process_has_its_own_device(monkeypatch):
    assert distributed.own_device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for available, gpus, name, expected in ((False, 0, "auto", "cpu"), (True, 2, "auto", "cuda:1"),
                                            (True, 2, "cuda", "cuda:1"), (True, 2, "cpu", "cpu")):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert distributed.own_device(name) == expected
    assert chosen == [1, 1]
    with pytest.raises(InputError, match="--device cuda:0 is one device for 2 processes"):
        distributed.own_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc_per_node is more than the 1 GPUs"):
        distributed.own_device("auto")


def test_synced_batch_norm_needs_gpus(command, corpus, tmp_path):
    status, _, error = command(trainSpeakerNet, *data_flags(corpus), *SMALL, "--sync_bn", "--save_path", tmp_path)
    assert status == 2 and "--sync_bn needs CUDA GPUs" in error


def test_a_large_list_is_not_trained_on_a_cpu_unasked():
    def check(*flags, utterances=100_000, device="cpu"):
        args = read_settings(trainSpeakerNet.build_parser(), ["--eval_list", "", *flags])
        distributed.check(args, torch.device(device), utterances)

    with pytest.raises(InputError, match=r"finds no GPU .* 100,000 utterances take weeks on a CPU: --device cpu if"):
        check()
    check("--device", "cpu")
    check(utterances=99_999)
    check(device="cuda")
