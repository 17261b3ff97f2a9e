"""The repository's commands on a CUDA device without one. Run by tests/test_fakecuda.py in a process of its own."""

import json

import pytest
import torch
from conftest import data_flags
from fakecuda.count import count, count_compiled
from fakecuda.device import FakeGPU

import benchmark
import trainSpeakerNet
from inference.checkpoints import Pretrained
from inference.encoder import SpeakerEncoder
from inference.systems import SYSTEMS
from loss import AAMsoftmax
from model import ECAPA_TDNN
from training import distributed, gpu_check
from training.run import SpeakerNet

# Upper bounds for a step of 400 crops of 200 frames with 5,994 classes in bf16, 5 % above what was counted (count.py).
BOUNDS = {
    1024: {"calls": 819, "GFLOP": 16.7, "MB": 208, "turned MB": 0.1, "kept MB": 14.9, "ms": 26.0},
    512: {"calls": 819, "GFLOP": 6.5, "MB": 147, "turned MB": 0.1, "kept MB": 9.6, "ms": 16.1},
}
COMPILED = {1024: {"calls": 631, "MB": 134, "ms": 18.6}, 512: {"calls": 638, "MB": 78.5, "ms": 9.3}}
SMALL = ["--C", 16, "--num_frames", 60, "--batch_size", 8, "--bank_mb", 5, "--n_cpu", 1, "--device", "cuda",
         "--no_compile"]  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fakecuda")


@pytest.fixture
def train(corpus, succeeds):
    """train(*flags) -> (what was printed, the waits for the GPU in training steps, those in Meter.add)."""

    def run(*flags):
        with FakeGPU() as gpu:
            printed = succeeds(trainSpeakerNet, *data_flags(corpus), *SMALL, *flags)
        return printed, *([each for each in gpu.waits if name in each] for name in ("train_step", "add (meter.py"))

    return run


def test_training_waits_for_the_gpu_once_a_step(train, folder):
    kinds = ["--speed_perturb", "--sub_centres", 2, "--top_k", 3, "--clip", 1, "--accumulate", 2, "--average", 2]
    printed, in_steps, in_meter = train("--save_path", folder / "exp", "--max_epoch", 2, *kinds)
    assert "amp bf16" in printed and "trials (average): EER" in printed
    assert len(in_steps) == 6 and not in_meter, (in_steps, in_meter)
    printed, in_steps, _ = train("--save_path", folder / "exp", "--max_epoch", 3, *kinds)
    assert "resuming" in printed and len(in_steps) == 3
    kinds = ["--initial_model", folder / "exp/model/model_0003.model", "--finetune_margin", "--sub_centres", 2]
    printed, in_steps, _ = train("--save_path", folder / "tuned", "--max_epoch", 1, *kinds)
    assert "encoder and 6 of the 18 classes" in printed and len(in_steps) == 3


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_other_optimizers_and_float32(train, folder, optimizer):
    flags = ["--optimizer", optimizer, "--max_epoch", 1, "--eval_list", "", "--amp", "off"]
    train("--save_path", folder / optimizer, *flags)


def test_evaluation_with_as_norm_and_calibration(train, folder):
    path = folder / "untrained.model"
    torch.save({f"speaker_encoder.{key}": each for key, each in ECAPA_TDNN(C=16).state_dict().items()}, path)
    printed, *_ = train("--eval", "--initial_model", path, "--calibrate", "--save_path", folder / "eval")
    assert "trials.as_norm: EER" in printed and "trials.calibrated: EER" in printed


def test_the_gpu_check_has_no_error_of_its_own(corpus, succeeds, folder, monkeypatch):
    monkeypatch.setattr(benchmark, "GPU_CHECK", folder / "check")
    monkeypatch.setattr(gpu_check, "VOX1_E", (10, 100, 200))
    monkeypatch.setattr(gpu_check, "STEPS", {"cuda": 1})
    monkeypatch.setattr(gpu_check, "measure", lambda count, work, *_: (1, 2, work() is None))
    monkeypatch.setattr(torch, "compile", lambda network, mode=None: lambda *batch: network(*batch))
    for flags in ([], ["--gpu_check"]):
        with FakeGPU():
            printed = succeeds(benchmark, *data_flags(corpus), *SMALL[:-1], "--seconds", 0, *flags)
    rows = json.loads((folder / "check.json").read_text())["rows"]
    assert len(rows) == 35 and all(isinstance(result, int | float) for _, _, result, _ in rows), printed
    expected = count(SpeakerNet(ECAPA_TDNN(C=16), AAMsoftmax(5994)), batch=8, frames=60)["GFLOP"]
    assert {what: result for _, what, result, _ in rows}["step"] == pytest.approx(expected, rel=1e-6)
    waits = [(result, places) for _, what, result, places in rows if what.startswith("waits")]
    assert len(waits) == 6 and all(count == 1 and "trainSpeakerNet.py" in places for count, places in waits), waits


def test_batch_norm_that_is_no_longer_finite():
    network = SpeakerNet(ECAPA_TDNN(C=16), AAMsoftmax(6))
    with FakeGPU(truth=False):
        network.to("cuda")
        distributed.reset_broken_statistics(network)
        distributed.average_statistics(network)


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_embed_utterances_of_different_lengths(name):
    system = SYSTEMS[name]
    one_by_one = name in ("campplus", "pyannote")  # they cut at the lengths, which a fake tensor does not have
    size = {"embedding_size": 512} if one_by_one else {}
    network = system.network(**size, **({"front_end": system.front_end()} if system.front_end else {}))
    with FakeGPU():
        encoder = SpeakerEncoder(network, "cuda", Pretrained(name, network))
        rows = [torch.rand(samples) for samples in (16000, 16000 if one_by_one else 20000, 16000)]
        assert encoder.embed_batch(rows).shape == (3, encoder.dimension)
        assert encoder.embed_batch(torch.rand(2, 16000), weights=torch.rand(2, 50)).shape == (2, encoder.dimension)


@pytest.mark.parametrize("C", BOUNDS)
def test_a_step_does_no_more_than_this(C):
    found = count(SpeakerNet(ECAPA_TDNN(C=C), AAMsoftmax(5994)))
    assert all(found[name] <= bound for name, bound in BOUNDS[C].items()) and len(found["waits"]) == 1, found


@pytest.mark.slow
@pytest.mark.parametrize("C", COMPILED)
def test_a_compiled_step_does_no_more_than_this(C):
    found = count_compiled(SpeakerNet(ECAPA_TDNN(C=C), AAMsoftmax(5994)))
    assert all(found[name] <= bound for name, bound in COMPILED[C].items()), found
