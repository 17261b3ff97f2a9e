"""Figures are drawn, also of odd results."""

import base64
import xml.etree.ElementTree

import matplotlib.image
import numpy as np
import pytest

from evaluation import plots

RANDOM = np.random.default_rng(1)
LABELS = RANDOM.integers(0, 2, 400)
SCORES = RANDOM.normal(LABELS, 1.0)
EQUAL, PERFECT = (np.zeros(4), np.array([0, 1, 0, 1])), (np.array([0.0, 1.0]), np.array([0, 1]))


def ink(figure, path):
    """The share of a figure's PNG file that is not white."""
    plots.save_png(figure, path)
    return np.mean(matplotlib.image.imread(path)[..., :3].min(axis=2) < 0.9)


def shapes(figure):
    """How many shapes the SVG picture of a figure has."""
    kind, content = plots.as_svg(figure).split(",")
    root = xml.etree.ElementTree.fromstring(base64.b64decode(content))
    assert kind == "data:image/svg+xml;base64" and root.tag.endswith("svg")
    return sum(element.tag.endswith("}path") for element in root.iter())


def test_more_results_give_more_ink(tmp_path):
    one = plots.det_figure({"a": (SCORES, LABELS)})
    three = plots.det_figure({"a": (SCORES, LABELS), "b": (-SCORES, LABELS), "b.mean": EQUAL, "perfect": PERFECT})
    assert [text.get_text().split(":")[0] for text in three.legends[0].get_texts()] == ["a", "b", "perfect"]
    assert 0.01 < ink(one, tmp_path / "one.png") < ink(three, tmp_path / "three.png") < 0.5
    history = [{"epoch": 0, "lists": {"O": {"eer": 40.0}}}]
    start = plots.training_figure(history)
    history += [{"epoch": e, "loss": 9 - e, "accuracy": 20.0 * e, "lists": {}} for e in (1, 2, 3)]
    history[-1]["lists"] = {"O": {"eer": 4.0}, "H": {"eer": 9.0}}
    later = plots.training_figure(history)
    assert 0.01 < ink(start, tmp_path / "start.png") < ink(later, tmp_path / "later.png") < 0.5


@pytest.mark.parametrize("name", ["$x_$", "\u4e2d\u6587", "<b>&"])  # no mathematics; letters that the font lacks
def test_pictures_of_a_report_show_any_name(name):
    assert shapes(plots.det_figure({name: (SCORES, LABELS), "equal": EQUAL, "perfect": PERFECT}))

