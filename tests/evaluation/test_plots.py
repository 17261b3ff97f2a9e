"""Plots are drawn, also of odd results."""

import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest
import scipy.spatial

from evaluation import plots


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


def shapes(svg):
    """How many shapes an SVG picture has; fails if it is none."""
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    return sum(element.tag.endswith("}path") for element in root.iter())


def legend(svg):
    """How many lines of words the legend of an SVG picture has."""
    elements = xml.etree.ElementTree.fromstring(svg).iter()
    (found,) = (element for element in elements if element.get("id", "").startswith("legend"))
    return sum(element.get("id", "").startswith("text") for element in found.iter())


# Mathematics that is none, what matplotlib leaves out of legends, and letters that its font lacks.
@pytest.mark.parametrize("name", ["$x_$", "_O", "\u4e2d\u6587", "<b>&"])
def test_pictures_of_a_report_show_any_name(name):
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 200)
    scores = random.normal(labels, 1.0)
    band = np.array([0.01, 0.1, 0.5]), np.array([0.0, 0.1, 0.1]), np.array([1.0, 0.9, 0.5])
    alone = shapes(plots.det_picture({name: (scores, labels)}, {}))
    assert shapes(plots.det_picture({name: (scores, labels)}, {name: band})) > alone
    one = plots.course_picture({name: ([1, 2], [3.0, 4.0])}, "EER (%)", logarithmic=True)
    two = plots.course_picture({name: ([1, 2], [3.0, 4.0]), "b": ([2], [0.0])}, "EER (%)", logarithmic=True)
    assert shapes(one) < shapes(two)
    assert (legend(one), legend(two), legend(plots.det_picture({name: (scores, labels)}, {}))) == (1, 2, 1)
    without = plots.histogram_picture(scores, labels, {name: None})
    assert shapes(without) < shapes(plots.histogram_picture(scores, labels, {name: 0.5}))


def test_pictures_of_a_report_are_drawn_of_odd_results():
    equal = np.zeros(4), np.array([0, 1, 0, 1])
    assert shapes(plots.histogram_picture(*equal, {"EER": 0.0}))
    assert shapes(plots.det_picture({"equal": equal, "perfect": (np.array([0.0, 1.0]), np.array([0, 1]))}, {}))
    assert shapes(plots.course_picture({"": ([1], [0.0])}, "EER (%)", logarithmic=True))
    assert shapes(plots.course_picture({"": ([1], [0.0])}, "%", reaches=0))
    assert shapes(plots.speakers_picture([0.0], 0.0))
    assert shapes(plots.durations_picture([("1-2", None)], 0.0))


def test_a_staircase_is_thinned_where_nobody_can_see_it():
    random = np.random.default_rng(3)
    steps = random.integers(0, 2, 200_000)
    x, y = np.cumsum(steps) / 1e5, -np.cumsum(1 - steps) / 1e5
    thin_x, thin_y = plots._thin(x, y)
    assert len(thin_x) < 8000
    kept = set(zip(thin_x.tolist(), thin_y.tolist()))
    assert kept < set(zip(x.tolist(), y.tolist()))
    assert {(x[0], y[0]), (x[-1], y[-1])} < kept
    away, _ = scipy.spatial.cKDTree(np.stack([thin_x, thin_y], 1)).query(np.stack([x, y], 1))
    assert away.max() < 0.0015  # the whole is 1 wide and high, a picture of it about 500 dots
