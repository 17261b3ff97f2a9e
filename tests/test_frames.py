"""An utterance in a batch of longer ones, or in pieces, has the embedding that it has alone: for every system."""

import pytest
import torch
from conftest import relative_error
from test_model import with_statistics

from frames import Ragged, embed_pieces, log_mel_pieces
from model import ECAPA_TDNN
from pretrained import SYSTEMS
from xvector import XVectorSincNet

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
    waveforms = [0.1 * torch.randn(1, samples) for samples in (9000, 16000, 16123, 40000)]
    rows = [network.features(waveform)[0].t() for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0).transpose(1, 2)
    with torch.inference_mode():
        together = network.embed(padded, Ragged(torch.tensor([len(row) for row in rows])))
        for row, waveform in zip(together, waveforms):
            assert relative_error(row, network(waveform)[0]) < 1e-5


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
    from frames import Share

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
