"""Lists, random streams by position, and batches of crops."""

import shutil

import numpy as np
import pytest
import torch

from corpora.audio import AudioFile, Folder
from corpora.lists import TrainingList
from dataLoader import CropLoader, random_stream, row_numbers
from tools import RunError

SAMPLES = 16240  # 100 frames


# ---- randomness ------------------------------------------------------------------------------------------------------


def test_streams_differ_by_every_part_of_their_position():
    positions = [(seed, stream, *more) for seed in (0, 1, 2**32, 2**32 + 1) for stream in ("order", "augment")
                 for more in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
    numbers = [random_stream(*position).integers(2**62) for position in positions]
    assert len(set(numbers)) == len(numbers)
    assert numbers == [random_stream(*position).integers(2**62) for position in positions]


def test_every_row_has_its_own_stretch_of_the_stream():
    whole = row_numbers(5, "augment", 1, 7, first=0, count=20, columns=9)
    assert whole.shape == (20, 9) and whole.dtype == np.float64 and len(np.unique(whole)) == whole.size
    assert np.array_equal(whole.ravel(), random_stream(5, "augment", 1, 7).random(180))
    for first, count in ((0, 20), (3, 6), (19, 1), (20, 0)):
        part = row_numbers(5, "augment", 1, 7, first=first, count=count, columns=9)
        assert np.array_equal(part, whole[first : first + count])


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
    utterances = [AudioFile(corpus / "train" / file).read() * 32768 for file in listing.files]
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


def test_a_process_reads_its_rows_of_the_same_batches(corpus):
    _, whole = batches(corpus)
    listing = TrainingList(corpus / "train_list.txt")
    rows = np.array([2, 3, 7])
    loader = CropLoader(listing, Folder(corpus / "train"), SAMPLES, 10, 0, 2, rows=rows)
    for (step, waveform, label), (expected_step, *expected) in zip(loader.epoch(1), whole, strict=True):
        assert step == expected_step
        assert torch.equal(waveform, expected[0][rows]) and torch.equal(label, expected[1][rows])


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
    with pytest.raises(RunError, match=r"2 of 24 training files cannot be read.*at most 1 %"):
        list(loader.epoch(1))
