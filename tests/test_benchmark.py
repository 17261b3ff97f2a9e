import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import relative_error

import benchmark
from benchmark import Stage, advise, count_work, hours, read_settings
from corpora.audio import Folder
from inference.encoder import SpeakerEncoder
from loss import AAMsoftmax
from model import ECAPA_TDNN
from tests.studies.customary import Customary
from tools import InputError, RunError

EMBEDDING = [f"embed {kind}, {way}" for kind in ("1 s", "2 s") for way in ("one by one", "in batches")]
STAGES = ["read", "augment", "features", "forward + backward", "optimizer", "whole step", "end to end",
          *EMBEDDING, "score Vox1-O cleaned", "metrics Vox1-O cleaned",
          "score Vox1-E cleaned", "metrics Vox1-E cleaned"]  # fmt: skip
QUICK = ("--C", 8, "--seconds", 0, "--n_cpu", 1, "--device", "cpu")
TINY = (*QUICK, "--batch_size", 4, "--num_frames", 40)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small lists and a short look at the device, so that a run takes seconds."""
    monkeypatch.setattr(benchmark, "TRIALS", {"Vox1-O cleaned": (1000, 50), "Vox1-E cleaned": (2000, 80)})
    monkeypatch.setattr(benchmark, "UTTERANCE_SECONDS", 2)
    monkeypatch.setattr(benchmark, "EMBEDDED_SECONDS", {"cpu": 4})
    monkeypatch.setattr(benchmark, "measure_limits", lambda *_: {"copy": 1e10, "matrix": 1e11})


def corpus_flags(corpus):
    return ("--train_list", corpus / "train_list.txt", "--train_path", corpus / "train",
            "--musan_path", corpus / "musan", "--rir_path", corpus / "rirs")  # fmt: skip


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made_up", [True, False])
def test_every_stage_is_in_the_table_and_in_the_file(command, corpus, tmp_path, made_up):
    where = ("--work", tmp_path / "work", "--synthetic_gb", 0.001) if made_up else corpus_flags(corpus)
    amp = "off" if made_up else "bf16"
    status, printed, _ = command(benchmark, *TINY, *where, "--amp", amp, "--work", tmp_path / "work",
                                 "--json", tmp_path / "b.json")  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "b.json").read_text())
    assert list(content["stages"]) == STAGES
    assert [line[:24].strip() for line in printed.splitlines() if re.search(" (utt|trl)/s ", line)] == STAGES
    for stage in content["stages"].values():
        numbers = [stage[name] for name in ("rate", "low", "high", "limit", "achieved", "repetitions", "count")]
        assert all(0 < number < math.inf for number in numbers)
        assert stage["low"] <= stage["rate"] <= stage["high"] and stage["repetitions"] >= 3
        assert stage["operations"] + stage["bytes"] > 0
    parts = [content["stages"][name] for name in STAGES[1:5]]
    assert all(part["share"] > 0 for part in parts)
    assert content["stages"]["whole step"]["limit"] == pytest.approx(1 / sum(1 / part["limit"] for part in parts))
    assert content["hours"] == pytest.approx(80 * 1_092_009 / content["stages"]["end to end"]["rate"] / 3600)
    assert f"{content['hours']:,.1f} hours" in printed and content["advice"] in printed
    assert content["settings"]["amp"] == amp


def test_embedding_alone(command, tmp_path, monkeypatch):
    where = ("--work", tmp_path / "work", "--json", tmp_path / "b.json")
    embedded, embed_files = [], SpeakerEncoder.embed_files
    recording = lambda self, files, **more: embedded.append(files) or embed_files(self, files, **more)  # noqa: E731
    monkeypatch.setattr(SpeakerEncoder, "embed_files", recording)
    status, printed, _ = command(benchmark, "--embed", *QUICK, *where)
    assert status == 0 and {len(files) for files in embedded} == {4, 2}
    content = json.loads((tmp_path / "b.json").read_text())
    assert list(content["stages"]) == [line[:24].strip() for line in printed.splitlines()[-4:]] == EMBEDDING
    assert [stage["count"] for stage in content["stages"].values()] == [4, 4, 2, 2]
    for name, frames in zip(EMBEDDING[1::2], (101, 201)):
        by_hand = operations_by_hand(8, frames, 0) + frames * 2 * 257 * 80  # with the mel filters
        assert content["stages"][name]["operations"] == pytest.approx(by_hand, rel=1e-3)
    assert sorted(Folder(tmp_path / "work").find()) == sorted(
        [*(f"1s/{number}.wav" for number in range(4)), "2s/0.wav", "2s/1.wav"]
    )


def test_the_limits_of_this_device_are_measured(monkeypatch):
    monkeypatch.undo()
    limits = benchmark.measure_limits(torch.device("cpu"), torch.float32, 0)
    assert 1e8 < limits["copy"] < 1e13 and 1e8 < limits["matrix"] < 1e16


def test_a_stage_beside_its_limit():
    limits = {"copy": 1e9, "matrix": 1e12}
    stage = Stage("x", 100, [1.0, 2.0, 3.0, 4.0, 5.0], limits, operations=1e9, bytes=1e7)
    assert (stage.rate, stage.low, stage.high) == pytest.approx((100 / 3, 25, 50))
    assert (stage.bound, stage.limit) == ("memory", pytest.approx(100))  # 10 ms to move it, 1 ms to compute it
    stage = Stage("x", 100, [1.0], limits, operations=1e11, bytes=1e7)
    assert (stage.bound, stage.limit) == ("matrix", pytest.approx(10))


def test_predicted_hours():
    assert hours(rate=1_092_009 / 60) == pytest.approx(80 / 60)  # an epoch a minute
    assert hours(rate=100, utterances=36_000, epochs=2) == pytest.approx(0.2)


@pytest.mark.parametrize(("read", "end", "packed", "shares", "amp", "compiled", "said"), [
    (50, 48, False, {}, "off", False, r"bound by reading: .* 48 % .*; pack the corpus"),
    (50, 49, True, {}, "off", False, "bound by reading: .*; raise --n_cpu, or use a faster disk"),
    (500, 80, True, {}, "off", False, "share too few cores"),
    (5000, 70, True, {}, "off", False, "70 % .*, which reading does not explain: the machine is busy"),
    (500, 99, True, {"forward + backward": (0.9, 0.6)}, "off", False, "at 60 % of its limit, by matrix: --amp bf16"),
    (500, 99, True, {"forward + backward": (0.9, 0.6)}, "bf16", False, "takes 90 % .*: bound by computation"),
    (500, 99, True, {"augment": (0.9, 0.1)}, "bf16", False, "'augment' .*at 10 % .*try --compile, or a larger --batch"),
    (500, 99, True, {"augment": (0.9, 0.1)}, "bf16", True, "'augment' takes 90 % .*try a larger --batch_size"),
])  # fmt: skip
def test_advice_follows_from_the_numbers(read, end, packed, shares, amp, compiled, said):
    def stage(rate, share=0.01, achieved=0.5):
        made = Stage("x", 1, [1 / rate], {"copy": 1, "matrix": 1}, operations=achieved / rate)
        made.share = share
        return made

    stages = {name: stage(1000) for name in ("augment", "features", "forward + backward", "optimizer")}
    stages |= {name: stage(1000, *numbers) for name, numbers in shares.items()}
    stages |= {"read": stage(read), "whole step": stage(100), "end to end": stage(end)}
    for name, each in stages.items():
        each.name = name
    assert re.search(said, advise(stages, packed, amp, compiled, bf16_possible=True))


# ---- counting --------------------------------------------------------------------------------------------------------


def operations_by_hand(C, frames, classes):
    """Of a forward pass: two for each weight of a convolution, at each frame, and for each weight of a product."""
    per_frame = 80 * 5 * C
    per_frame += 3 * (2 * C * C + 7 * 3 * (C // 8) ** 2)  # SE-Res2 blocks: two 1x1, seven chunks
    per_frame += 3 * C * 1536
    per_frame += 1536 * 256 + 256 * 1536  # attention: the part that sees the frame, and its way back
    once = 3 * 2 * C * 128 + 2 * 1536 * 256 + 2 * 1536 * 192 + 192 * classes
    return 2 * (frames * per_frame + once)


@pytest.mark.parametrize(("C", "frames"), [(16, 60), (64, 101)])
def test_operations_agree_with_a_count_by_hand(C, frames):
    encoder, classifier = ECAPA_TDNN(C=C), AAMsoftmax(50)
    features = torch.randn(6, 80, frames, requires_grad=True)
    operations, _ = count_work(encoder.embed, features, lambda e: classifier(e, torch.arange(len(e)))[0])
    # Backward, each product is done twice: for the slopes of its weights and of what came in.
    assert operations == pytest.approx(3 * operations_by_hand(C, frames, 50), rel=0.02)


def test_bytes_kept_for_the_backward_pass():
    network = torch.nn.Sequential(torch.nn.Conv1d(80, 32, kernel_size=1), torch.nn.ReLU())
    operations, kept = count_work(network, torch.randn(6, 80, 50), lambda x: x.mean())
    assert kept == 4 * 50 * (80 + 32)  # what the convolution got, and what the ReLU gave; not the weights
    assert operations == 2 * 2 * 50 * 80 * 32  # nobody asks for the slope of the features


def test_out_of_memory_names_the_stage():
    def work():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GB.\nSee documentation")

    with pytest.raises(RunError, match=r"out of memory in the stage 'augment': try a smaller --batch_size") as raised:
        benchmark.repeat({"augment": work}, torch.device("cpu"), 0)
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="size"):  # another mistake stays what it is
        benchmark.repeat({"x": lambda: torch.ones(2) @ torch.ones(3)}, torch.device("cpu"), 0)


# ---- the customary loader --------------------------------------------------------------------------------------------


@pytest.fixture
def customary(corpus):
    folders = Folder(corpus / "train"), corpus / "musan", corpus / "rirs"
    return Customary(16240, *folders, np.random.default_rng(0))


@pytest.mark.parametrize(("category", "low", "high"), [("speech", 13, 20), ("music", 5, 15), ("noise", 0, 15)])
def test_the_baseline_mixes_at_the_stated_ratio(customary, category, low, high):
    random = np.random.default_rng(1)
    speech, noise = random.standard_normal(16240), 7 * random.uniform(-1, 1, 16240)
    for snr in (0.0, 7.5, 20.0):
        added = customary.scaled(noise, speech, snr)
        assert 10 * np.log10((speech @ speech) / (added @ added)) == pytest.approx(snr, abs=1e-9)
        assert relative_error(added / np.linalg.norm(added), noise / np.linalg.norm(noise)) < 1e-12
    found = []
    for _ in range(40):
        added = customary.mixed(speech, category) - speech
        found.append(10 * np.log10((speech @ speech) / (added @ added)))
    assert low - 1e-9 < min(found) < max(found) < high + 1e-9 and np.ptp(found) > 0.6 * (high - low)


def test_the_baseline_reverberates(customary, corpus):
    pulse = np.zeros(16240)
    pulse[100] = 1
    found = customary.reverberated(pulse)
    assert found.shape == (16240,) and np.abs(found[:100]).max() < 1e-12
    assert np.sum(found**2) == pytest.approx(1)


def test_baseline_and_ours_are_compared(command, corpus, tmp_path):
    status, printed, _ = command(benchmark, "--baseline", *corpus_flags(corpus), "--batch_size", 6, "--seconds", 0,
                                 "--num_frames", 100, "--json", tmp_path / "b.json")  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "b.json").read_text())
    costs = content["seconds_per_utterance"]
    assert set(costs) == {"customary", "ours: reading", "ours: augmentation"}
    assert all(0 < cost < 1 for cost in costs.values())
    ours = costs["ours: reading"] + costs["ours: augmentation"]
    assert content["ratio"]["ours"] == pytest.approx(costs["customary"] / ours)
    assert f"{1 / ours:,.0f} utt/s per core" in printed
    assert sum(content["customary_shares"].values()) == pytest.approx(1)
    assert {"reading the utterance", "reading noises"} <= set(content["customary_shares"])


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "complaint"), [
    (["--baseline"], "--baseline needs files"),
    (["--train_list", "a.txt"], "needs --train_list and --train_path"),
    (["--data", "corpus"], "needs --train_list and --train_path"),
    (["--C", "12"], "--C must be a multiple of 8, not 12"),
    (["--batch_size", "1"], "--batch_size must be at least 2, not 1"),
    (["--synthetic_gb", "0"], "--synthetic_gb must be more than 0"),
    (["--seconds", "nan"], "--seconds must be at least 0, not nan"),
    (["--pack", "x"], "--pack goes with --baseline"),
    (["--embed", "--compile"], "--compile belongs to measuring training, not to --embed"),
    (["--baseline", "--embed"], "--baseline belongs to measuring training, not to --embed"),
])  # fmt: skip
def test_bad_settings_are_named(flags, complaint):
    with pytest.raises(InputError, match=complaint):
        read_settings(flags)


def test_a_missing_list_is_one_line(command, tmp_path):
    status, _, complained = command(benchmark, "--train_list", tmp_path / "none.txt", "--train_path", tmp_path, *TINY)
    assert status == 2
    assert re.fullmatch(r"benchmark.py: --train_list .*none.txt does not exist\n", complained)
