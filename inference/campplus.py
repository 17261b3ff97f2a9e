"""CAM++, the network of 3D-Speaker: a waveform in, a speaker embedding out.

Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking", Interspeech
2023, with the layers and state-dict keys of github.com/modelscope/3D-Speaker (speakerlab/models/campplus, 09e7806).

Shapes: B utterances, C channels, F bands, T frames.
"""

import torch
import torch.nn.functional as F
from torch import nn

from inference.xvector import named, one_by_one
from model import mean_and_variance, resample

BLOCKS = (12, 1), (24, 2), (16, 2)  # layers and dilation of each dense block
GROWTH = 32  # channels that each of these layers adds
SEGMENT = 100  # frames of 20 ms with the same mask


class CAMPPlus(nn.Module):
    """Front end (filterbanks.py) -> 2-D convolutions -> three dense TDNN blocks -> mean and deviation -> linear."""

    def __init__(self, embedding_size, front_end):
        super().__init__()
        self.embedding_size, self.front_end = embedding_size, front_end
        self.head = ConvolutionalHead()
        channels = 128
        layers = {"tdnn": named(linear=nn.Conv1d(320, channels, 5, 2, 2, bias=False), nonlinear=norm_relu(channels))}
        for number, (count, dilation) in enumerate(BLOCKS, start=1):
            block = {f"tdnnd{i + 1}": DenseLayer(channels + i * GROWTH, dilation) for i in range(count)}
            channels += count * GROWTH
            halving = nn.Conv1d(channels, channels // 2, 1, bias=False)
            layers[f"block{number}"] = named(**block)
            layers[f"transit{number}"] = named(nonlinear=norm_relu(channels), linear=halving)
            channels //= 2
        linear = nn.Conv1d(2 * channels, embedding_size, 1, bias=False)
        norm = named(batchnorm=nn.BatchNorm1d(embedding_size, affine=False))
        self.xvector = named(**layers, out_nonlinear=norm_relu(channels), dense=named(linear=linear, nonlinear=norm))

    def forward(self, waveform, lengths=None, weights=None):
        """(B, samples) in [-1, 1] at 16 kHz, at least 720 -> (B, embedding_size), not length-normalised.

        lengths: (B,) int64 samples of each utterance, which are then embedded one by one. weights: (B, any number of
        frames), how much each counts in the pooling; not with lengths.
        """
        if lengths is not None:
            return one_by_one(self, waveform, lengths)
        x = self.front_end(waveform.float())
        tdnn, *blocks, norm, dense = self.xvector
        x = tdnn(self.head(x - x.mean(dim=2, keepdim=True)))
        for block, transit in zip(blocks[::2], blocks[1::2]):
            for layer in block:
                x = torch.cat([x, layer(x)], dim=1)
            x = transit(x)
        mean, variance = mean_and_variance(norm(x), None if weights is None else resample(weights, x), unbiased=True)
        return dense(torch.cat([mean, variance.sqrt()], dim=1)).squeeze(2)


class ConvolutionalHead(nn.Module):
    """A small ResNet over bands and frames: (B, 80, T) -> (B, 320, T), 32 channels of 10 bands."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.layer1, self.layer2 = (nn.Sequential(ResidualBlock(2), ResidualBlock()) for _ in range(2))
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, (2, 1), padding=1, bias=False), nn.BatchNorm2d(32)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut: (B, 32, F, T) -> (B, 32, F / stride, T)."""

    def __init__(self, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(32, 32, 3, (stride, 1), padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        shortcut = [nn.Conv2d(32, 32, 1, (stride, 1), bias=False), nn.BatchNorm2d(32)] if stride > 1 else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DenseLayer(nn.Module):
    """Bottleneck, then a dilated convolution scaled by a context-aware mask: (B, C, T) -> (B, 32, T)."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.nonlinear1, self.linear1 = norm_relu(channels), nn.Conv1d(channels, 128, 1, bias=False)
        self.nonlinear2 = norm_relu(128)
        local = nn.Conv1d(128, GROWTH, 3, 1, dilation, dilation, bias=False)
        self.cam_layer = named(linear_local=local, linear1=nn.Conv1d(128, 64, 1), linear2=nn.Conv1d(64, GROWTH, 1))

    def forward(self, x):
        x, cam = self.nonlinear2(self.linear1(self.nonlinear1(x))), self.cam_layer
        # Context: mean of the utterance plus that of the segment. Constant within a segment, and so is the mask.
        context = x.mean(dim=2, keepdim=True) + F.avg_pool1d(x, SEGMENT, ceil_mode=True)
        mask = torch.sigmoid(cam.linear2(F.relu(cam.linear1(context))))
        return cam.linear_local(x) * mask.repeat_interleave(SEGMENT, dim=2)[:, :, : x.shape[2]]


def norm_relu(channels):
    return named(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU())
