"""Time in other forms than a batch of equal lengths: utterances of many lengths side by side, and endless ones.

The networks do everything that crosses frames through a ``Frames`` (model.py). The two kinds here give each utterance
the embedding that it has alone: ``Ragged`` in a batch with longer ones, ``Piece`` without holding all of it in memory.
"""

import torch
import torch.nn.functional as F

from model import Frames


class Ragged(Frames):
    """A batch of utterances, each with its own number of frames; what lies behind its end does not count.

    lengths: (B,) int64, on the device of the network. What does not count must be finite. One serves one batch.
    """

    def __init__(self, lengths):
        self.lengths = lengths[:, None, None]
        self.counts = None

    def _counts(self, x):
        """(B, 1, T): 1 where a frame counts, 0 behind the end."""
        if self.counts is None:
            self.counts = (torch.arange(x.shape[2], device=x.device) < self.lengths).to(x.dtype)
        return self.counts

    def reflect(self, x, padding):
        # What is gathered for the frames behind an utterance's own end is arbitrary, but finite.
        place = torch.arange(-padding, x.shape[2] + padding, device=x.device).abs()
        last = self.lengths - 1
        place = torch.where(place > last, 2 * last - place, place).clamp(min=0)
        return x.gather(2, place.expand(-1, x.shape[1], -1))

    def convolve(self, conv, x):
        padding = conv.padding[0]
        if padding == 0:
            return conv(x)
        if conv.padding_mode == "zeros":
            return conv(x * self._counts(x))
        return F.conv1d(self.reflect(x, padding), conv.weight, conv.bias, dilation=conv.dilation)

    def largest(self, x):
        return super().largest(x + self._counts(x).log())

    def mean(self, x):
        return (x * self._counts(x)).sum(dim=2, keepdim=True) / self.lengths

    def moments(self, x, unbiased=False):
        mean = self.mean(x)
        squares = ((x - mean).square() * self._counts(x)).sum(dim=2, keepdim=True)
        return mean, squares / (self.lengths - int(unbiased))

    def attend(self, x, logits, centred=False):
        return super().attend(x, logits + self._counts(x).log(), centred)

    def after(self, kernel_size, stride=1):
        return Ragged((self.lengths[:, 0, 0] - kernel_size) // stride + 1)


class Piece(Frames):
    """A stretch of one utterance that is too long for the memory, with some frames of its neighbours to either side.

    What the network wants to know about all frames is found out one question after the other, a pass over all pieces
    for each: ``known`` holds the answers so far, and the first question beyond them ends a piece with ``Unknown``,
    which carries the piece's share of the answer. Shares add up in float64.

    own: (first, last + 1) of the frames that count here, those of the neighbours left out; last + 1 is None at the
    utterance's end.
    """

    def __init__(self, own, known):
        self.own, self.known = own, known
        self.asked = iter(known)

    def _ask(self, x, logits=None):
        """(frames, mean, variance) of the whole utterance; raises Unknown as long as they are not known."""
        for answer in self.asked:
            return (part.to(x.device, x.dtype) for part in answer)
        raise Unknown(Share.of(x[:, :, slice(*self.own)], None if logits is None else logits[:, :, slice(*self.own)]))

    def mean(self, x):
        return self.moments(x)[0]

    def moments(self, x, unbiased=False):
        count, mean, variance = self._ask(x)
        return mean, variance * (count / (count - int(unbiased)))

    def attend(self, x, logits, centred=False):
        _, mean, variance = self._ask(x, logits)
        return mean, variance

    def after(self, kernel_size, stride=1):
        first, end = self.own
        shorter = Piece((first // stride, end and end // stride), self.known)
        shorter.asked = self.asked
        return shorter


class Unknown(Exception):
    """A piece came to a question whose answer is not known yet; ``args[0]`` is its Share of it."""


class Share:
    """What a stretch of frames adds to the (weighted) mean and variance of all: sums relative to the largest logit."""

    def __init__(self, peak, weight, first, second):
        self.peak, self.weight, self.first, self.second = peak, weight, first, second

    @classmethod
    def of(cls, x, logits):
        if x.device.type == "mps":  # has no float64
            x, logits = x.cpu(), None if logits is None else logits.cpu()
        x = x.double()
        logits = torch.zeros_like(x[:, :1]) if logits is None else logits.double()
        peak = logits.amax(dim=2, keepdim=True)
        weight = (logits - peak).exp()
        first = (weight * x).sum(dim=2, keepdim=True)
        return cls(peak, weight.sum(dim=2, keepdim=True), first, (weight * x * x).sum(dim=2, keepdim=True))

    def __add__(self, other):
        peak = torch.maximum(self.peak, other.peak)
        a, b = (self.peak - peak).exp(), (other.peak - peak).exp()
        pairs = ((self.weight, other.weight), (self.first, other.first), (self.second, other.second))
        return Share(peak, *(a * x + b * y for x, y in pairs))

    def answer(self):
        """(sum of weights, mean, variance); without logits the weights are 1 and their sum is the number of frames."""
        mean = self.first / self.weight
        return self.weight, mean, (self.second / self.weight - mean * mean).clamp(min=0)


def embed_pieces(network, length, read, size, halo):
    """The embedding (1, D) of an utterance of ``length`` frames, holding about ``size`` of them at a time.

    network: has ``embed(x, frames)``; read: function (first, end) -> (1, channels, end - first), the network's input
    there; halo: (left, right), how many frames a piece needs of its neighbours. The utterance is read several times.
    """
    starts = [*range(0, max(1, length // size) * size, size)]  # the last piece is the longest: up to twice the size
    known = []
    while True:
        total = None
        for start, end in zip(starts, [*starts[1:], length]):
            first = max(0, start - halo[0])
            own = (start - first, None if end == length else end - first)
            try:
                return network.embed(read(first, min(length, end + halo[1])), Piece(own, known))
            except Unknown as question:
                total = question.args[0] if total is None else total + question.args[0]
        known.append(total.answer())


def log_mel_pieces(front_end, read, samples, size):
    """The front end's (1, 80, T) of a long waveform, on the CPU, computed about ``size`` samples at a time.

    front_end: module as in filterbanks.py, a frame every 160 samples that sees up to 400 around it; read:
    function (first, end) -> (1, end - first). size: a multiple of 160.
    """
    margin = 4 * 160
    pieces = []
    for start in range(0, samples, size):
        first, end = max(0, start - margin), min(samples, start + size + margin)
        piece = front_end(read(first, end))[:, :, (start - first) // 160 :]
        pieces.append((piece if end == samples and start + size >= samples else piece[:, :, : size // 160]).cpu())
    return torch.cat(pieces, dim=2)
