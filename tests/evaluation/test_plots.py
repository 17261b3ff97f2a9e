"""Plots are drawn, also of odd results."""

import base64
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest

from evaluation import plots

RANDOM = np.random.default_rng(1)
LABELS = RANDOM.integers(0, 2, 400)
SCORES = RANDOM.normal(LABELS, 1.0)


def ink(path):
    """The share of a picture that is not white."""
    return np.mean(matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.9)


def test_png_files(tmp_path):
    perfect = np.array([0.0, 1.0]), np.array([0, 1])
    plots.draw_det(tmp_path / "one.png", {"a": (SCORES, LABELS)})
    plots.draw_det(tmp_path / "two.png", {"a": (SCORES, LABELS), "b": (-SCORES, LABELS), "perfect": perfect})
    assert 0.01 < ink(tmp_path / "one.png") < ink(tmp_path / "two.png") < 0.5
    untrained = {"epoch": 0, "lists": {"O": {"eer": 40.0}}}
    plots.draw_training(tmp_path / "start.png", [untrained])
    trained = [{"epoch": e, "loss": 9 - e, "accuracy": 20.0 * e, "lists": {}} for e in (1, 2, 3)]
    trained[-1]["lists"] = {"O": {"eer": 4.0}, "H": {"eer": 9.0}}
    plots.draw_training(tmp_path / "later.png", [untrained, *trained])
    assert 0.01 < ink(tmp_path / "start.png") < ink(tmp_path / "later.png") < 0.5


def shapes(address):
    """How many shapes an SVG picture has, from its data: address."""
    kind, content = address.split(",")
    root = xml.etree.ElementTree.fromstring(base64.b64decode(content))
    assert kind == "data:image/svg+xml;base64" and root.tag.endswith("svg")
    return sum(element.tag.endswith("}path") for element in root.iter())


@pytest.mark.parametrize("name", ["$x_$", "\u4e2d\u6587", "<b>&"])  # no mathematics; letters that the font lacks
def test_plots_of_a_report_show_any_name(name):
    band = {name: (np.array([0.01, 0.1, 0.5]), np.array([0.0, 0.1, 0.1]), np.array([1.0, 0.9, 0.5]))}
    curve = {name: (SCORES, LABELS)}
    assert shapes(plots.as_svg(plots.det_plot, curve, band)) > shapes(plots.as_svg(plots.det_plot, curve, {}))
    course = {name: [(1, 3.0), (2, 4.0)]}
    two = plots.as_svg(plots.course_plot, {**course, "b": [(2, 0.0)]}, "EER (%)", [(1, 2.0, 4.0), (2, 3.0, 5.0)])
    assert shapes(plots.as_svg(plots.course_plot, course, "EER (%)")) < shapes(two)
    one = plots.as_svg(plots.histogram_plot, SCORES, LABELS, {name: None})
    assert shapes(one) < shapes(plots.as_svg(plots.histogram_plot, SCORES, LABELS, {name: 0.5}))


def test_plots_of_odd_results():
    equal = np.zeros(4), np.array([0, 1, 0, 1])
    assert shapes(plots.as_svg(plots.histogram_plot, *equal, {"EER": 0.0}))
    assert shapes(plots.as_svg(plots.det_plot, {"equal": equal, "perfect": (np.array([0, 1]), np.array([0, 1]))}))
