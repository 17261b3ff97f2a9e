"""The augmentation against float64 arithmetic one utterance at a time; the bank that it draws from."""

import math

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from conftest import voice

from corpora.audio import UnreadableAudio
from dataLoader import Augmentation, Bank, row_numbers
from tools import RunError

SAMPLES = 16240  # 100 frames


# ---- the bank --------------------------------------------------------------------------------------------------------


def load(bank, epoch):
    pieces = torch.full((bank.capacity, 1), -1.0)
    return pieces[: bank.load(epoch, pieces)].ravel().tolist()


def test_a_small_bank_takes_everything_in_turn():
    bank = Bank("noise", list(range(23)), lambda piece: np.array([piece], dtype=np.float32), 9, seed=0, threads=2)
    epochs = [load(bank, epoch) for epoch in range(1, 6)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert {piece for epoch in epochs for piece in epoch} == set(range(23))
    again = Bank("noise", list(range(23)), lambda piece: np.array([piece], dtype=np.float32), 9, seed=0, threads=1)
    assert load(again, 4) == epochs[3]  # whatever came before


def test_a_bank_leaves_out_what_cannot_be_read(capsys):
    def read(piece):
        if piece % 2:
            raise UnreadableAudio(f"piece {piece} is broken")
        return np.array([piece])

    assert sorted(load(Bank("music", [0, 1, 2, 3], read, 4, 0, 2), 1)) == [0, 2]
    assert capsys.readouterr().err.count("left out of the music") == 2
    with pytest.raises(RunError, match="none of the 2 pieces of music"):
        load(Bank("music", [1, 3], read, 4, 0, 2), 1)


def test_the_bank_stays_within_its_memory(corpus):
    for bank_mb in (0.3, 1, 512):
        augmentation = Augmentation(corpus / "musan", corpus / "rirs", SAMPLES, bank_mb)
        augmentation.redraw(1)
        counts = [len(augmentation.place), *(count for _, count in augmentation.categories.values())]
        assert all(count >= 1 for count in counts)
        held = augmentation.spectra.nbytes + augmentation.noises.nbytes
        assert held <= max(bank_mb * 1e6, 8 * (3 * 66000 + 132000))  # eight pieces of each at the least
        assert augmentation.energy.nbytes < 0.06 * augmentation.noises.nbytes + 9
    assert counts == [4, 8, 8, 8]  # 1, 4 and 9.5 s of noise in pieces of 2.03 s: 1 + 2 + 5


# ---- augmentation ----------------------------------------------------------------------------------------------------


def kinds_of(augmentation, count, epoch, step):
    """What was drawn for each row: the first of its numbers."""
    drawn = row_numbers(augmentation.seed, "augment", epoch, step, first=0, count=count, columns=33)[:, 0]
    return np.array(augmentation.kinds)[np.floor(drawn * len(augmentation.kinds)).astype(int)]


@pytest.fixture
def augmentation(corpus):
    module = Augmentation(corpus / "musan", corpus / "rirs", SAMPLES, seed=3)
    module.redraw(1)
    return module


@pytest.fixture
def speech():
    rows = [np.rint(32768 * voice(80 + i, SAMPLES / 16000, i)).astype(np.int16) for i in range(240)]
    return torch.from_numpy(np.stack(rows))


def test_each_kind_lies_within_its_signal_to_noise_ratio(augmentation, speech):
    clean = speech.float() / 32768
    augmented = augmentation.augment(speech, 1, 0)
    added = augmented - clean
    snr = 10 * torch.log10(clean.square().mean(1) / added.square().mean(1).clamp(min=1e-20))
    kind = kinds_of(augmentation, len(speech), 1, 0)
    ranges = {  # independent noises add in power: n files at a..b dB lie at a - 10 log n .. b - 10 log n
        "music": (5, 15),
        "noise": (0, 15),
        "babble": (13 - 10 * math.log10(8), 20 - 10 * math.log10(3)),
        "television": (-10 * math.log10(10**-0.5 + 8 * 10**-1.3), -10 * math.log10(10**-1.5 + 3 * 10**-2.0)),
    }
    assert torch.equal(augmented[kind == "clean"], clean[kind == "clean"])
    for name, (low, high) in ranges.items():
        found = snr[kind == name]
        assert len(found) > 20
        assert low - 0.6 < found.min() and found.max() < high + 0.6, name
        assert found.max() - found.min() > 0.4 * (high - low), name
    assert augmented.isfinite().all() and augmented.dtype == torch.float32


def reference(augmentation, waveform, epoch, step):
    """The same augmentation in float64, utterance by utterance, with powers and convolutions computed outright."""
    reverberated, response, noisy, place, level = augmentation._draw(len(waveform), epoch, step, 0)
    clean = waveform.numpy() / 32768
    augmented = clean.copy()
    files = augmentation.banks["responses"].chosen(1)
    for row, chosen in zip(reverberated, response):
        room, _ = soundfile.read(augmentation.rooms.root / files[chosen])
        direct = np.abs(room).argmax()
        room = np.pad(room, (augmentation.ONSET, 0))[direct : direct + augmentation.response_length]
        full = scipy.signal.convolve(clean[row], room / np.sqrt(np.sum(room**2)))
        augmented[row] = full[augmentation.ONSET :][: waveform.shape[1]]
    bank = augmentation.noises.numpy().ravel() / 32768
    for row, start, factor in zip(noisy, place, level):
        noise = bank[80 * start :][: waveform.shape[1]]
        wanted = 10 * np.log10(np.mean(clean[row] ** 2)) + 20 * np.log10(factor)
        augmented[row] += noise * 10 ** ((wanted - 10 * np.log10(np.mean(noise**2))) / 20)
    return augmented


def test_a_batch_is_augmented_as_its_utterances_one_by_one(augmentation, speech):
    expected = reference(augmentation, speech[:100], 1, 4)
    assert np.abs(augmentation.augment(speech[:100], 1, 4).numpy() - expected).max() < 1e-5


def test_short_and_long_responses_are_convolved_alike(tmp_path, speech):
    random = np.random.default_rng(0)
    lengths = [1, 3, 4000, 4500, 4600, 4800, 5000, 9000, 16400, 20000]
    for number, length in enumerate(lengths):
        response = random.uniform(-0.5, 0.5, 700 + length)  # as loud to its end: any sample cut off would show
        response[700] = 0.9
        soundfile.write(tmp_path / f"{number}.wav", response, 16000, subtype="FLOAT")
    augmentation = Augmentation("", tmp_path, SAMPLES, seed=3)
    augmentation.redraw(1)
    assert len(set(augmentation.transform_size)) == 2
    for step in range(2):
        expected = reference(augmentation, speech, 1, step)
        assert np.abs(augmentation.augment(speech, 1, step).numpy() - expected).max() < 1e-5
    short = Augmentation("", tmp_path, SAMPLES, seed=3)
    short.spectra = short._transformed(torch.eye(3, short.response_length))  # none is long
    assert short.transform_size.tolist() == [16384] * 3


def test_all_devices_do_as_a_core_does(augmentation, speech, monkeypatch):
    """The way of other devices, on this one: the whole batch at once, all noises gathered and added together."""
    expected = augmentation.augment(speech, 1, 4)
    monkeypatch.setattr(Augmentation, "_on_cpu", lambda self, waveform: False)
    assert (augmentation.augment(speech, 1, 4) - expected).abs().max() < 2e-6


def test_a_part_of_a_batch_is_augmented_as_in_the_whole(augmentation, speech):
    whole = augmentation.augment(speech[:64], 1, 5)
    for first, end in ((3, 8), (0, 32), (32, 64), (63, 64)):
        part = augmentation.augment(speech[first:end], 1, 5, first=first)
        assert (part - whole[first:end]).abs().max() < 1e-6


def test_augmentation_depends_on_its_position_only(corpus, augmentation, speech):
    first = augmentation.augment(speech, 1, 7)
    augmentation.augment(speech, 1, 8)
    assert torch.equal(augmentation.augment(speech, 1, 7), first)
    fresh = Augmentation(corpus / "musan", corpus / "rirs", SAMPLES, seed=3, threads=1)
    fresh.redraw(1)
    assert torch.equal(fresh.augment(speech, 1, 7), first)
    assert not torch.equal(fresh.augment(speech, 1, 8), first)


def test_silence_stays_finite(augmentation, corpus, tmp_path):
    silence = torch.zeros(60, SAMPLES, dtype=torch.int16)
    assert torch.equal(augmentation.augment(silence, 1, 0), torch.zeros(60, SAMPLES))  # x dB below nothing is nothing
    for category in ("noise", "music", "speech"):
        (tmp_path / category).mkdir()
        soundfile.write(tmp_path / category / "silent.wav", np.zeros(40000), 16000)
    silent = Augmentation(tmp_path, "", SAMPLES)
    silent.redraw(1)
    loud = torch.full((60, SAMPLES), 32767, dtype=torch.int16)
    assert torch.equal(silent.augment(loud, 1, 0), loud / 32768)


@pytest.mark.parametrize(("musan", "rirs", "kinds"), [
    (True, True, ["clean", "reverberation", "babble", "music", "noise", "television"]),
    (True, False, ["clean", "babble", "music", "noise", "television"]),
    (False, True, ["clean", "reverberation"]),
    (False, False, ["clean"]),
])  # fmt: skip
def test_without_a_path_its_kinds_are_left_out(corpus, speech, musan, rirs, kinds):
    augmentation = Augmentation(corpus / "musan" if musan else "", corpus / "rirs" if rirs else "", SAMPLES)
    augmentation.redraw(1)
    assert augmentation.kinds == kinds
    assert augmentation.augment(speech, 1, 0).shape == speech.shape


def test_musan_and_rirs_noises_in_all_their_layouts(corpus, tmp_path, capsys):
    noise = 0.1 * np.random.default_rng(0).standard_normal(80000)
    for category in ("noise", "music", "speech"):  # as split into pieces, one folder more
        folder = tmp_path / "musan_split" / category / "free-sound" / f"{category}-0000"
        folder.mkdir(parents=True)
        soundfile.write(folder / "00000.wav", np.stack([noise, 0 * noise], axis=1), 48000)  # stereo at another rate
        (folder / "LICENSE").write_text("not audio")
    rirs = tmp_path / "RIRS_NOISES"
    real = "real_rirs_isotropic_noises"
    for file in ("simulated_rirs/smallroom/Room001/Room001-00001.wav", f"{real}/RWCP_type1_rir_1.wav",
                 f"{real}/RVB2014_type1_noise_1.wav", "pointsource_noises/noise-free-sound-0000.wav"):
        (rirs / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(rirs / file, np.stack([np.eye(1, 4000, 30)[0]] * 8, axis=1), 16000)  # eight channels
    augmentation = Augmentation(tmp_path / "musan_split", rirs, SAMPLES)
    augmentation.redraw(1)
    responses = {file.rsplit("/")[-1] for file in augmentation.banks["responses"].pieces}
    assert responses == {"Room001-00001.wav", "RWCP_type1_rir_1.wav"}
    assert augmentation.noises.shape == (3, 2 * SAMPLES) and augmentation.noises.float().std(dim=1).min() > 100
    assert capsys.readouterr().err == ""
