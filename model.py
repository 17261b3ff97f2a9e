"""ECAPA-TDNN: a waveform in, a 192-dimensional speaker embedding out.

The network of Desplanques, Thienpondt and Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and
Aggregation in TDNN Based Speaker Verification", Interspeech 2020, in the form of the well-known VoxCeleb2 recipe
(github.com/TaoRuijie/ECAPA-TDNN): layer widths and state-dict keys are those of its public checkpoint. Against the
paper, each SE-Res2 block takes the *sum* of all that came before it, and the last Res2 chunk, not the first, passes
unchanged. What other published ECAPA-TDNNs do differently is a handful of named choices, ``Variant``; their front ends
are in pretrained.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

SAMPLE_RATE = 16000


class Variant(NamedTuple):
    """What published ECAPA-TDNNs do differently from one another; the defaults are this recipe's."""

    padding: str = "zeros"  # at both ends of a convolution: "zeros" or "reflect"
    dense: bool = True  # a block takes the sum of all that came before it; else only what came last
    kept_chunk: str = "last"  # the Res2 chunk that passes unchanged: "first" or "last"
    aggregation_norm: bool = False  # batch norm after the convolution that joins the blocks
    attention_norm: bool = True  # ReLU and batch norm before the attention's tanh
    unbiased: bool = True  # the utterance's variance that the attention sees divides by frames - 1
    variance_floor: float = 1e-4  # of that variance and of the pooled one
    floor_added: bool = False  # the floor is added to the former; else it is its least value
    centred: bool = False  # pooled variance as mean of (x - mean)^2; else as mean of x^2, less mean^2
    embedding_norm: bool = True  # batch norm on the embedding


RECIPE = Variant()


class Frames:
    """Time as the network sees it; here, a batch of equally long utterances in which every frame counts.

    All that the network does across frames goes through one of these. Batches of utterances of different lengths, and
    utterances too long for the memory, have their own kinds (frames.py), so that the network is written once.
    """

    def reflect(self, x, padding):
        """Continued at both ends as if by mirrors: (B, C, T) -> (B, C, T + 2 padding)."""
        return F.pad(x, (padding, padding), "reflect")

    def convolve(self, conv, x):
        """An nn.Conv1d over time: (B, C, T) -> (B, D, T)."""
        return conv(x)

    def largest(self, x):
        """(B, C, T) -> (B, C, 1)."""
        return x.amax(dim=2, keepdim=True)

    def mean(self, x):
        """(B, C, T) -> (B, C, 1)."""
        return x.mean(dim=2, keepdim=True)

    def moments(self, x, unbiased=False):
        """Mean and variance over time: (B, C, T) -> two of (B, C, 1)."""
        return x.mean(dim=2, keepdim=True), x.var(dim=2, unbiased=unbiased, keepdim=True)

    def attend(self, x, logits, centred=False):
        """Mean and variance over time, weighted with the softmax of logits: two of (B, C, T) -> two of (B, C, 1)."""
        weight = torch.softmax(logits, dim=2)
        weighted = x * weight
        mean = weighted.sum(dim=2, keepdim=True)
        if centred:
            return mean, (weight * (x - mean).square()).sum(dim=2, keepdim=True)
        return mean, (x * weighted).sum(dim=2, keepdim=True) - mean * mean

    def after(self, kernel_size, stride=1):
        """The frames that an unpadded convolution or pooling leaves."""
        return self


WHOLE = Frames()


class PreEmphasis(nn.Module):
    """y[t] = x[t] - 0.97 x[t-1], the signal reflected on its left edge. (B, samples) -> (B, samples)."""

    def __init__(self, coefficient=0.97):
        super().__init__()
        # Stored flipped because a convolution layer correlates; a buffer because published checkpoints contain it.
        self.register_buffer("flipped_filter", torch.tensor([[[-coefficient, 1.0]]]))

    def forward(self, waveform):
        waveform = F.pad(waveform.unsqueeze(1), (1, 0), "reflect")
        return F.conv1d(waveform, self.flipped_filter).squeeze(1)


class LogMel(nn.Sequential):
    """The recipe's front end: log-mel energies, (B, samples) in [-1, 1] -> (B, 80, 1 + samples // 160)."""

    range_db = None  # the features are not limited to a range below their loudest value
    kernel_size, stride = 0, SAMPLE_RATE // 100  # a frame every so many samples, from the first to the last

    def __init__(self):
        super().__init__(
            PreEmphasis(),
            torchaudio.transforms.MelSpectrogram(
                sample_rate=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=self.stride, center=False,
                f_min=20, f_max=7600, n_mels=80, window_fn=torch.hamming_window,
            ),
        )  # fmt: skip

    def forward(self, waveform, frames=WHOLE):
        emphasis, mel = self
        # Frames are centred: the first and the last one see half a window of the reflected signal.
        padded = frames.reflect(emphasis(waveform).unsqueeze(1), 256).squeeze(1)
        return (mel(padded) + 1e-6).log()


class SpecAugment(nn.Module):
    """Zero one random stretch of time and one of frequency per utterance (Park et al., Interspeech 2019).

    Works on mean-normalised features, so zero is the mean. Widths are those of the recipe: up to 9 frames, up to 7
    bands.
    """

    max_frames, max_bands = 9, 7

    def forward(self, features, place=None):
        """(B, bands, frames) -> the same, masked.

        place: (B, 4), uniform random numbers in [0, 1), where the masks come to lie and how wide they are; None: drawn
        here. They are made of few numbers so that little has to be sent to a GPU, which then need not be waited for.
        """
        if place is None:
            place = torch.rand(len(features), 4, device=features.device)
        for axis, widest, (width, start) in ((2, self.max_frames, place.T[:2]), (1, self.max_bands, place.T[2:])):
            masked = self._stretches(width, start, features.shape[axis], widest)
            features = features.masked_fill(masked.unsqueeze(3 - axis), 0.0)
        return features

    @staticmethod
    def _stretches(width, start, size, widest):
        """Two of (B,) in [0, 1) -> (B, size) booleans, each row with one run of 0..widest True at a uniform place."""
        # A float32 may round a number just below 1 to it.
        width = (width * (widest + 1)).long().clamp(max=widest)
        start = (start * (size - width + 1)).long().clamp(max=size)
        position = torch.arange(size, device=width.device)
        return (position >= start[:, None]) & (position < (start + width)[:, None])


class SqueezeExcitation(nn.Module):
    """Rescale each channel by a gate computed from the means of all channels. (B, C, T) -> (B, C, T)."""

    def __init__(self, channels, bottleneck=128):
        super().__init__()
        self.se = nn.Sequential(
            nn.Identity(),  # the mean over time, in published state dicts
            nn.Conv1d(channels, bottleneck, kernel_size=1),
            nn.ReLU(),
            nn.Conv1d(bottleneck, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, x, frames):
        return x * self.se(frames.mean(x))


class SERes2Block(nn.Module):
    """1x1 -> Res2Net chain of dilated convolutions -> 1x1 -> squeeze-excitation, around a shortcut.

    (B, C, T) -> (B, C, T). The C channels are cut in ``scale`` chunks; each but one is convolved together with the
    result of the chunk before it, which multiplies the receptive fields within one block.
    """

    def __init__(self, channels, kernel_size, dilation, scale=8, bottleneck=128, variant=RECIPE):
        super().__init__()
        if channels % scale:
            raise ValueError(f"channels must be a multiple of {scale}, not {channels}")
        self.width = channels // scale
        self.kept_chunk = variant.kept_chunk
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=1)
        self.bn1 = nn.BatchNorm1d(channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(
                self.width, self.width, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2),
                padding_mode=variant.padding,
            )
            for _ in range(scale - 1)
        )  # fmt: skip
        self.bns = nn.ModuleList(nn.BatchNorm1d(self.width) for _ in range(scale - 1))
        self.conv3 = nn.Conv1d(channels, channels, kernel_size=1)
        self.bn3 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()
        self.se = SqueezeExcitation(channels, bottleneck)

    def forward(self, x, frames):
        chunks = list(self.bn1(self.relu(self.conv1(x))).split(self.width, dim=1))
        kept = chunks.pop(0 if self.kept_chunk == "first" else -1)
        outputs = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns)):
            chunk = chunks[i] if i == 0 else outputs[-1] + chunks[i]
            outputs.append(bn(self.relu(frames.convolve(conv, chunk))))
        y = torch.cat([kept, *outputs] if self.kept_chunk == "first" else [*outputs, kept], dim=1)
        return self.se(self.bn3(self.relu(self.conv3(y))), frames) + x


class ECAPA_TDNN(nn.Module):
    """ECAPA-TDNN with its front end; ``C`` is the width of the SE-Res2 blocks (published: 512 and 1024).

    Any multiple of 8 works; 32 and 64 are handy for tests. The other widths are the same whatever C is: ``aggregation``
    of the layer that joins the blocks, ``attention`` and ``bottleneck`` inside attention and squeeze-excitation. They,
    ``variant`` and ``front_end`` (a module as filterbanks.py describes it) are for other people's checkpoints.
    """

    hop = 160  # samples from one frame to the next
    stretch = 1  # a stretch of frames may begin at any
    halo = (65, 65)  # how many frames a frame sees to either side through the convolutions: 2 + 7 * (2 + 3 + 4)

    def __init__(
        self, C=1024, embedding_size=192, aggregation=1536, attention=256, bottleneck=128, variant=RECIPE,
        front_end=None,
    ):  # fmt: skip
        super().__init__()
        self.C = C
        self.embedding_size = embedding_size
        self.variant = variant
        self.torchfbank = front_end or LogMel()
        self.specaug = SpecAugment()
        self.conv1 = nn.Conv1d(80, C, kernel_size=5, padding=2, padding_mode=variant.padding)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm1d(C)
        self.layer1 = SERes2Block(C, kernel_size=3, dilation=2, bottleneck=bottleneck, variant=variant)
        self.layer2 = SERes2Block(C, kernel_size=3, dilation=3, bottleneck=bottleneck, variant=variant)
        self.layer3 = SERes2Block(C, kernel_size=3, dilation=4, bottleneck=bottleneck, variant=variant)
        self.layer4 = nn.Conv1d(3 * C, aggregation, kernel_size=1)
        self.bn4 = nn.BatchNorm1d(aggregation) if variant.aggregation_norm else nn.Identity()
        self.attention = nn.Sequential(
            nn.Conv1d(3 * aggregation, attention, kernel_size=1),
            nn.ReLU() if variant.attention_norm else nn.Identity(),
            nn.BatchNorm1d(attention) if variant.attention_norm else nn.Identity(),
            nn.Tanh(),
            nn.Conv1d(attention, aggregation, kernel_size=1),
        )
        self.bn5 = nn.BatchNorm1d(2 * aggregation)
        self.fc6 = nn.Linear(2 * aggregation, embedding_size)
        self.bn6 = nn.BatchNorm1d(embedding_size) if variant.embedding_norm else nn.Identity()

    def features(self, waveform, frames=WHOLE):
        """Mean-normalised log-mel energies: (B, samples) in [-1, 1] -> (B, 80, 1 + samples // 160), always float32.

        frames: what the samples are, see Frames; those that do not count must be zero. Shorter than 257 samples cannot
        be framed: RuntimeError, or in a longer batch numbers that mean nothing. Other front ends have other numbers.
        """
        # Half precision has 8 bits of mantissa: the power spectrum's small bands would drown in the rounding of the
        # large ones, and log(x + 1e-6) would amplify it.
        with torch.autocast(waveform.device.type, enabled=False):
            return self.normalise(self.torchfbank(waveform.float(), frames), self._frames_of(frames))

    def _frames_of(self, samples):
        """The Frames of the features, from those of the waveform."""
        return samples.after(self.torchfbank.kernel_size, self.torchfbank.stride)

    def normalise(self, log_mel, frames=WHOLE):
        """Limit (B, 80, T) to the front end's dynamic range, if it has one, and subtract the mean over time."""
        if self.torchfbank.range_db is not None:
            loudest = frames.largest(log_mel).amax(dim=1, keepdim=True)
            log_mel = log_mel.maximum(loudest - self.torchfbank.range_db)
        return log_mel - frames.mean(log_mel)

    def forward(self, waveform, aug=False, place=None, frames=WHOLE):
        """Embed a batch of utterances, equally long unless ``frames`` says how long they are.

        waveform: (B, samples), floating point in [-1, 1] at 16 kHz, at least 257 samples.
        aug: apply SpecAugment, its masks placed by ``place`` (B, 4), see there.
        frames: as for ``features``.
        Returns (B, embedding_size), not length-normalised.
        """
        x = self.features(waveform, frames)
        if aug:
            x = self.specaug(x, place)
        return self.embed(x, self._frames_of(frames))

    def embed(self, x, frames=WHOLE):
        """The network behind the front end: features (B, 80, T) -> (B, embedding_size)."""
        x = self.bn1(self.relu(frames.convolve(self.conv1, x)))
        if self.variant.dense:
            x1 = self.layer1(x, frames)
            x2 = self.layer2(x + x1, frames)
            x3 = self.layer3(x + x1 + x2, frames)
        else:
            x1 = self.layer1(x, frames)
            x2 = self.layer2(x1, frames)
            x3 = self.layer3(x2, frames)
        x = self.bn4(self.relu(self.layer4(torch.cat([x1, x2, x3], dim=1))))
        return self.bn6(self.fc6(self.bn5(self.pool(x, frames))))

    def pool(self, x, frames=WHOLE):
        """Attentive statistics with global context: (B, C, T) -> (B, 2 C), weighted means and deviations.

        Each frame's weights depend on the frame and on the whole utterance's mean and standard deviation.
        """
        floor = self.variant.variance_floor
        # Sums over time of squares lose too much in half precision: x*x - mean*mean cancels.
        x = x.float()
        mean, variance = frames.moments(x, self.variant.unbiased)
        deviation = (variance + floor if self.variant.floor_added else variance.clamp(min=floor)).sqrt()
        # The first attention layer sees [x, mean, deviation], of which the last two are constant in time: their part of
        # the product is taken once per utterance instead of once per frame.
        first = self.attention[0]
        x_weight, context_weight = first.weight.split([x.shape[1], 2 * x.shape[1]], dim=1)
        hidden = F.conv1d(x, x_weight, first.bias) + F.conv1d(torch.cat([mean, deviation], dim=1), context_weight)
        mean, variance = frames.attend(x, self.attention[1:](hidden).float(), self.variant.centred)
        return torch.cat([mean, variance.clamp(min=floor).sqrt()], dim=1).squeeze(2)


def compiled(function):
    """torch.compile for what an ECAPA_TDNN takes part in, all but its front end.

    torchaudio's spectrogram cannot be traced, and would leave the rest in pieces. Said here and not at ``features``,
    since saying it loads the compiler, which takes every script a second.
    """
    ECAPA_TDNN.features = torch.compiler.disable(ECAPA_TDNN.features)
    return torch.compile(function)
