import numpy as np
import pytest
import torch
from conftest import relative_error, voice
from published import taoruijie_shapes

from inference.systems import SYSTEMS, build_network
from model import ECAPA_TDNN, AttentiveMoments, Moments, SpecAugment


def with_statistics(network):
    """The network, in eval mode, with non-trivial batch-norm statistics, as after training."""
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
        elif buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return network.eval()


def standardised(network):
    """The network, in eval mode, with its own batch-norm statistics of voices and silence, as a deep one needs."""
    waveforms = np.stack([voice(80 + 20 * i, 2.5, i) for i in range(8)])
    waveforms[::2, 20000:] = 0
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.from_numpy(waveforms))
    return network.eval()


def small_network(seed=0, C=32):
    torch.manual_seed(seed)
    return with_statistics(ECAPA_TDNN(C=C))


def network_of(system, C=16):
    torch.manual_seed(1)
    about = SYSTEMS[system]
    if system == "pyannote":
        return with_statistics(about.network())
    if system == "campplus":
        return standardised(about.network(192, about.front_end()))
    widths = {} if about.network is ECAPA_TDNN else {"aggregation": 3 * C, "attention": 128}
    return with_statistics(about.network(C=C, front_end=about.front_end(), **widths))


def test_keys_and_shapes_are_those_of_the_public_checkpoint():
    network = ECAPA_TDNN(C=1024)
    found = {f"speaker_encoder.{key}": tuple(value.shape) for key, value in network.state_dict().items()}
    assert {**found, "speaker_loss.weight": (5994, 192)} == taoruijie_shapes()
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_444_544


def test_front_end_against_float64_numpy():
    """The definition of the front end, frame by frame: pre-emphasis, window, DFT, HTK mel triangles, log, mean."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 8000)
    emphasised = waveform - 0.97 * np.concatenate([waveform[1:2], waveform[:-1]])
    padded = np.pad(emphasised, 256, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * t : 160 * t + 512] * window for t in range(1 + 8000 // 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel_points = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 7600 / 700), 82)
    edges = 700 * (10 ** (mel_points / 2595) - 1)
    bins = np.linspace(0, 8000, 257)
    triangles = np.stack([np.interp(bins, edges[i : i + 3], [0, 1, 0]) for i in range(80)], axis=1)
    log_mel = np.log(power @ triangles + 1e-6).T
    expected = log_mel - log_mel.mean(axis=1, keepdims=True)
    found = ECAPA_TDNN(C=8).features(torch.tensor(waveform, dtype=torch.float32)[None])[0]
    assert relative_error(found, expected) < 1e-4
    found = ECAPA_TDNN(C=8, keep_spectrum=True).features(torch.tensor(waveform, dtype=torch.float32)[None])[0]
    assert relative_error(found, log_mel - log_mel.mean()) < 1e-4


def test_a_kept_spectrum_is_part_of_the_checkpoint():
    assert "keeps_spectrum" not in ECAPA_TDNN(C=8).state_dict()
    network = ECAPA_TDNN(C=8, keep_spectrum=True).eval()
    loaded = build_network(network.state_dict()).eval()
    loaded.load_state_dict(network.state_dict())
    short, long = 0.1 * torch.randn(1, 8000), 0.1 * torch.randn(1, 16000)
    batch = torch.cat([torch.cat([short, torch.ones(1, 8000)], dim=1), long])
    expected = torch.cat([network(short), network(long)])
    torch.testing.assert_close(loaded(batch, lengths=torch.tensor([8000, 16000])), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(0.5 * long), network(long), rtol=1e-2, atol=1e-2)  # the level does not count


def test_front_end_stays_in_float32_under_autocast():
    waveform = 0.1 * torch.randn(2, 8000)
    network = small_network()
    with torch.autocast("cpu", torch.bfloat16):
        half = network.features(waveform)
    assert half.dtype == torch.float32
    assert torch.equal(half, network.features(waveform))


def test_pooling_against_its_definition():
    """Context for every frame, in float64; and its gradient against that of autograd."""
    network = small_network().double()
    x = torch.randn(3, 1536, 37, dtype=torch.float64) * torch.rand(3, 1536, 1, dtype=torch.float64)
    x, direction = x.requires_grad_(), torch.randn(3, 3072, dtype=torch.float64)
    mean, deviation = x.mean(2, keepdim=True), x.var(2, unbiased=True, keepdim=True).clamp(min=1e-4).sqrt()
    context = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
    weight = network.attention(context.unsqueeze(2)).squeeze(2).softmax(2)
    assert torch.allclose(weight.sum(2), torch.ones(3, 1536, dtype=torch.float64))
    mean = (weight * x).sum(2)
    deviation = ((weight * x**2).sum(2) - mean**2).clamp(min=1e-4).sqrt()
    expected = torch.cat([mean, deviation], 1)
    gradient = gradients(expected, direction, x, network.attention)
    network.float()
    x = x.detach().float().requires_grad_()
    found = network.pool(x.unsqueeze(2))
    assert relative_error(found.detach(), expected.detach()) < 1e-5
    for ours, theirs in zip(gradients(found, direction.float(), x, network.attention), gradient):
        assert relative_error(ours, theirs) < 1e-4


def test_gradients_of_the_statistics_against_finite_differences():
    x, logits = (torch.randn(2, 3, 1, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(Moments.apply, (x,))
    assert torch.autograd.gradcheck(AttentiveMoments.apply, (x, logits))


def gradients(found, direction, x, layers):
    weights = list(layers.parameters())[:-1]  # the softmax does not depend on the last, a bias
    return torch.autograd.grad((found * direction).sum(), [x, *weights])


@pytest.mark.parametrize("system", ["ours", "speechbrain", "modelscope", "wespeaker", "pyannote", "campplus"])
def test_neither_padding_nor_neighbours_change_an_embedding(system):
    network, limit = network_of(system), 1e-4 if system == "campplus" else 1e-5  # 110 layers amplify the rounding
    waveforms = [0.1 * torch.randn(samples) for samples in (9000, 16000, 16123, 40000)]
    waveforms[1][5000:] = 0
    waveforms[2] *= 1e-4
    waveforms[2][-3] = 1.0  # a click at the end, what follows it louder, and the rest 80 dB below
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    noise = torch.where(torch.arange(40000) < lengths[:, None], padded, torch.randn(4, 40000))
    with torch.inference_mode():
        alone = torch.cat([network(waveform[None]) for waveform in waveforms])
        for found in (network(padded, lengths=lengths), network(noise, lengths=lengths)):
            assert all(relative_error(row, expected) < limit for row, expected in zip(found, alone))
        for found in (network(padded), network(padded, lengths=torch.full((4,), 40000))):
            assert relative_error(found[3], alone[3]) < limit


def test_the_whole_forward_is_one_graph():
    network, waveform, masks = small_network().train(), 0.1 * torch.randn(2, 8000), torch.rand(2, 4)
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # an error where the tracer cannot follow
    assert torch.allclose(compiled(waveform, True, masks), network(waveform, True, masks), atol=1e-5)


def test_spec_augment_masks_one_interval_of_each_axis():
    numbers = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    masked = SpecAugment()(torch.ones(2000, 80, 202), numbers) == 0
    frames, bands = masked.all(dim=1), masked.all(dim=2)
    assert torch.equal(masked, frames.unsqueeze(1) | bands.unsqueeze(2))  # nothing else is touched
    for mask, widest in ((frames, 9), (bands, 7)):
        width = mask.sum(dim=1)
        assert set(width.tolist()) == set(range(widest + 1))
        runs = (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1) + mask[:, 0]
        assert (runs <= 1).all()
        assert mask.any(dim=0).all()  # every place is reached, the edges too


def test_spec_augment_masks_each_row_by_its_own_numbers():
    features, numbers = torch.randn(6, 80, 100), torch.rand(6, 4)
    masked = SpecAugment()(features, numbers)
    assert torch.equal(SpecAugment()(features[2:5], numbers[2:5]), masked[2:5])
    assert torch.equal(SpecAugment()(features, torch.zeros(6, 4)), features)  # no width, no mask
    rounded_up = SpecAugment()(torch.ones(1, 80, 100), torch.ones(1, 4)) == 0  # what a float32 makes of 1 - 1e-9
    assert rounded_up.all(dim=1).sum() <= 9 and rounded_up.all(dim=2).sum() <= 7
