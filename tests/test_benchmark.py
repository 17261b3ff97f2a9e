"""benchmark.py as its users run it."""

import json
import re

import pytest
import torch
from conftest import data_flags

import benchmark
from corpora import demo
from training.gpu_check import GPUCheck

TINY = ("--C", 8, "--seconds", 0, "--n_cpu", 1, "--device", "cpu", "--batch_size", 4, "--num_frames", 40,
        "--no_compile")  # fmt: skip


def small_demo(monkeypatch, folder):
    monkeypatch.setattr(demo, "BACKGROUND_FILES", 3)
    monkeypatch.setattr(benchmark, "make_demo", lambda _: demo.make_demo(folder, 2, 2))


@pytest.mark.parametrize("what", ["demo", "corpus"])
def test_every_stage_is_in_the_table(succeeds, corpus, tmp_path, monkeypatch, what):
    if what == "demo":
        small_demo(monkeypatch, tmp_path)
    more = ("--amp", "bf16") if what == "demo" else (*data_flags(corpus), "--speed_perturb", "--sub_centres", 2)
    printed = succeeds(benchmark, *TINY, *more)
    rows = re.findall(r"^([a-z].{23}) +([\d,.]+) +([\d,.]+) \.\. ([\d,.]+) ", printed, re.MULTILINE)
    assert [name.strip() for name, *_ in rows] == ["read", "augment", "training step", "end to end"]
    rates = [[float(number.replace(",", "")) for number in numbers] for _, *numbers in rows]
    assert all(0 < low <= median <= high for median, low, high in rates)
    hours = float(re.search(r"80 epochs of VoxCeleb2, .* utterances: ([\d,.]+) hours", printed)[1].replace(",", ""))
    assert hours == pytest.approx(80 * 1_092_009 / rates[-1][0] / 3600, rel=0.01)


@pytest.mark.parametrize(("read", "end", "packed", "advice"), [
    (50, 48, False, "reading limits training: .* 48 % .*; pack the corpus"),
    (50, 49, True, "reading limits training: .*; raise --n_cpu, or use a faster disk"),
    (500, 80, True, "share too few cores"),
    (500, 99, True, r"network limits training \(augmentation takes 10 % of a step"),
])  # fmt: skip
def test_advice_follows_from_the_rates(read, end, packed, advice):
    assert re.search(advice, benchmark.advise(read, 1000, 100, end, packed))


class Wrong(GPUCheck):
    """With features of the network that are 1 % off, and a check that fails."""

    def limits(self):
        encoder, features = self.network.speaker_encoder, self.network.speaker_encoder.features
        encoder.features = lambda *inputs: 1.01 * features(*inputs)
        yield "before", 0.123456, "s"
        raise ValueError("broken\nin two lines")


def test_gpu_check_finds_differences_and_survives_errors(succeeds, tmp_path, monkeypatch):
    small_demo(monkeypatch, tmp_path / "demo")
    monkeypatch.setattr(benchmark, "GPU_CHECK", tmp_path / "check")
    monkeypatch.setattr(benchmark, "GPUCheck", Wrong)
    printed = succeeds(benchmark, *TINY, "--gpu_check")
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    results = {(check, what): result for check, what, result, _ in rows}
    assert (tmp_path / "check.md").read_text() in printed and printed.count("\n| ") == len(results) + 1
    assert results["device", ""].startswith("failed: ValueError: broken") and "| before | 0.12346 s |" in printed
    found = [results["relative difference from the CPU", what] for what in ("augmentation", "features", "embedding")]
    assert found[0] == 0 and found[1] == pytest.approx(0.01, rel=1e-3) and found[2] > 1e-4
    assert list(results.values()).count("needs CUDA") == 6 and results["end to end", "from a pack"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_is_one_line(command):
    status, _, error = command(benchmark, "--gpu_check")
    assert status == 2 and error.count("\n") == 1 and "--device cpu" in error
