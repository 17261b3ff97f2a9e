"""Plots of an experiment: training.png, det.png, and the SVG plots of a report."""

import base64
import io
import warnings

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from tools import equal_error_rate, error_curve, whole_file

DET_TICKS = np.array([1e-5, 1e-4, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
         "axes.grid": True, "grid.color": "#e4e6e9", "legend.frameon": False, "svg.hashsalt": "report",
         "text.parse_math": False}  # fmt: skip


def draw_det(path, results):
    """Detection error trade-off curves (Martin et al. 1997): results {name: (scores, labels)} -> a PNG file."""
    figure = Figure(figsize=(6, 6 + 0.22 * len(results)), layout="constrained")  # not pyplot, which may need a display
    det_plot(figure.add_subplot(), results)
    figure.legend(loc="outside upper left", frameon=False)
    save_png(figure, path)


def draw_training(path, history):
    """Loss, accuracy and EER over epochs, from the records of metrics.jsonl -> a PNG file."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    trained = [record for record in history if record["epoch"] > 0]
    tested = [record for record in history if record["lists"]]
    upper, *lower = figure.subplots(2 if tested else 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes, key, unit, colour in ((upper, "loss", "", "tab:blue"), (upper.twinx(), "accuracy", " (%)", "tab:orange")):
        axes.plot([r["epoch"] for r in trained], [r[key] for r in trained], color=colour, marker=".")
        axes.set_ylabel(f"training {key}{unit}", color=colour)
        axes.set_ylim(0, max([1, *(1.05 * r[key] for r in trained)]))
    for name in tested[-1]["lists"] if tested else []:
        points = [(r["epoch"], r["lists"][name]["eer"]) for r in tested if name in r["lists"]]
        last, lowest = points[-1][1], min((eer for epoch, eer in points if epoch), default=points[0][1])
        lower[0].plot(*zip(*points), marker=".", label=f"{name}: last {last:.2f} %, lowest {lowest:.2f} %")
    for axes in lower:
        axes.legend()
        axes.set(ylabel="EER (%)")
        axes.set_ylim(bottom=0)
    for axes in (upper, *lower):
        axes.grid(alpha=0.3)
    axes.set(xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    save_png(figure, path)


def save_png(figure, path):
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def as_svg(draw, *args, size=(3.8, 2.4)):
    """The plot of ``draw(axes, *args)`` as an SVG in a data: address, for a page. size: inches."""
    with matplotlib.style.context(["tableau-colorblind10", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters missing in the font are shown as boxes
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot(), *args)
        if figure.axes[0].get_legend_handles_labels()[1]:
            legend = figure.legend(loc="outside upper left", borderaxespad=0.2)
            figure.set_figheight(size[1] + 0.17 * len(legend.get_texts()))  # the axes keep their size
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode("utf-8", "replace")).decode()


def det_plot(axes, results, bands=None):
    """Detection error trade-off curves; bands {name: (false-alarm rates (G,), lowest miss rates, highest)}, shaded."""
    low = 0.001
    for name, (scores, labels) in results.items():
        _, miss, false_alarm = error_curve(scores, labels)
        shown = (miss > 0) & (false_alarm > 0) & (miss < 1) & (false_alarm < 1)
        low = min(miss[shown].min(initial=low), false_alarm[shown].min(initial=low))
        eer, _ = equal_error_rate(scores, labels)
        label = f"{name}: EER {eer:.2f} %, {len(labels):,} trials"
        (line,) = axes.step(norm.ppf(false_alarm[shown]), norm.ppf(miss[shown]), where="post", label=label)
        if 0 < eer < 100:
            axes.plot(norm.ppf(eer / 100), norm.ppf(eer / 100), "o", color=line.get_color())
        if bands and name in bands:
            rates, *limits = bands[name]
            lowest, highest = norm.ppf(np.clip(limits, 1e-9, 1 - 1e-9))  # norm.ppf(0) is infinite
            axes.fill_between(norm.ppf(rates), lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
    limits, ticks = norm.ppf([low * 0.8, 0.8]), DET_TICKS[low * 0.8 <= DET_TICKS]
    axes.plot(limits, limits, ":", color="gray", linewidth=1)
    axes.set(xlim=limits, ylim=limits, xlabel="false alarms (%)", ylabel="misses (%)", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.grid(alpha=0.3)


def course_plot(axes, curves, unit, band=()):
    """Curves over epochs, {name: [(epoch, value)]}; band: [(epoch, low, high)], shaded. A single curve has no label."""
    for number, (name, points) in enumerate(curves.items()):
        label = name if len(curves) > 1 else ""
        axes.plot(*zip(*points), "--" if number else "-", marker="." if len(points) <= 30 else None, label=label)
    if band:
        axes.fill_between(*zip(*band), color="C0", alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.set_ylim(0, 1.08 * axes.dataLim.ymax or 1)
    axes.ticklabel_format(axis="y", scilimits=(-2, 5))
    axes.xaxis.get_major_locator().set_params(integer=True)


def histogram_plot(axes, scores, labels, thresholds):
    """Histograms of same-speaker and different-speaker scores; thresholds {name: score or None} as lines."""
    bins = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-9), 61)
    for label, name, colour in ((0, "different speakers", "C1"), (1, "same speaker", "C0")):
        chosen = scores[labels == label]
        axes.hist(chosen, bins, weights=np.full(len(chosen), 100 / len(chosen)), color=colour, alpha=0.55, label=name)
    for (name, threshold), style in zip(thresholds.items(), ["-", "--", ":"]):
        if threshold is not None:
            label = f"threshold {name}: {threshold:.3f}"
            axes.axvline(threshold, color="#202124", linewidth=1.1, linestyle=style, label=label)
    axes.set(xlabel="score", ylabel="% of the trials of each class")
