"""benchmark.py as its users run it, and the customary loader that tests/studies compares with."""

import json
import re

import numpy as np
import pytest
from studies import customary

import benchmark
from corpora.audio import Folder
from tools import InputError

TINY = ("--C", 8, "--seconds", 0, "--n_cpu", 1, "--device", "cpu", "--batch_size", 4, "--num_frames", 40)
TRAINING = ["read", "augment", "training step", "end to end"]
EMBEDDING = [f"embed {seconds} s, {way}" for seconds in (1, 2) for way in ("one by one", "in batches")]


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    monkeypatch.setattr(benchmark, "UTTERANCE_SECONDS", 2)
    monkeypatch.setattr(benchmark, "EMBEDDED_SECONDS", {"cpu": 4})


def audio_flags(corpus):
    return ("--train_list", corpus / "train_list.txt", "--train_path", corpus / "train",
            "--musan_path", corpus / "musan", "--rir_path", corpus / "rirs")  # fmt: skip


@pytest.mark.parametrize("what", ["generated", "corpus", "embed"])
def test_every_stage_is_in_the_table_and_in_the_file(command, corpus, tmp_path, what):
    more = {"generated": ("--synthetic_gb", 0.001, "--amp", "bf16"), "corpus": audio_flags(corpus),
            "embed": ("--embed",)}[what]  # fmt: skip
    files = "--work", tmp_path / "work", "--json", tmp_path / "b.json"
    status, printed, error = command(benchmark, *TINY, *files, *more)
    assert status == 0, error
    content = json.loads((tmp_path / "b.json").read_text())
    rows = re.findall(r"^([a-z].{23}) +([\d,.]+) +([\d,.]+) \.\. ([\d,.]+) ", printed, re.MULTILINE)
    stages = EMBEDDING if what == "embed" else TRAINING
    assert [name.strip() for name, *_ in rows] == list(content["stages"]) == stages
    for low, median, high in content["stages"].values():
        assert 0 < low <= median <= high < 1e9
    if what != "embed":
        rate = content["stages"]["end to end"][1]
        assert content["hours"] == pytest.approx(80 * 1_092_009 / rate / 3600)
        assert f"{content['hours']:,.1f} hours" in printed and 0 <= content["waiting_percent"] <= 100


@pytest.mark.parametrize(("read", "end", "packed", "advice"), [
    (50, 48, False, "reading limits training: .* 48 % .*; pack the corpus"),
    (50, 49, True, "reading limits training: .*; raise --n_cpu, or use a faster disk"),
    (500, 80, True, "share too few cores"),
    (500, 99, True, r"network limits training \(augmentation takes 10 % of a step"),
])  # fmt: skip
def test_advice_follows_from_the_rates(read, end, packed, advice):
    assert re.search(advice, benchmark.advise(read, 1000, 100, end, packed))


@pytest.mark.parametrize("flags", [["--train_list", "a.txt"], ["--train_path", "a"], ["--C", "12"]])
def test_wrong_settings_are_named(flags):
    with pytest.raises(InputError, match=flags[0]):
        benchmark.read_settings(flags)


@pytest.fixture
def loader(corpus):
    folders = Folder(corpus / "train"), Folder(corpus / "musan"), Folder(corpus / "rirs", channel=0)
    return customary.CustomaryLoader(16240, *folders, np.random.default_rng(0))


@pytest.mark.parametrize(("category", "low", "high"), [("speech", 13, 20), ("music", 5, 15), ("noise", 0, 15)])
def test_the_customary_loader_mixes_at_the_stated_ratio(loader, category, low, high):
    speech = np.random.default_rng(1).standard_normal(16240)
    added = [loader.mixed(speech, category) - speech for _ in range(40)]
    snr = [10 * np.log10((speech @ speech) / (noise @ noise)) for noise in added]
    assert low - 1e-9 < min(snr) < max(snr) < high + 1e-9 and np.ptp(snr) > 0.6 * (high - low)


def test_the_customary_loader_is_compared_with_ours(corpus, capsys):
    flags = [*audio_flags(corpus), "--batch_size", 4, "--num_frames", 100, "--seconds", 0]
    customary.main(map(str, flags))
    assert re.search(r"--train_path: [\d,]+ utterances/s on one core, [\d.]+ times", capsys.readouterr().out)
