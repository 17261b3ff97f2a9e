"""Speed perturbation against the sines that tones become, and against sums in float64."""

import numpy as np
import pytest
import torch
from conftest import voice

from dataLoader import Augmentation, SpeedPerturbation, row_numbers

SAMPLES = 16240  # 100 frames
N_CLASS = 7


@pytest.fixture(scope="module")
def speed():
    return SpeedPerturbation(SAMPLES, N_CLASS, seed=5)


@pytest.fixture(scope="module")
def speech(speed):
    seconds = speed.samples_needed / 16000 + 0.01
    rows = [np.rint(32768 * voice(80 + i, seconds, i)).astype(np.int16)[: speed.samples_needed] for i in range(60)]
    return torch.from_numpy(np.stack(rows)), torch.arange(60) % N_CLASS


def factors(label, count=N_CLASS):
    return np.array([1.0, 0.9, 1.1])[label.numpy() // count]


def by_definition(row, factor, samples):
    """The first samples of a waveform played faster: a windowed sinc around each new instant, in float64."""
    cut = 0.99 * min(1.0, 1 / factor)  # of half the sampling rate: 1 % less than what both rates can hold
    played = []
    for instant in np.arange(samples) * factor:
        distance = (np.arange(len(row)) - instant) * cut
        near = np.abs(distance) < 32
        window = np.cos(np.pi * distance[near] / 64) ** 2
        played.append(cut * np.sum(row[near] * np.sinc(distance[near]) * window))
    return np.array(played)


def test_speech_is_that_of_float64_sums(speed, speech):
    waveform, label = speech
    played, new_label = speed(waveform, label, 1, 0)
    for factor in (0.9, 1.1):
        row = int(np.flatnonzero(factors(new_label) == factor)[0])
        expected = by_definition(waveform[row].double().numpy(), factor, SAMPLES)
        assert np.abs(played[row].double().numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_utterances_at_their_own_speed_are_left_alone(speed, speech):
    waveform, label = speech
    before = waveform.clone()
    played, new_label = speed(waveform, label, 2, 3)
    own = factors(new_label) == 1.0
    assert torch.equal(played[own], waveform[own, :SAMPLES].float()) and own.any()
    assert played.dtype == torch.float32 and torch.equal(waveform, before)
    in_floats = waveform.float()
    assert torch.equal(speed(in_floats, label, 2, 3)[0], played)
    assert torch.equal(in_floats, before.float())


def test_another_speed_is_another_speaker(speed, speech):
    waveform, label = speech
    _, new_label = speed(waveform, label, 1, 0)
    assert new_label.dtype == torch.int64 and torch.equal(new_label % N_CLASS, label)
    assert set(factors(new_label)) == {0.9, 1.0, 1.1}
    drawn = row_numbers(5, "speed", 1, 0, first=0, count=60, columns=1)[:, 0]
    assert np.array_equal(factors(new_label), np.select([drawn < 1 / 3, drawn < 2 / 3], [1.0, 0.9], 1.1))


@pytest.mark.parametrize("rows", [1, 20])
def test_a_part_of_the_batch_is_what_it_is_in_the_whole(speed, speech, rows):
    waveform, label = speech
    played, new_label = speed(waveform, label, 3, 8)
    parts = [
        speed(waveform[first : first + rows], label[first : first + rows], 3, 8, first=first)
        for first in range(0, 60, rows)
    ]
    assert torch.equal(torch.cat([part[1] for part in parts]), new_label)
    # In units of int16: the order of a sum may depend on how many rows there are.
    assert (torch.cat([part[0] for part in parts]) - played).abs().max() < 0.01


@pytest.mark.parametrize("num_frames", [2, 37, 200])
def test_crops_are_full_to_their_last_sample(num_frames):
    """Whatever follows the crop that was asked for, nothing of it, and no silence, is in what comes out."""
    samples = num_frames * 160 + 240
    speed = SpeedPerturbation(samples, 1, seed=0)
    assert speed.samples_needed % 80 == 0 and 1.1 * samples < speed.samples_needed < 1.1 * samples + 160
    label = torch.zeros(20, dtype=torch.int64)
    constant = torch.full((20, speed.samples_needed), 1000.0)
    played, new_label = speed(constant, label, 1, 0)
    assert set(new_label.tolist()) == {0, 1, 2}
    assert (played[:, 60:] - 1000).abs().max() < 1  # silence after it would halve the last sample
    longer = torch.cat([constant, torch.full((20, 160), -1e6)], dim=1)
    assert torch.equal(speed(longer, label, 1, 0)[0], played)


@pytest.mark.parametrize("noisy", [True, False])
def test_one_call_does_speed_noise_and_masks(speed, speech, corpus, noisy):
    waveform, label = speech
    folders = (corpus / "musan", corpus / "rirs") if noisy else ("", "")
    augmentation = Augmentation(*folders, SAMPLES, seed=5, speed=speed)
    augmentation.redraw(1)
    assert augmentation.samples_needed == speed.samples_needed
    crops, new_label, masks = augmentation(waveform, label, 1, 0)
    played, expected = speed(waveform, label, 1, 0)
    assert torch.equal(new_label, expected) and torch.equal(crops, augmentation.augment(played, 1, 0))
    own = factors(new_label) == 1.0
    assert torch.equal(crops[own], augmentation.augment(waveform[:, :SAMPLES], 1, 0)[own])
    expected = row_numbers(5, "specaugment", 1, 0, first=0, count=60, columns=4)
    assert torch.equal(masks, torch.from_numpy(expected).float())
    part = augmentation(waveform[20:], label[20:], 1, 0, first=20)
    assert torch.equal(part[1], new_label[20:]) and torch.equal(part[2], masks[20:])
