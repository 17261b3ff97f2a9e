"""XVectorSincNet, the network of pyannote/embedding: a waveform in, a 512-dimensional speaker embedding out.

SincNet (Ravanelli and Bengio, "Speaker recognition from raw waveform with SincNet", SLT 2018) under an x-vector TDNN
(Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018), with pyannote.audio's layers
and state-dict keys.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from model import SAMPLE_RATE, mean_and_variance, resample


class SincFilters(nn.Module):
    """Band-pass filters with learned edges: 40 bands, each as an even and an odd filter of 251 samples."""

    lowest_hz, narrowest_hz = 50.0, 50.0

    def __init__(self):
        super().__init__()
        edges = torch.linspace(30.0, SAMPLE_RATE / 2 - self.lowest_hz - self.narrowest_hz, 41)
        self.low_hz_ = nn.Parameter(edges[:-1, None].clone())
        self.band_hz_ = nn.Parameter(edges.diff()[:, None].clone())
        self.register_buffer("window_", torch.hamming_window(251, periodic=False)[:125])
        self.register_buffer("n_", 2 * math.pi * torch.arange(-125, 0.0)[None] / SAMPLE_RATE)

    def filters(self):
        """(80, 1, 251): all even filters, then all odd ones."""
        low = self.lowest_hz + self.low_hz_.abs()
        high = (low + self.narrowest_hz + self.band_hz_.abs()).clamp(self.lowest_hz, SAMPLE_RATE / 2)
        band = high - low
        shape = self.window_ / (self.n_ / 2)
        even = (torch.sin(high @ self.n_) - torch.sin(low @ self.n_)) * shape
        odd = (torch.cos(low @ self.n_) - torch.cos(high @ self.n_)) * shape
        even = torch.cat([even, 2 * band, even.flip(1)], dim=1)
        odd = torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], dim=1)
        return torch.cat([even / (2 * band), odd / (2 * band)])[:, None]

    def forward(self, x):
        return F.conv1d(x, self.filters(), stride=10).abs()


class SincNet(nn.Module):
    """(B, 1, samples) -> (B, 60, T), a frame every 270 samples."""

    def __init__(self):
        super().__init__()
        self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.conv1d = nn.ModuleList([named(filterbank=SincFilters()), nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norm1d = nn.ModuleList(nn.InstanceNorm1d(channels, affine=True) for channels in (80, 60, 60))

    def forward(self, x):
        x = self.wav_norm1d(x)
        for conv, norm in zip(self.conv1d, self.norm1d):
            x = F.leaky_relu(norm(F.max_pool1d(conv(x), 3)))
        return x


def named(**layers):
    return nn.Sequential(OrderedDict(layers))


def one_by_one(network, waveform, lengths):
    """The embeddings (B, D) of a padded batch (B, samples), each utterance without its padding."""
    return torch.cat([network(row[None, :length]) for row, length in zip(waveform, lengths.tolist())])


class XVectorSincNet(nn.Module):
    """SincNet -> five TDNN layers -> mean and deviation over time -> linear. At least 5041 samples."""

    def __init__(self, embedding_size=512):
        super().__init__()
        self.embedding_size = embedding_size
        self.sincnet = SincNet()
        self.tdnns = nn.ModuleList()
        for before, after, kernel_size, dilation in (
            (60, 512, 5, 1), (512, 512, 3, 2), (512, 512, 3, 3), (512, 512, 1, 1), (512, 1500, 1, 1),
        ):  # fmt: skip
            conv = nn.Conv1d(before, after, kernel_size, dilation=dilation)
            self.tdnns.extend([conv, nn.LeakyReLU(0.01), nn.BatchNorm1d(after)])
        self.embedding = nn.Linear(2 * 1500, embedding_size)

    def forward(self, waveform, lengths=None, weights=None):
        """(B, samples) in [-1, 1] at 16 kHz, at least 5041 -> (B, 512), not length-normalised.

        lengths: (B,) int64 samples of each utterance, which are then embedded one by one. weights: (B, any number of
        frames), how much each counts in the pooling; not with lengths.
        """
        if lengths is not None:
            return one_by_one(self, waveform, lengths)
        x = self.sincnet(waveform.float().unsqueeze(1))
        for layer in self.tdnns:
            x = layer(x)
        mean, variance = mean_and_variance(x, None if weights is None else resample(weights, x), unbiased=True)
        return self.embedding(torch.cat([mean, variance.sqrt()], dim=1).squeeze(2))
