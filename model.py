"""ECAPA-TDNN: from a waveform to a 192-dimensional speaker embedding.

Desplanques, Thienpondt and Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN
Based Speaker Verification", Interspeech 2020, in the form of the VoxCeleb2 recipe github.com/TaoRuijie/ECAPA-TDNN: the
state-dict keys are those of its public checkpoint. Against the paper, the last Res2 chunk passes unchanged, not the
first, and the attention has ReLU, batch norm and 256 channels, not 128. Other ECAPA-TDNNs: inference/systems.py.

Shapes: B utterances, C channels, T frames. Between the front end and the pooling tensors are (B, C, 1, T), so that the
2-D layers of PyTorch apply, which know channels-last memory: the channels of a frame side by side. Tensor cores and
oneDNN multiply these as they are, and would rearrange any other order before and after each convolution. In a batch of
different lengths ``valid`` (..., T) is 1 for the frames of an utterance and 0 for the padding after its end, and no
embedding depends on the padding; None: all frames are valid.
"""

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

SAMPLE_RATE = 16000


class ECAPA_TDNN(nn.Module):
    """ECAPA-TDNN with its front end; ``C``: channels of the SE-Res2 blocks, a multiple of 8 (published: 512, 1024).

    aggregation: channels of the layer that joins the blocks; attention, bottleneck: inside attention and
    squeeze-excitation. front_end: a module as in inference/filterbanks.py; None: LogMel. keep_spectrum: subtract from
    the features only their level, the mean over bands and time, and not each band's mean over time, as published: the
    average spectrum stays, which few training speakers need (docs/results.md).
    """

    def __init__(
        self, C=1024, embedding_size=192, aggregation=1536, attention=256, bottleneck=128, front_end=None,
        keep_spectrum=False,
    ):  # fmt: skip
        super().__init__()
        self.C = C
        self.embedding_size = embedding_size
        self.keep_spectrum = keep_spectrum
        if keep_spectrum:
            self.register_buffer("keeps_spectrum", torch.ones(()))  # a checkpoint says so, and only then
        self.torchfbank = front_end or LogMel()
        self.specaug = SpecAugment()
        self.conv1 = Conv1d(80, C, kernel_size=5, padding=2)
        self.relu = nn.ReLU()
        self.bn1 = nn.BatchNorm2d(C)
        self.layer1 = SERes2Block(C, kernel_size=3, dilation=2, bottleneck=bottleneck)
        self.layer2 = SERes2Block(C, kernel_size=3, dilation=3, bottleneck=bottleneck)
        self.layer3 = SERes2Block(C, kernel_size=3, dilation=4, bottleneck=bottleneck)
        self.layer4 = Conv1d(3 * C, aggregation, kernel_size=1)
        self.bn4 = nn.Identity()  # a batch norm in SpeechBrain's networks
        self.attention = nn.Sequential(
            Conv1d(3 * aggregation, attention, kernel_size=1), nn.ReLU(), nn.BatchNorm2d(attention), nn.Tanh(),
            Conv1d(attention, aggregation, kernel_size=1),
        )  # fmt: skip
        self.bn5 = nn.BatchNorm1d(2 * aggregation)
        self.fc6 = nn.Linear(2 * aggregation, embedding_size)
        self.bn6 = nn.BatchNorm1d(embedding_size)

    def forward(self, waveform, aug=False, masks=None, lengths=None, weights=None):
        """Embed a batch of utterances: (B, samples) -> (B, embedding_size), not length-normalised.

        waveform: floating point in [-1, 1] at 16 kHz, at least 257 samples.
        aug: apply SpecAugment; masks: (B, 4) random numbers for it; None: drawn here.
        lengths: (B,) int64 samples of each utterance; None: all. The padding after them is ignored, but must be finite.
        weights: (B, any number of frames), how much each counts in the pooling; not with lengths; None: alike.
        """
        x = self.features(waveform, lengths)
        if aug:
            x = self.specaug(x, masks)
        valid = self._valid_frames(x, lengths)
        x, valid = x.unsqueeze(2), None if valid is None else valid.unsqueeze(2)
        x = self.bn1(self.relu(self.conv1(x, valid)))
        x = self.bn4(self.relu(self.layer4(torch.cat(self.blocks(x, valid), dim=1))))
        counted = valid if weights is None else resample(weights, x.squeeze(2)).unsqueeze(2)
        return self.bn6(self.fc6(self.bn5(self.pool(x, counted))))

    def features(self, waveform, lengths=None):
        """Normalised log-mel energies, always float32: (B, samples) -> (B, 80, T), T = 1 + samples // 160."""
        # bfloat16 has 8 bits of mantissa: small bands of the power spectrum would be lost in the rounding of large
        # ones, which log(x + 1e-6) would amplify.
        with torch.autocast(waveform.device.type, enabled=False):
            x = self.torchfbank(waveform.float(), lengths)
            mean = mean_over_time(x, self._valid_frames(x, lengths))
            return x - (mean.mean(dim=1, keepdim=True) if self.keep_spectrum else mean)

    def _valid_frames(self, x, lengths):
        return None if lengths is None else valid_until(self.torchfbank.frames(lengths), x.shape[2])

    def blocks(self, x, valid):
        """The outputs of the SE-Res2 blocks, each of which takes the sum of all outputs before it."""
        x1 = self.layer1(x, valid)
        x2 = self.layer2(x + x1, valid)
        return x1, x2, self.layer3(x + x1 + x2, valid)

    def pool(self, x, valid=None):
        """Attentive statistics with global context: (B, C, 1, T) -> (B, 2 C), weighted means, standard deviations."""
        # float32, because x*x - mean*mean cancels.
        x = x.float()
        mean, deviation = self.statistics(x, valid)
        # The input of the attention is [x, mean, deviation], of which the last two are constant in time: their part of
        # the first layer is computed once per utterance instead of once per frame.
        first = self.attention[0]
        x_weight, context_weight = first.weight.split([x.shape[1], 2 * x.shape[1]], dim=1)
        hidden = convolve(x, x_weight, first.bias) + convolve(torch.cat([mean, deviation], dim=1), context_weight)
        logits = self.attention[1:](hidden).float()
        if valid is not None:
            logits = logits + valid.log()
        mean, deviation = self.attentive_statistics(x, logits)
        return torch.cat([mean, deviation], dim=1).flatten(1)

    def statistics(self, x, valid=None):
        """Mean and standard deviation over time: (B, C, 1, T) -> two of (B, C, 1, 1)."""
        mean, variance = mean_and_variance(x, valid, unbiased=True) if valid is not None else Moments.apply(x)
        return mean, variance.clamp(min=1e-4).sqrt()

    def attentive_statistics(self, x, logits):
        """The same, of frames weighted by the softmax over time of the logits (B, C, 1, T)."""
        mean, variance = AttentiveMoments.apply(x, logits)
        return mean, variance.clamp(min=1e-4).sqrt()


class SERes2Block(nn.Module):
    """1x1 convolution, Res2Net chain of dilated convolutions, 1x1 convolution, squeeze-excitation; with a shortcut.

    (B, C, 1, T) -> (B, C, 1, T). The C channels are split into ``scale`` chunks; each but the last is added to the
    output of the chunk before it and convolved, which gives several receptive fields within one block.
    """

    def __init__(self, channels, kernel_size, dilation, scale=8, bottleneck=128):
        super().__init__()
        if channels % scale:
            raise ValueError(f"channels must be a multiple of {scale}, not {channels}")
        self.width = channels // scale
        self.conv1 = Conv1d(channels, channels, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(channels)
        padding = dilation * (kernel_size // 2)
        convs = (Conv1d(self.width, self.width, kernel_size, 1, padding, dilation) for _ in range(scale - 1))
        self.convs = nn.ModuleList(convs)
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.width) for _ in range(scale - 1))
        self.conv3 = Conv1d(channels, channels, kernel_size=1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.se = SqueezeExcitation(channels, bottleneck)

    def forward(self, x, valid=None):
        y = self.bn1(self.relu(self.conv1(x)))
        y = self.bn3(self.relu(self.conv3(self.res2(y, valid))))
        return self.se(y, valid) + x

    def res2(self, x, valid=None):
        *chunks, last = x.split(self.width, dim=1)
        outputs = []
        for chunk, conv, bn in zip(chunks, self.convs, self.bns):
            outputs.append(bn(self.relu(conv(outputs[-1] + chunk if outputs else chunk, valid))))
        return torch.cat([*outputs, last], dim=1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all channels. (B, C, 1, T) -> (B, C, 1, T)."""

    def __init__(self, channels, bottleneck=128):
        super().__init__()
        self.se = nn.Sequential(
            nn.Identity(),  # the mean over time in the original, for the state-dict keys
            Conv1d(channels, bottleneck, kernel_size=1), nn.ReLU(),
            Conv1d(bottleneck, channels, kernel_size=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x, valid=None):
        return x * self.se(mean_over_time(x, valid))


class Conv1d(nn.Conv1d):
    """A convolution over time: (B, C, 1, T) -> (B, C', 1, T), zero-padded, also after the end of each utterance."""

    def forward(self, x, valid=None):
        x = x if valid is None else x * valid
        return convolve(x, self.weight, self.bias, self.padding[0], self.dilation[0])


def convolve(x, weight, bias=None, padding=0, dilation=1):
    """F.conv1d in channels-last memory: (B, C, 1, T), weight (C', C, width) -> (B, C', 1, T)."""
    if weight.shape[2] == 1 and torch.is_autocast_enabled(x.device.type):
        # In bfloat16 the product of matrices is faster: cuBLAS adds the bias within, oneDNN's gradient of the weights
        # runs at 1.4 times the rate. In float32 it would be half as fast on AMD's CPUs, where MKL computes it.
        return F.linear(x.permute(0, 2, 3, 1), weight.squeeze(2), bias).permute(0, 3, 1, 2)
    x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight.unsqueeze(2)))
    if weight.shape[3] == 1 and x.device.type == "cpu":
        dilation = 2  # changes nothing, but PyTorch takes oneDNN also on a single thread, which is twice as fast
    return F.conv2d(x, weight, bias, padding=(0, padding), dilation=(1, dilation))


class LogMel(nn.Sequential):
    """The front end: log-mel energies, (B, samples) in [-1, 1] -> (B, 80, 1 + samples // 160).

    Those of torchaudio's MelSpectrogram, whose buffers (window and filters) are in published checkpoints and replace
    other ones when weights are loaded; but its spectrogram cannot be traced by torch.compile.
    """

    def __init__(self):
        super().__init__(
            PreEmphasis(),
            torchaudio.transforms.MelSpectrogram(
                sample_rate=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160,
                f_min=20, f_max=7600, n_mels=80, window_fn=torch.hamming_window,
            ),
        )  # fmt: skip

    def forward(self, waveform, lengths=None):
        emphasis, mel = self
        spectrogram = mel.spectrogram
        # Frames are centred: half of the first and of the last window lies in the reflected signal.
        padded = reflect(emphasis(waveform).unsqueeze(1), spectrogram.win_length // 2, lengths).squeeze(1)
        windowed = padded.unfold(1, spectrogram.win_length, spectrogram.hop_length) * spectrogram.window
        power = torch.view_as_real(torch.fft.rfft(windowed, spectrogram.n_fft)).square().sum(dim=3)
        return (power @ mel.mel_scale.fb + 1e-6).log().transpose(1, 2)

    def frames(self, samples):
        """Number of frames of this many samples."""
        return 1 + samples // self[1].spectrogram.hop_length


class PreEmphasis(nn.Module):
    """y[t] = x[t] - 0.97 x[t-1], with x[-1] = x[1]. (B, samples) -> (B, samples)."""

    def __init__(self, coefficient=0.97):
        super().__init__()
        # The filter of a correlation in the original; a buffer, because published checkpoints contain it.
        self.register_buffer("flipped_filter", torch.tensor([[[-coefficient, 1.0]]]))

    def forward(self, waveform):
        before = torch.cat([waveform[:, 1:2], waveform[:, :-1]], dim=1)
        # No convolution, which a GPU may compute in TF32.
        return self.flipped_filter[0, 0, 1] * waveform + self.flipped_filter[0, 0, 0] * before


class SpecAugment(nn.Module):
    """Sets up to 9 consecutive frames and 7 consecutive bands to zero (Park et al., Interspeech 2019)."""

    def forward(self, features, masks=None):
        """(B, bands, frames), normalised -> the same, masked; each utterance has its own masks.

        masks: (B, 4) uniform random numbers in [0, 1): width and start of the frames, then of the bands; None: drawn.
        """
        if masks is None:
            masks = torch.rand(len(features), 4, device=features.device)
        for axis, widest, (width, start) in ((2, 9, masks.T[:2]), (1, 7, masks.T[2:])):
            size = features.shape[axis]
            # clamp: float32 may round a number just below 1 to 1.
            width = (width * (widest + 1)).long().clamp(max=widest)
            start = (start * (size - width + 1)).long().clamp(max=size)
            position = torch.arange(size, device=width.device)
            masked = (position >= start[:, None]) & (position < (start + width)[:, None])
            features = features.masked_fill(masked.unsqueeze(3 - axis), 0.0)
        return features


def valid_until(lengths, size):
    """Mask of utterances of different lengths, (B,) -> (B, 1, size): 1 up to the end of each, 0 after it."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None, None]).float()


def resample(weights, x):
    """Weights (B, any number of frames) for the frames of x (B, C, T), each the nearest: (B, 1, T)."""
    return F.interpolate(weights.unsqueeze(1), x.shape[2])


class Moments(torch.autograd.Function):
    """Mean and unbiased variance over time: (B, C, 1, T) -> two of (B, C, 1, 1).

    This and AttentiveMoments have gradients of their own: autograd would read and write the widest tensors of the
    network, in float32, several times more often. With C=64 on a CPU that would take 15 % longer for the whole step.
    """

    @staticmethod
    def forward(ctx, x):
        mean, variance = mean_and_variance(x, unbiased=True)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, mean_gradient, variance_gradient):
        x, mean = ctx.saved_tensors
        frames = x.shape[3]
        slope = variance_gradient * (2 / (frames - 1))
        return torch.addcmul(mean_gradient / frames - slope * mean, x, slope)


class AttentiveMoments(torch.autograd.Function):
    """Mean and variance weighted by the softmax over time of logits: two of (B, C, 1, T) -> two of (B, C, 1, 1)."""

    @staticmethod
    def forward(ctx, x, logits):
        weight = softmax_over_time(logits)
        weighted = x * weight
        mean = weighted.sum(dim=3, keepdim=True)
        square = weighted.mul_(x).sum(dim=3, keepdim=True)
        ctx.save_for_backward(x, weight, mean, square)
        return mean, square - mean * mean

    @staticmethod
    def backward(ctx, mean_gradient, variance_gradient):
        x, weight, mean, square = ctx.saved_tensors
        # d(square - mean^2) = d square - 2 mean d mean; d softmax: weight * (slope - its weighted mean).
        mean_gradient = mean_gradient - 2 * mean * variance_gradient
        slope = torch.addcmul(mean_gradient, x, variance_gradient)
        of_x = torch.addcmul(slope, x, variance_gradient).mul_(weight)
        of_logits = slope.mul_(x).sub_(mean_gradient * mean + variance_gradient * square).mul_(weight)
        return of_x, of_logits


def softmax_over_time(logits):
    """(B, C, 1, T) -> the same: over the middle axis of (B, T, C), which needs no copy of channels-last memory."""
    return logits.squeeze(2).transpose(1, 2).softmax(dim=1).transpose(1, 2).unsqueeze(2)


def mean_over_time(x, valid=None):
    """The mean over valid frames, (..., T) -> (..., 1); valid may also be weights."""
    if valid is None:
        return x.mean(dim=-1, keepdim=True)
    return (x * valid).sum(dim=-1, keepdim=True) / valid.sum(dim=-1, keepdim=True)


def mean_and_variance(x, valid=None, unbiased=False):
    """Mean and variance over valid frames, (..., T) -> two of (..., 1)."""
    mean = mean_over_time(x, valid)
    if valid is None:
        return mean, (x - mean).square().sum(dim=-1, keepdim=True) / (x.shape[-1] - int(unbiased))
    squares, total = ((x - mean).square() * valid).sum(dim=-1, keepdim=True), valid.sum(dim=-1, keepdim=True)
    # Of n frames: n - 1. Of weights: en.wikipedia.org/wiki/Weighted_arithmetic_mean#Reliability_weights
    lost = valid.square().sum(dim=-1, keepdim=True) / total if unbiased else 0
    return mean, squares / (total - lost).clamp(min=1e-8)


def reflect(x, padding, lengths=None):
    """Utterances padded by reflection at both ends: (B, C, T) -> (B, C, T + 2 padding)."""
    if lengths is None:
        return F.pad(x, (padding, padding), "reflect")
    index = torch.arange(-padding, x.shape[2] + padding, device=x.device).abs()
    index = index.minimum(2 * (lengths[:, None, None] - 1) - index).clamp(min=0)  # later ones are never used
    return x.gather(2, index.expand(-1, x.shape[1], -1))
