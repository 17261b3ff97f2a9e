"""Figures of an experiment, as PNG files (training.png, det.png) and as SVG pictures of a report."""

import base64
import io
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # not pyplot, which may need a display
from scipy.stats import norm

from tools import equal_error_rate, error_curve, whole_file

DET_TICKS = np.array([1e-5, 1e-4, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
# Names of lists are shown as they are, with "$", too; the same figure gives the same SVG.
STYLE = {"text.parse_math": False, "svg.hashsalt": "report"}


@matplotlib.rc_context(STYLE)
def training_figure(history):
    """Loss, accuracy and EER over epochs, from the records of metrics.jsonl."""
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
    return figure


@matplotlib.rc_context(STYLE)
def det_figure(results):
    """Detection error trade-off curves (Martin et al. 1997) of {name: (scores, labels)}, with dots at the EERs.

    Of a back-end only AS-norm is drawn beside the model's own score: of more, nobody could tell the colours apart.
    """
    others = [f"{name}.{step}" for name in results for step in ("cosine", "mean", "calibrated")]
    results = {name: each for name, each in results.items() if name not in others}
    figure = Figure(figsize=(6, 6 + 0.22 * len(results)), layout="constrained")
    axes, low = figure.add_subplot(), 0.001
    for name, (scores, labels) in results.items():
        _, miss, false_alarm = error_curve(scores, labels)
        shown = (miss > 0) & (false_alarm > 0) & (miss < 1) & (false_alarm < 1)
        low = min(miss[shown].min(initial=low), false_alarm[shown].min(initial=low))
        eer, _ = equal_error_rate(scores, labels)
        label = f"{name}: EER {eer:.2f} %, {len(labels):,} trials"
        (line,) = axes.step(norm.ppf(false_alarm[shown]), norm.ppf(miss[shown]), where="post", label=label)
        if 0 < eer < 100:
            axes.plot(norm.ppf(eer / 100), norm.ppf(eer / 100), "o", color=line.get_color())
    limits, ticks = norm.ppf([low * 0.8, 0.8]), DET_TICKS[low * 0.8 <= DET_TICKS]
    axes.plot(limits, limits, ":", color="gray", linewidth=1)
    axes.set(xlim=limits, ylim=limits, xlabel="false alarms (%)", ylabel="misses (%)", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", frameon=False)
    return figure


def save_png(figure, path):
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


@matplotlib.rc_context(STYLE)
def as_svg(figure):
    """The figure as an SVG in a data: address, for a page."""
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters missing in the font are shown as boxes
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode("utf-8", "replace")).decode()
