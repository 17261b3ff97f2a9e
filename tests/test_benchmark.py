"""benchmark.py as its users run it."""

import re

import pytest

import benchmark
from corpora import demo

TINY = ("--C", 8, "--seconds", 0, "--n_cpu", 1, "--device", "cpu", "--batch_size", 4, "--num_frames", 40)


def audio_flags(corpus):
    return ("--train_list", corpus / "train_list.txt", "--train_path", corpus / "train",
            "--musan_path", corpus / "musan", "--rir_path", corpus / "rirs")  # fmt: skip


@pytest.mark.parametrize("what", ["demo", "corpus"])
def test_every_stage_is_in_the_table(command, corpus, tmp_path, monkeypatch, what):
    monkeypatch.setattr(demo, "BACKGROUND_FILES", 3)
    monkeypatch.setattr(benchmark, "make_demo", lambda _: demo.make_demo(tmp_path, 2, 2))
    more = ("--amp", "bf16") if what == "demo" else (*audio_flags(corpus), "--speed_perturb", "--sub_centres", 2)
    status, printed, error = command(benchmark, *TINY, *more)
    assert status == 0, error
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
