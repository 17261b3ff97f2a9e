"""Averages of weights against sums written out in float64."""

import copy

import pytest
import torch

from tools import InputError, save_checkpoint
from training.averaging import MovingAverage, mean_of_models


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def step(network, number):
    """Some change to weights and running statistics."""
    torch.manual_seed(number)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight))
        network(torch.randn(8, 3))


def test_a_moving_average_is_the_recursion_written_out():
    network = small_network()
    average, expected = MovingAverage(network, 0.9), copy.deepcopy(network).double().state_dict()
    for number in range(100):
        step(network, number)
        average.follow(network, number)
        keep = min(0.9, (1 + number) / (10 + number))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                expected[key] = keep * expected[key] + (1 - keep) * value.double()
    found = average.network.state_dict()
    assert found["1.num_batches_tracked"] == network[1].num_batches_tracked == 100
    for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[key].double(), expected[key].double(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found["0.weight"], network[0].weight, atol=0.1)  # it is not just a copy


def test_a_moving_average_does_not_hang_on_to_the_untrained_network():
    """However long its memory, after a few steps in which nothing moves it is where the network is."""
    network = small_network()
    average = MovingAverage(network, 0.9999)
    step(network, 1)
    for number in range(60):
        average.follow(network, number)
    torch.testing.assert_close(average.network[0].weight, network[0].weight, rtol=1e-3, atol=1e-3)


def test_the_average_takes_no_part_in_training():
    network = small_network()
    average = MovingAverage(network, 0.5)
    before = network[0].weight.clone()
    average.follow(network, 0)
    assert torch.equal(network[0].weight, before)
    assert not any(weight.requires_grad for weight in average.network.parameters())


def test_the_mean_of_models_is_their_mean(tmp_path):
    network, states, paths = small_network(), [], []
    for number in range(3):
        step(network, number)
        states.append(copy.deepcopy(network.state_dict()))
        paths.append(tmp_path / f"{number}.model")
        save_checkpoint(paths[-1], {"kind": "model", "weights": states[-1]})
    mean = mean_of_models(paths[:2], states[2])
    assert mean.keys() == states[0].keys() and mean["1.num_batches_tracked"] == 3
    for key in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        expected = torch.stack([state[key].double() for state in states]).mean(0)
        torch.testing.assert_close(mean[key], expected.float(), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match=r"gone\.model does not exist"):
        mean_of_models([tmp_path / "gone.model"], states[2])
