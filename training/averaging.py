"""Weights averaged over training, which generalise better than any single step's."""

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tools import load_checkpoint


class MovingAverage:
    """Exponential moving average of a network's weights and running statistics (Polyak & Juditsky 1992).

    keep: the share of itself that the average keeps in each step.
    """

    def __init__(self, network, keep):
        self.keep = keep
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def follow(self, network, steps):
        """Move on by one step; ``steps`` is how many there were before."""
        # Early on, most of a long memory would be the untrained network.
        keep = min(self.keep, (1 + steps) / (10 + steps))
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values()))
        averages, weights = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        get_ema_multi_avg_fn(keep)(averages, weights, None)
        for average, count in pairs:
            if not average.is_floating_point():
                average.copy_(count)


def mean_of_models(paths, last):
    """The mean of the weights in model files and of ``last``, a state dict like theirs. Counts are those of the last.

    Float64 sums, so that the order does not matter, on the CPU, since Apple's GPUs have none. Raises InputError when a
    file is absent or damaged.
    """
    sums = {key: value.cpu().double() for key, value in last.items() if value.is_floating_point()}
    for path in paths:
        weights = load_checkpoint(path, "model")["weights"]
        for key in sums:
            sums[key] += weights[key]
    means = {key: (value / (len(paths) + 1)).to(last[key].dtype) for key, value in sums.items()}
    return {**last, **means}
