import math
import shutil

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from conftest import voice

from audio import Folder, UnreadableAudio, read_audio
from dataLoader import (
    Augmentation,
    Bank,
    CropLoader,
    TrainingList,
    TrialList,
    check_files,
    random_stream,
    row_numbers,
    torch_stream,
)
from tools import InputError, RunError

SAMPLES = 16240  # 100 frames


# ---- randomness ------------------------------------------------------------------------------------------------------


def test_streams_differ_by_every_part_of_their_position():
    positions = [(seed, stream, *more) for seed in (0, 1, 2**32, 2**32 + 1) for stream in ("order", "augment")
                 for more in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
    numbers = [random_stream(*position).integers(2**62) for position in positions]
    assert len(set(numbers)) == len(numbers)
    assert numbers == [random_stream(*position).integers(2**62) for position in positions]
    drawn = [torch.rand(3, generator=torch_stream(*position)) for position in positions[:2] * 2]
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_every_row_has_its_own_stretch_of_the_stream():
    whole = row_numbers(5, "augment", 1, 7, count=20, columns=9)
    assert whole.shape == (20, 9) and whole.dtype == np.float64 and len(np.unique(whole)) == whole.size
    assert np.array_equal(whole.ravel(), random_stream(5, "augment", 1, 7).random(180))
    for first, count in ((0, 20), (3, 6), (19, 1), (20, 0)):
        part = row_numbers(5, "augment", 1, 7, first=first, count=count, columns=9)
        assert np.array_equal(part, whole[first : first + count])


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_training_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("bob b/1.wav\n\nalice a/1.wav\nbob b/2.wav\n")
    listing = TrainingList(path)
    assert listing.speakers == ["alice", "bob"]
    assert listing.label.tolist() == [1, 0, 1]
    assert listing.files == ["b/1.wav", "a/1.wav", "b/2.wav"]
    assert listing.line_numbers == [1, 3, 4]


def test_a_list_from_a_windows_editor(tmp_path):
    """A byte-order mark and \\r\\n at the ends of lines are no part of a name."""
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfbob b/1.wav\r\nalice a/1.wav\r\nbob b/2.wav\r\n")
    assert TrainingList(path).speakers == ["alice", "bob"]
    assert TrainingList(path).files == ["b/1.wav", "a/1.wav", "b/2.wav"]


def test_trial_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("1 a b\n0 c d\n")
    trials = TrialList(path)
    assert (trials.label.tolist(), trials.enrol, trials.test) == ([1, 0], ["a", "c"], ["b", "d"])


@pytest.mark.parametrize(
    ("kind", "content", "complaint"),
    [
        (TrainingList, None, "does not exist"),
        (TrainingList, "", "is empty"),
        (TrainingList, "\n \n", "is empty"),
        (TrainingList, "a a/1.wav\nb\n", r"line 2: expected '<speaker> <path>', got 'b'"),
        (TrainingList, "1 a b\n", "line 1.*looks like a trial list"),
        (TrainingList, b"\xff\xfe\x00", "not a text file"),
        (TrialList, "1 a b\n0 a c\nid1 id1/a.wav\n", "line 3.*looks like a training list"),
        (TrialList, "2 a b\n", "line 1: expected"),
        (TrialList, "1 a b\n", "no different-speaker"),
        (TrialList, "0 a b\n", "no same-speaker"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path, kind, content, complaint):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=complaint) as raised:
        kind(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_missing_files_are_named_with_their_line(corpus, tmp_path):
    (tmp_path / "train.txt").write_text((corpus / "train_list.txt").read_text() + "x x/1.wav\nx x/2.wav\n")
    with pytest.raises(InputError, match=r"train.txt line 25: .*x/1.wav does not exist \(2 of 26 .*--train_path"):
        check_files(TrainingList(tmp_path / "train.txt"), Folder(corpus / "train"), "--train_path")
    check_files(TrialList(corpus / "trials.txt"), Folder(corpus / "eval"), "--eval_path")


# ---- batches ---------------------------------------------------------------------------------------------------------


def batches(corpus, threads=2, epoch=1, first_step=0, batch_size=10, seed=0, listing=None):
    listing = listing or TrainingList(corpus / "train_list.txt")
    loader = CropLoader(listing, Folder(corpus / "train"), SAMPLES, batch_size, seed, threads)
    return loader, [(step, waveform.clone(), label) for step, waveform, label in loader.epoch(epoch, first_step)]


def same(one, other):
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, other)
    )


def test_an_epoch_is_one_pass_over_the_list(corpus):
    loader, epoch = batches(corpus, batch_size=8)
    assert loader.steps == 3 and [step for step, _, _ in epoch] == [0, 1, 2]
    assert all(waveform.shape == (8, SAMPLES) and waveform.dtype == torch.int16 for _, waveform, _ in epoch)
    assert sorted(torch.cat([label for _, _, label in epoch]).tolist()) == sorted(list(range(6)) * 4)
    _, uneven = batches(corpus, batch_size=10)  # 24 utterances: the last batch is filled up
    labels = torch.cat([label for _, _, label in uneven])
    assert [len(label) for _, _, label in uneven] == [10, 10, 10]
    assert torch.equal(labels[24:], labels[:6])


def test_crops_come_from_the_utterance_with_that_label(corpus):
    listing = TrainingList(corpus / "train_list.txt")
    utterances = [read_audio(corpus / "train" / file) * 32768 for file in listing.files]
    _, epoch = batches(corpus, batch_size=8)
    found = []
    for _, waveform, label in epoch:
        for row, speaker in zip(waveform.numpy(), label.numpy()):
            places = [
                (i, start)
                for i, utterance in enumerate(utterances)
                for start in np.flatnonzero(utterance[: len(utterance) - SAMPLES + 1] == row[0])
                if np.array_equal(utterance[start : start + SAMPLES], row)
            ]
            assert len(places) == 1
            assert listing.label[places[0][0]] == speaker
            found.append(places[0])
    assert sorted(i for i, _ in found) == list(range(24))  # each once
    assert len({start for _, start in found}) > 12  # at different places


def test_threads_and_the_starting_step_change_nothing(corpus):
    _, one = batches(corpus, threads=1)
    assert same(one, batches(corpus, threads=5)[1])
    assert same(one[2:], batches(corpus, first_step=2)[1])
    assert batches(corpus, first_step=3)[1] == []


def test_epochs_and_seeds_differ(corpus):
    _, one = batches(corpus)
    assert not same(one, batches(corpus, epoch=2)[1])
    assert not same(one, batches(corpus, seed=1)[1])


def test_a_bad_file_is_replaced_reported_once_and_counted(corpus, tmp_path, capsys):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")
    (tmp_path / "train" / listing.files[3]).write_bytes(b"RIFF, but no more")
    loader = CropLoader(listing, Folder(tmp_path / "train"), SAMPLES, 8, 0, 3)
    labels = torch.cat([label for epoch in (1, 2) for _, _, label in loader.epoch(epoch)])
    assert loader.bad == {3}
    assert torch.bincount(labels).tolist() == [6, 10, 8, 8, 8, 8]  # line 4 gave way to line 5, of the next speaker
    complaints = capsys.readouterr().err.strip().splitlines()
    assert len(complaints) == 1
    assert f"train_list.txt line 4: {tmp_path}" in complaints[0] and "replaced" in complaints[0]


def test_more_than_one_percent_of_bad_files_ends_it(corpus, tmp_path):
    shutil.copytree(corpus / "train", tmp_path / "train")
    listing = TrainingList(corpus / "train_list.txt")
    for number in (3, 17):
        (tmp_path / "train" / listing.files[number]).unlink()
    loader = CropLoader(listing, Folder(tmp_path / "train"), SAMPLES, 8, 0, 2)
    with pytest.raises(RunError, match=r"2 of 24 training files cannot be read.*more than 1 %"):
        list(loader.epoch(1))


def test_a_list_of_nothing_but_bad_files_ends_it(corpus, tmp_path):
    (tmp_path / "list.txt").write_text("a none.wav\n")
    loader = CropLoader(TrainingList(tmp_path / "list.txt"), Folder(tmp_path), SAMPLES, 2, 0, 1)
    with pytest.raises(RunError, match="1 of 1 training files cannot be read"):
        list(loader.epoch(1))


# ---- the bank --------------------------------------------------------------------------------------------------------


def test_a_small_bank_takes_everything_in_turn():
    bank = Bank("noise", list(range(23)), lambda piece: np.array([piece], dtype=np.float32), 5, seed=0, threads=2)
    epochs = [bank.load(epoch).ravel().tolist() for epoch in range(1, 6)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert {piece for epoch in epochs for piece in epoch} == set(range(23))
    again = Bank("noise", list(range(23)), lambda piece: np.array([piece], dtype=np.float32), 5, seed=0, threads=1)
    assert again.load(4).ravel().tolist() == epochs[3]  # whatever came before


def test_a_bank_leaves_out_what_cannot_be_read(capsys):
    def read(piece):
        if piece % 2:
            raise UnreadableAudio(f"piece {piece} is broken")
        return np.array([piece])

    assert sorted(Bank("music", [0, 1, 2, 3], read, 4, 0, 2).load(1).ravel().tolist()) == [0, 2]
    assert capsys.readouterr().err.count("left out of the music") == 2
    with pytest.raises(RunError, match="none of the 2 pieces of music"):
        Bank("music", [1, 3], read, 4, 0, 2).load(1)


def test_the_bank_stays_within_its_memory(corpus):
    for bank_mb in (0.3, 1, 512):
        augmentation = Augmentation(corpus / "musan", corpus / "rirs", SAMPLES, bank_mb)
        augmentation.redraw(1)
        counts = [len(augmentation.spectra), *(count for _, count in augmentation.shelves.values())]
        assert all(count >= 1 for count in counts)
        held = augmentation.spectra.nbytes + augmentation.noises.nbytes
        assert held <= max(bank_mb * 1e6, 3 * 66000 + 132000)  # one piece of each at the least
        assert augmentation.energy.nbytes < 0.06 * augmentation.noises.nbytes + 9
    assert counts == [4, 8, 8, 8]  # 1, 4 and 9.5 s of noise in pieces of 2.03 s: 1 + 2 + 5


# ---- augmentation ----------------------------------------------------------------------------------------------------


def kinds_of(augmentation, count, epoch, step):
    """What was drawn for each row: the first of its numbers."""
    drawn = row_numbers(augmentation.seed, "augment", epoch, step, count=count, columns=33)[:, 0]
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


def test_every_kind_is_equally_likely(augmentation):
    drawn = np.concatenate([kinds_of(augmentation, 400, 1, step) for step in range(30)])
    share = [np.mean(drawn == kind) for kind in ("clean", "reverberation", "babble", "music", "noise", "television")]
    assert share == pytest.approx([1 / 6] * 6, abs=0.015) and sum(share) == pytest.approx(1)


def test_each_kind_lies_within_its_signal_to_noise_ratio(augmentation, speech):
    clean = speech.float() / 32768
    augmented = augmentation(speech, 1, 0)
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


def test_the_signal_to_noise_ratios_are_spread_evenly(augmentation):
    drawn = [augmentation._draw(400, 1, step, 0) for step in range(20)]
    place, level = (np.concatenate([each[i] for each in drawn]) for i in (3, 4))
    shelf = place // (augmentation.noise_length // 80)
    for category, (low, high) in {"speech": (13, 20), "music": (5, 15), "noise": (0, 15)}.items():
        first, count = augmentation.shelves[category]
        snr = -20 * np.log10(level[(shelf >= first) & (shelf < first + count)])
        expected = np.linspace(low, high, 11)
        assert np.quantile(snr, np.linspace(0, 1, 11)) == pytest.approx(expected, abs=0.05 * (high - low)), category
        assert np.bincount(shelf)[first : first + count].min() > 0.7 * len(snr) / count
    start = place % (augmentation.noise_length // 80)
    assert (start.min(), start.max()) == (0, SAMPLES // 80)  # the first and the last crop of a piece
    files = [np.bincount(each[2], minlength=400)[kinds_of(augmentation, 400, 1, i) == "babble"]
             for i, each in enumerate(drawn)]  # fmt: skip
    assert np.bincount(np.concatenate(files))[3:] / sum(map(len, files)) == pytest.approx([1 / 6] * 6, abs=0.04)


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
    assert np.abs(augmentation(speech[:100], 1, 4).numpy() - expected).max() < 1e-5


def test_all_devices_do_as_a_core_does(augmentation, speech, monkeypatch):
    """The way of other devices, on this one: the whole batch at once, all noises gathered and added together."""
    expected = augmentation(speech, 1, 4)
    monkeypatch.setattr(Augmentation, "_on_a_core", lambda self, waveform: False)
    assert (augmentation(speech, 1, 4) - expected).abs().max() < 2e-6


def test_a_part_of_a_batch_is_augmented_as_in_the_whole(augmentation, speech):
    whole = augmentation(speech[:64], 1, 5)
    for first, end in ((3, 8), (0, 32), (32, 64), (63, 64)):
        part = augmentation(speech[first:end], 1, 5, first=first)
        assert (part - whole[first:end]).abs().max() < 1e-6


def test_augmentation_depends_on_its_position_only(corpus, augmentation, speech):
    first = augmentation(speech, 1, 7)
    augmentation(speech, 1, 8)
    assert torch.equal(augmentation(speech, 1, 7), first)
    fresh = Augmentation(corpus / "musan", corpus / "rirs", SAMPLES, seed=3, threads=1)
    fresh.redraw(1)
    assert torch.equal(fresh(speech, 1, 7), first)
    assert not torch.equal(fresh(speech, 1, 8), first)


def test_silence_stays_finite(augmentation, corpus, tmp_path):
    silence = torch.zeros(60, SAMPLES, dtype=torch.int16)
    assert torch.equal(augmentation(silence, 1, 0), torch.zeros(60, SAMPLES))  # noise at x dB below nothing is nothing
    for category in ("noise", "music", "speech"):
        (tmp_path / category).mkdir()
        soundfile.write(tmp_path / category / "silent.wav", np.zeros(40000), 16000)
    silent = Augmentation(tmp_path, "", SAMPLES)
    silent.redraw(1)
    loud = torch.full((60, SAMPLES), 32767, dtype=torch.int16)
    assert torch.equal(silent(loud, 1, 0), loud / 32768)


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
    assert augmentation(speech, 1, 0).shape == speech.shape


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


@pytest.mark.parametrize(("musan", "rirs", "complaint"), [
    ("nowhere", "", "--musan_path .*nowhere is not a folder"),
    ("", "nowhere", "--rir_path .*nowhere is not a folder"),
    ("empty", "", "--musan_path .*empty has no audio in its folder 'noise'"),
    ("", "empty", "--rir_path .*empty holds no room responses"),
])  # fmt: skip
def test_folders_of_the_wrong_shape_are_named(tmp_path, musan, rirs, complaint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=complaint):
        Augmentation(musan and tmp_path / musan, rirs and tmp_path / rirs, SAMPLES)


def test_real_speech(real_data):
    """Everything in the package of real speech can be read, cropped and augmented."""
    augmentation = Augmentation(real_data / "musan", real_data / "rirs", 32240, bank_mb=100)
    augmentation.redraw(1)
    assert len(augmentation.banks["responses"].pieces) == 319
    listing = TrainingList(real_data / "train_list.txt")
    assert (len(listing), len(listing.speakers)) == (1297, 427)
    loader = CropLoader(listing, Folder(real_data), 32240, 64, 0, 2)
    for step, waveform, _ in loader.epoch(1, first_step=loader.steps - 3):
        augmented = augmentation(waveform, 1, step)
        assert augmented.isfinite().all() and augmented.std() > 1e-3
    assert not loader.bad
