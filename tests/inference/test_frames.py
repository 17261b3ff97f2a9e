"""An utterance in a batch of longer ones, or in pieces, has the embedding that it has alone: for every system."""

import contextlib

import pytest
import torch
from conftest import relative_error
from test_model import with_statistics
from torch.utils._python_dispatch import TorchDispatchMode

from inference.checkpoints import SYSTEMS
from inference.frames import Ragged, embed_pieces, log_mel_pieces
from inference.xvector import XVectorSincNet
from model import ECAPA_TDNN

FILTERBANKS = ["ours", "speechbrain", "modelscope", "wespeaker"]


def network_of(system, C=16):
    torch.manual_seed(1)
    about = SYSTEMS[system]
    if about.variant is None:
        return with_statistics(XVectorSincNet())
    widths = {} if about.variant.embedding_norm else {"aggregation": 3 * C, "attention": 128}
    return with_statistics(ECAPA_TDNN(C=C, variant=about.variant, front_end=about.front_end(), **widths))


@pytest.mark.parametrize("system", [*FILTERBANKS, "pyannote"])
def test_a_row_is_what_it_is_alone(system):
    network = network_of(system)
    waveforms = [0.1 * torch.randn(samples) for samples in (9000, 16000, 16123, 40000)]
    waveforms[1][5000:] = 0
    # A click at the end, louder still in the first frame that does not count, and what is 80 dB below.
    waveforms[2] *= 1e-4
    waveforms[2][-3] = 1.0
    rows = [network.features(waveform[None])[0].t() for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0).transpose(1, 2)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    with torch.inference_mode():
        behind = network.embed(padded, Ragged(torch.tensor([len(row) for row in rows])))
        together = network(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), frames=Ragged(lengths))
        for waveform, *found in zip(waveforms, behind, together):
            assert all(relative_error(row, network(waveform[None])[0]) < 1e-5 for row in found)


class Counter(TorchDispatchMode):
    """Counts what the device is asked to do."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("system", [*FILTERBANKS, "pyannote"])
def test_a_batch_asks_no_more_of_the_device_than_two_utterances(system, monkeypatch):
    """Why batches are fast on a GPU; and it is never waited for, since a tensor on "meta" has no values to tell."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none for this device
    network = network_of(system).to("meta")
    counts = []
    for batch in (2, 20):
        waveform, lengths = torch.empty(batch, 16000, device="meta"), torch.ones(batch, dtype=int, device="meta")
        with Counter() as counter, torch.inference_mode():
            assert network(waveform, frames=Ragged(lengths)).shape == (batch, network.embedding_size)
        counts.append(counter.count)
    assert counts[0] == counts[1] > 100


@pytest.mark.parametrize("system", [*FILTERBANKS, "pyannote"])
@pytest.mark.parametrize(("samples", "size"), [(50000, 8640), (43200, 8640), (51839, 8640), (30000, 40000)])
def test_in_pieces_it_is_what_it_is_whole(system, samples, size):
    network = network_of(system)
    waveform = 0.1 * torch.randn(1, samples)
    waveform[:, samples // 2 :] *= 0.01  # loud and quiet pieces: no piece's statistics are those of the whole
    size //= network.hop
    widest = []

    def read(first, end):
        assert 0 <= first < end <= x.shape[2]
        widest.append(end - first)
        return x[:, :, first:end]

    with torch.inference_mode():
        x = network.features(waveform)
        found = embed_pieces(network, x.shape[2], read, size, network.halo)
        assert relative_error(found, network(waveform)) < 1e-5
    assert max(widest) <= 2 * size + sum(network.halo)


@pytest.mark.parametrize("system", FILTERBANKS)
def test_a_piece_sees_as_far_as_all_convolutions_reach(system):
    """They follow each other. With random weights the outermost frames hardly count."""
    network = network_of(system)
    convolutions = [each for each in network.modules() if isinstance(each, torch.nn.Conv1d)]
    reach = sum(each.dilation[0] * (each.kernel_size[0] - 1) // 2 for each in convolutions)
    assert network.halo == (reach, reach)


@pytest.mark.parametrize("system", FILTERBANKS)
@pytest.mark.parametrize("samples", [16000, 15999, 16001, 16160, 16300, 16561, 8000, 400, 23999])
def test_the_front_end_in_pieces(system, samples):
    front_end = SYSTEMS[system].front_end()
    waveform = 0.1 * torch.randn(1, samples)
    whole = front_end(waveform)
    pieces = log_mel_pieces(front_end, lambda first, end: waveform[:, first:end], samples, 8000)
    assert pieces.shape == whole.shape
    # Near the logarithm's floor rounding shows.
    assert relative_error(pieces, whole) < 1e-5


def test_pieces_of_noise_against_a_definition():
    """Weighted statistics gathered piece by piece, float64: as if computed at once."""
    from inference.frames import Share

    x = torch.randn(1, 5, 90)
    logits = 30 * torch.randn(1, 5, 90)  # so that the largest moves from piece to piece
    total = None
    for piece in (slice(0, 20), slice(20, 21), slice(21, 90)):
        share = Share.of(x[:, :, piece], logits[:, :, piece])
        total = share if total is None else total + share
    _, mean, variance = total.answer()
    weight = torch.softmax(logits.double(), 2)
    expected = (weight * x).sum(2, keepdim=True)
    assert torch.allclose(mean, expected)
    assert torch.allclose(variance, (weight * (x - expected) ** 2).sum(2, keepdim=True), atol=1e-12)
