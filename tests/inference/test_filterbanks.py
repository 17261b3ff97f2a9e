import numpy as np
import pytest
import torch
import torchaudio
from conftest import relative_error

from inference.filterbanks import ExportableFilterbank, KaldiFilterbank, SpeechBrainFilterbank
from model import LogMel


@pytest.mark.parametrize(("window", "scale"), [("povey", 1.0), ("hamming", 32768.0)])
@pytest.mark.parametrize("samples", [400, 559, 560, 16000])
def test_kaldi_against_torchaudio(window, scale, samples):
    waveform = 0.1 * torch.randn(2, samples) + torch.tensor([[0.0], [0.3]])  # one with an offset
    found = KaldiFilterbank(window, scale)(waveform)
    for row, expected in zip(found, waveform):
        fbank = torchaudio.compliance.kaldi.fbank(scale * expected[None], num_mel_bins=80, window_type=window)
        assert relative_error(row.t(), fbank) < 1e-4


def test_speechbrain_against_its_definition():
    """Frame by frame in float64: periodic Hamming, 400-point DFT, triangles symmetric in Hz, decibels."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 8000)
    padded = np.pad(waveform, 200)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * t : 160 * t + 400] * window for t in range(1 + 8000 // 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    hz = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 82) / 2595) - 1)
    energies = []
    for i in range(1, 81):
        slope = (np.linspace(0, 8000, 201) - hz[i]) / (hz[i] - hz[i - 1])
        energies.append(power @ np.maximum(0, np.minimum(1 + slope, 1 - slope)))
    expected = 10 * np.log10(np.maximum(energies, 1e-10))
    found = SpeechBrainFilterbank()(torch.tensor(waveform, dtype=torch.float32)[None])[0]
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(("window", "scale"), [("povey", 1.0), ("hamming", 32768.0)])
def test_an_offset_leaves_no_rounding_behind(window, scale):
    """Frame by frame in float64: a few steps of 24 bits beside offsets and digital silence."""
    quiet = torch.randint(-9, 10, (1, 16000)) / 2**23
    quiet += torch.tensor([0.25, 0.0, -0.5, 0.001]).repeat_interleave(4000)  # exactly
    quiet[:, 7000:8500] = 0
    quiet[:, 14000:] = 0.3
    frames = quiet.double().unfold(1, 400, 160)[0] * scale
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    n = torch.arange(400, dtype=torch.float64)
    hann = 0.5 - 0.5 * (2 * torch.pi * n / 399).cos()
    frames = frames * (hann**0.85 if window == "povey" else 0.08 + 0.92 * hann)
    power = torch.fft.rfft(frames, 512)[:, :256].abs().square()
    filterbank = KaldiFilterbank(window, scale)
    expected = (power @ filterbank.mel.double().t()).clamp(min=2**-23).log().t()
    assert (filterbank(quiet)[0] - expected).abs().max() < 1e-3
    assert (expected == expected.min()).all(dim=0).sum() > 10  # whole frames of the floor


def test_the_exportable_one_is_our_own():
    waveform = 0.1 * torch.randn(2, 16123)
    assert relative_error(ExportableFilterbank(LogMel())(waveform), LogMel()(waveform)) < 1e-5
