"""ECAPA-TDNN: a waveform in, a 192-dimensional speaker embedding out.

The network of Desplanques, Thienpondt and Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and
Aggregation in TDNN Based Speaker Verification", Interspeech 2020, in the form of the well-known VoxCeleb2 recipe
(github.com/TaoRuijie/ECAPA-TDNN): layer widths and state-dict keys are those of its public checkpoint. Against the
paper, each SE-Res2 block takes the *sum* of all that came before it, and the last Res2 chunk, not the first, passes
unchanged.
"""

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

SAMPLE_RATE = 16000


class PreEmphasis(nn.Module):
    """y[t] = x[t] - 0.97 x[t-1], the signal reflected on its left edge. (B, samples) -> (B, samples)."""

    def __init__(self, coefficient=0.97):
        super().__init__()
        # Stored flipped because a convolution layer correlates; a buffer because published checkpoints contain it.
        self.register_buffer("flipped_filter", torch.tensor([[[-coefficient, 1.0]]]))

    def forward(self, waveform):
        waveform = F.pad(waveform.unsqueeze(1), (1, 0), "reflect")
        return F.conv1d(waveform, self.flipped_filter).squeeze(1)


class SpecAugment(nn.Module):
    """Zero one random stretch of time and one of frequency per utterance (Park et al., Interspeech 2019).

    Works on mean-normalised features, so zero is the mean. Widths are those of the recipe: up to 9 frames, up to 7
    bands.
    """

    max_frames, max_bands = 9, 7

    def forward(self, features, generator=None):
        """(B, bands, frames) -> the same, masked.

        ``generator`` is a CPU ``torch.Generator``: a mask of a few numbers is drawn on the CPU and sent over, so that
        every device draws the same one.
        """
        for axis, widest in ((2, self.max_frames), (1, self.max_bands)):
            masked = self._stretches(features.shape[0], features.shape[axis], widest, generator)
            masked = masked.to(features.device, non_blocking=features.is_cuda)
            features = features.masked_fill(masked.unsqueeze(3 - axis), 0.0)
        return features

    @staticmethod
    def _stretches(count, size, widest, generator):
        """(count, size) booleans, each row with one run of 0..widest True at a uniformly drawn place."""
        width = torch.randint(0, widest + 1, (count, 1), generator=generator)
        start = (torch.rand(count, 1, generator=generator) * (size - width + 1).clamp(min=1)).long()
        position = torch.arange(size)
        return (position >= start) & (position < start + width)


class SqueezeExcitation(nn.Module):
    """Rescale each channel by a gate computed from the means of all channels. (B, C, T) -> (B, C, T)."""

    def __init__(self, channels, bottleneck=128):
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool1d(1),
            nn.Conv1d(channels, bottleneck, kernel_size=1),
            nn.ReLU(),
            nn.Conv1d(bottleneck, channels, kernel_size=1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.se(x)


class SERes2Block(nn.Module):
    """1x1 -> Res2Net chain of dilated convolutions -> 1x1 -> squeeze-excitation, around a shortcut.

    (B, C, T) -> (B, C, T). The C channels are cut in ``scale`` chunks; each but the last is convolved together with
    the result of the chunk before it, which multiplies the receptive fields within one block.
    """

    def __init__(self, channels, kernel_size, dilation, scale=8):
        super().__init__()
        if channels % scale:
            raise ValueError(f"channels must be a multiple of {scale}, not {channels}")
        self.width = channels // scale
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=1)
        self.bn1 = nn.BatchNorm1d(channels)
        self.convs = nn.ModuleList(
            nn.Conv1d(self.width, self.width, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
            for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(self.width) for _ in range(scale - 1))
        self.conv3 = nn.Conv1d(channels, channels, kernel_size=1)
        self.bn3 = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU()
        self.se = SqueezeExcitation(channels)

    def forward(self, x):
        chunks = self.bn1(self.relu(self.conv1(x))).split(self.width, dim=1)
        outputs = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns)):
            chunk = chunks[i] if i == 0 else outputs[-1] + chunks[i]
            outputs.append(bn(self.relu(conv(chunk))))
        y = torch.cat([*outputs, chunks[-1]], dim=1)
        return self.se(self.bn3(self.relu(self.conv3(y)))) + x


class ECAPA_TDNN(nn.Module):
    """ECAPA-TDNN with its front end; ``C`` is the width of the SE-Res2 blocks (published: 512 and 1024).

    Any multiple of 8 works; 32 and 64 are handy for tests. The aggregation (1536) and the attention (256) keep their
    widths whatever C is.
    """

    def __init__(self, C=1024, embedding_size=192):
        super().__init__()
        self.C = C
        self.embedding_size = embedding_size
        self.torchfbank = nn.Sequential(
            PreEmphasis(),
            torchaudio.transforms.MelSpectrogram(
                sample_rate=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160,
                f_min=20, f_max=7600, n_mels=80, window_fn=torch.hamming_window,
            ),
        )
        self.specaug = SpecAugment()
        self.conv1 = nn.Conv1d(80, C, kernel_size=5, padding=2)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm1d(C)
        self.layer1 = SERes2Block(C, kernel_size=3, dilation=2)
        self.layer2 = SERes2Block(C, kernel_size=3, dilation=3)
        self.layer3 = SERes2Block(C, kernel_size=3, dilation=4)
        self.layer4 = nn.Conv1d(3 * C, 1536, kernel_size=1)
        self.attention = nn.Sequential(
            nn.Conv1d(3 * 1536, 256, kernel_size=1),
            nn.ReLU(),
            nn.BatchNorm1d(256),
            nn.Tanh(),
            nn.Conv1d(256, 1536, kernel_size=1),
            nn.Softmax(dim=2),
        )
        self.bn5 = nn.BatchNorm1d(2 * 1536)
        self.fc6 = nn.Linear(2 * 1536, embedding_size)
        self.bn6 = nn.BatchNorm1d(embedding_size)

    def features(self, waveform):
        """Mean-normalised log-mel energies: (B, samples) in [-1, 1] -> (B, 80, 1 + samples // 160), always float32.

        Shorter than 257 samples cannot be framed and raises RuntimeError.
        """
        # Half precision has 8 bits of mantissa: the power spectrum's small bands would drown in the rounding of the
        # large ones, and log(x + 1e-6) would amplify it.
        with torch.autocast(waveform.device.type, enabled=False):
            mel = self.torchfbank(waveform.float())
            log_mel = (mel + 1e-6).log()
            return log_mel - log_mel.mean(dim=2, keepdim=True)

    def forward(self, waveform, aug=False, generator=None):
        """Embed a batch of equally long utterances.

        waveform: (B, samples), floating point in [-1, 1] at 16 kHz, at least 257 samples.
        aug: apply SpecAugment, its masks drawn from ``generator`` (a CPU torch.Generator).
        Returns (B, embedding_size), not length-normalised.
        """
        x = self.features(waveform)
        if aug:
            x = self.specaug(x, generator)
        x = self.bn1(self.relu(self.conv1(x)))
        x1 = self.layer1(x)
        x2 = self.layer2(x + x1)
        x3 = self.layer3(x + x1 + x2)
        x = self.relu(self.layer4(torch.cat([x1, x2, x3], dim=1)))
        return self.bn6(self.fc6(self.bn5(self.pool(x))))

    def pool(self, x):
        """Attentive statistics with global context: (B, 1536, T) -> (B, 3072), weighted means and deviations.

        Each frame's weights depend on the frame and on the whole utterance's mean and standard deviation.
        """
        # Sums over time of squares lose too much in half precision: x*x - mean*mean cancels.
        x = x.float()
        mean = x.mean(dim=2, keepdim=True)
        deviation = x.var(dim=2, keepdim=True).clamp(min=1e-4).sqrt()
        # The first attention layer sees [x, mean, deviation], of which the last two are constant in time: their part of
        # the product is taken once per utterance instead of once per frame.
        first = self.attention[0]
        x_weight, context_weight = first.weight.split([1536, 3072], dim=1)
        hidden = F.conv1d(x, x_weight, first.bias) + F.conv1d(torch.cat([mean, deviation], dim=1), context_weight)
        weight = self.attention[1:](hidden).float()
        weighted = x * weight
        mean = weighted.sum(dim=2)
        deviation = ((x * weighted).sum(dim=2) - mean * mean).clamp(min=1e-4).sqrt()
        return torch.cat([mean, deviation], dim=1)
