"""Plots are drawn, also of odd results."""

import matplotlib.image
import numpy as np

import plots


def ink(path):
    """The share of a picture that is not white."""
    return np.mean(matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.9)


def test_plots_are_drawn(tmp_path):
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 400)
    scores = random.normal(labels, 1.0)
    perfect = np.array([0.0, 1.0]), np.array([0, 1])
    plots.draw_det(tmp_path / "one.png", {"a": (scores, labels)})
    plots.draw_det(tmp_path / "two.png", {"a": (scores, labels), "b": (-scores, labels), "perfect": perfect})
    assert 0.01 < ink(tmp_path / "one.png") < ink(tmp_path / "two.png") < 0.5
    untrained = {"epoch": 0, "lists": {"O": {"eer": 40.0}}}
    plots.draw_training(tmp_path / "start.png", [untrained])
    trained = [{"epoch": e, "loss": 9 - e, "accuracy": 20.0 * e, "lists": {}} for e in (1, 2, 3)]
    trained[-1]["lists"] = {"O": {"eer": 4.0}, "H": {"eer": 9.0}}
    plots.draw_training(tmp_path / "later.png", [untrained, *trained])
    assert 0.01 < ink(tmp_path / "start.png") < ink(tmp_path / "later.png") < 0.5
