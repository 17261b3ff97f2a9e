"""Front ends of other systems: SpeechBrain's and Kaldi's log-mel energies, as the original code computes them.

A front end is a module (B, samples) in [-1, 1] at 16 kHz -> (B, 80, T). In a batch of different ``lengths`` (B,), in
samples, the first ``frames(lengths)`` frames of an utterance do not depend on the padding. The network (model.py)
subtracts the mean over time. The recipe's own front end is in model.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

from model import SAMPLE_RATE, reflect, valid_until


class Filterbank(nn.Module):
    """Log-mel energies by two matrix products: frames by a windowed Fourier matrix, power spectra by mel filters.

    The Fourier matrix includes window and pre-emphasis, so the power spectrum is one strided convolution with it. The
    buffers are not part of a checkpoint.
    """

    def __init__(self, frame_matrix, n_fft, mel):
        """frame_matrix: (400, 400) applied to each frame; mel: (80, bins) filters, from the lowest bin on."""
        super().__init__()
        angle = torch.outer(torch.arange(mel.shape[1]), torch.arange(400)).double() * (2 * math.pi / n_fft)
        fourier = torch.cat([angle.cos(), -angle.sin()]) @ frame_matrix
        self.register_buffer("fourier", fourier.float().unsqueeze(1), persistent=False)
        self.register_buffer("mel", mel.float(), persistent=False)

    def frames(self, samples):
        """Number of frames for a number of samples."""
        return 1 + samples // 160

    def energies(self, waveform):
        """(B, samples) -> (B, 80, T), a frame every 160 samples."""
        return self.filtered(F.conv1d(waveform.unsqueeze(1), self.fourier, stride=160))

    def filtered(self, spectrum):
        """Real and imaginary parts, (B, 2 bins, T) -> (B, 80, T)."""
        real, imaginary = spectrum.chunk(2, dim=1)
        return self.mel @ (real.square() + imaginary.square())


class SpeechBrainFilterbank(Filterbank):
    """SpeechBrain's Fbank: periodic Hamming window, triangles that are symmetric in Hz, 80 dB of range.

    (B, samples) -> (B, 80, 1 + samples // 160).
    """

    def __init__(self):
        window = torch.hamming_window(400, periodic=True, dtype=torch.float64)
        highest = 2595 * math.log10(1 + 8000 / 700)
        hz = 700 * (10 ** (torch.linspace(0, highest, 82, dtype=torch.float64) / 2595) - 1)
        centre, width = hz[1:-1, None], hz.diff()[:-1, None]  # both sides have the width of the lower one
        bins = torch.linspace(0, 8000, 201, dtype=torch.float64)
        super().__init__(window.diag(), 400, (1 - (bins - centre).abs() / width).clamp(min=0))

    def forward(self, waveform, lengths=None):
        if lengths is not None:  # zeros after each utterance
            waveform = waveform * valid_until(lengths, waveform.shape[1]).squeeze(1)
        decibels = 10 * self.energies(F.pad(waveform, (200, 200))).clamp(min=1e-10).log10()
        valid = decibels
        if lengths is not None:
            valid = decibels + valid_until(self.frames(lengths), decibels.shape[2]).log()
        return decibels.maximum(valid.amax(dim=(1, 2), keepdim=True) - 80)


class KaldiFilterbank(Filterbank):
    """Kaldi's fbank without dither: each frame's mean removed, pre-emphasis 0.97, triangles that are linear in mel.

    (B, samples) -> (B, 80, 1 + (samples - 400) // 160): complete frames only. window: "povey" or "hamming"; scale:
    factor on a waveform in [-1, 1].
    """

    def __init__(self, window, scale):
        hann = torch.hann_window(400, periodic=False, dtype=torch.float64)
        hamming = torch.hamming_window(400, periodic=False, dtype=torch.float64)
        emphasis = torch.eye(400, dtype=torch.float64) - 0.97 * torch.eye(400, dtype=torch.float64).roll(1, 0)
        emphasis[0] = 0
        emphasis[0, 0] = 0.03  # the sample before a frame is taken to equal its first
        window = hamming if window == "hamming" else hann**0.85
        mel, _ = get_mel_banks(80, 512, SAMPLE_RATE, 20.0, 8000.0, 100.0, -500.0, 1.0)  # the last three: no warping
        super().__init__(window.diag() @ emphasis, 512, mel)
        self.scale = scale

    def frames(self, samples):
        return 1 + (samples - 400) // 160

    def forward(self, waveform, lengths=None):
        each = F.unfold(self.scale * waveform[:, None, None], (1, 400), stride=(1, 160))  # (B, 400, T)
        # Removing the mean inside the matrix would leave rounding errors of an offset, which the log makes visible in
        # silence. The mean is itself rounded, hence the second pass.
        for _ in range(2):
            each = each - each.mean(dim=1, keepdim=True)
        energies = self.filtered(self.fourier.squeeze(1) @ each)
        return energies.clamp(min=torch.finfo(torch.float32).eps).log()


class ExportableFilterbank(Filterbank):
    """The front end of our own network (model.LogMel) without complex numbers, which the ONNX exporter cannot handle.

    Same buffers, same numbers to rounding: (B, samples) -> (B, 80, 1 + samples // 160).
    """

    def __init__(self, log_mel):
        emphasis, mel = log_mel
        super().__init__(mel.spectrogram.window.double().diag(), 512, mel.mel_scale.fb.t())
        self.emphasis = emphasis

    def forward(self, waveform, lengths=None):
        # The 400-sample window is centred in 512: of the 256 reflected samples, 56 are multiplied by zero.
        padded = reflect(self.emphasis(waveform).unsqueeze(1), 200, lengths).squeeze(1)
        return (self.energies(padded) + 1e-6).log()
