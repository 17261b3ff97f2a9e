"""Pictures: detection error trade-off curves, how a training run went, and what a report shows of them."""

import functools
import io
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from tools import equal_error_rate, error_curve, whole_file

DET_TICKS = np.array([1e-5, 1e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])


def _figure(*args, **kwargs):
    # Not pyplot: it keeps figures alive and may look for a screen.
    return Figure(*args, layout="constrained", **kwargs)


def _save_figure(figure, path):
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def draw_det(path, results):
    """Detection error trade-off curves (Martin et al. 1997): results {name: (scores, labels)} -> a PNG file."""
    figure = _figure(figsize=(6, 6))
    axes = figure.add_subplot()
    _draw_det(axes, results)
    axes.legend(loc="upper right")
    _save_figure(figure, path)


def _draw_det(axes, results, bands=None, ticks=DET_TICKS):
    low = 0.001
    for name, (scores, labels) in results.items():
        _, miss, false_alarm = error_curve(scores, labels)
        shown = (miss > 0) & (false_alarm > 0) & (miss < 1) & (false_alarm < 1)
        if shown.any():  # a perfect separation has no curve
            # A lowest tick below the rarest error that this list can show would be empty paper.
            low = min(low, miss[shown].min(), false_alarm[shown].min())
        eer, _ = equal_error_rate(scores, labels)
        x, y = _thin(norm.ppf(false_alarm[shown]), norm.ppf(miss[shown]))
        (line,) = axes.step(x, y, where="post", label=_text(f"{name}: EER {eer:.2f} %, {len(labels):,} trials"))
        if 0 < eer < 100:
            axes.plot(norm.ppf(eer / 100), norm.ppf(eer / 100), "o", color=line.get_color())
        if bands and name in bands:
            rate, lowest, highest = bands[name]
            # No miss at all lies infinitely far down; what counts is that it is off the paper.
            lowest, highest = np.clip([lowest, highest], 1e-9, 1 - 1e-9)
            axes.fill_between(norm.ppf(rate), norm.ppf(lowest), norm.ppf(highest), color=line.get_color(),
                              alpha=0.15, linewidth=0)  # fmt: skip
    limits = norm.ppf([low * 0.8, 0.8])
    ticks = ticks[ticks >= low * 0.8]
    axes.plot(limits, limits, ":", color="gray", linewidth=1)
    axes.set(xlim=limits, ylim=limits, xlabel="false alarms (%)", ylabel="misses (%)", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.grid(alpha=0.3)


def _thin(x, y, cells=1000):
    """A staircase of up to millions of steps without those that are too small to see: (N,), (N,) -> (M,), (M,)."""
    if len(x) < 2:
        return x, y
    width = max(np.ptp(x), np.ptp(y)) / cells or 1.0
    cell = np.stack([x, y]) // width
    moved = np.any(np.diff(cell) != 0, axis=0)
    kept = np.append(True, moved) | np.append(moved, True)  # the first and the last of each cell
    return x[kept], y[kept]


def _text(words):
    """Words as matplotlib prints them literally: it takes $ for mathematics, and leaves out what begins with _."""
    return f" {words}".replace("$", r"\$")


def draw_training(path, history):
    """Loss, accuracy and EER over epochs, from the records of metrics.jsonl -> a PNG file."""
    figure = _figure(figsize=(7, 6))
    upper, lower = figure.subplots(2, 1, sharex=True)
    trained = [record for record in history if record["epoch"] > 0]
    tested = [record for record in history if record["lists"]]
    upper.plot([r["epoch"] for r in trained], [r["loss"] for r in trained], color="tab:blue", marker=".")
    upper.set_ylabel("training loss", color="tab:blue")
    accuracy = upper.twinx()
    accuracy.plot([r["epoch"] for r in trained], [r["accuracy"] for r in trained], color="tab:orange", marker=".")
    accuracy.set_ylabel("training accuracy (%)", color="tab:orange")
    for name in tested[-1]["lists"] if tested else []:
        points = [(r["epoch"], r["lists"][name]["eer"]) for r in tested if name in r["lists"]]
        lower.plot(*zip(*points), marker=".", label=f"{name}: last {points[-1][1]:.2f} %, lowest "
                                                    f"{min(eer for _, eer in points):.2f} %")
    if tested:
        lower.legend()
    lower.set(xlabel="epoch", ylabel="EER (%)")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    _save_figure(figure, path)


# ---- pictures of a report: small, so that a phone shows them at their size, and SVG, so that print is sharp ----------

# Okabe & Ito (2008): told apart by the colour-blind, too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]
STYLE = {
    "font.size": 9, "axes.labelsize": 9, "legend.fontsize": 8.5, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6", "axes.labelcolor": "#3c4043", "xtick.color": "#5f6368", "ytick.color": "#5f6368",
    "text.color": "#202124", "axes.axisbelow": True, "axes.grid": True, "grid.color": "#e4e6e9", "grid.linewidth": 0.8,
    "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False, "legend.handlelength": 1.6,
    "svg.hashsalt": "report",  # the same picture is the same text
}  # fmt: skip


def _picture(width, height):
    """Turn a function that draws on a figure into one that returns the picture, so many inches large, as SVG text."""

    def decorate(draw):
        @functools.wraps(draw)
        def drawn(*args, **kwargs):
            with matplotlib.rc_context(STYLE), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph")  # letters that the font lacks are shown as boxes
                figure = _figure(figsize=(width, height))
                draw(figure, *args, **kwargs)
                text = io.StringIO()
                figure.savefig(text, format="svg", metadata={"Date": None})
            return text.getvalue()

        return drawn

    return decorate


def _legend(figure):
    legend = figure.legend(loc="outside upper left", borderaxespad=0.2)
    figure.set_figheight(figure.get_figheight() + 0.17 * len(legend.get_texts()))  # room of its own, not the axes'


@_picture(3.8, 2.3)
def course_picture(figure, curves, unit, band=None, reaches=None, logarithmic=False):
    """Something over epochs: {name: (epochs, values)} -> SVG text; the legend is left out when a name is empty.

    unit: what the values are. band: (epochs, low, high), shaded beneath the first curve. reaches: let the axis begin at
    0 and end at least there.
    """
    axes = figure.add_subplot()
    longest = max(len(epochs) for epochs, _ in curves.values())
    for number, (name, (epochs, values)) in enumerate(curves.items()):
        axes.plot(epochs, values, "-" if number == 0 else "--", marker="." if longest <= 30 else None,
                  label=_text(name))  # fmt: skip
    if band:
        axes.fill_between(*band, color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 5))
    if logarithmic:
        _logarithmic(axes)
    elif reaches is not None:
        axes.set_ylim(0, max(reaches, 1.08 * axes.dataLim.ymax) or 1)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if all(curves):
        _legend(figure)


def _logarithmic(axes):
    """Turn to a logarithmic scale with ticks at 1, 2, 5, 10, ..., if everything shown is above 0."""
    low, high = axes.dataLim.intervaly
    if low <= 0:
        axes.set_ylim(bottom=0)
        return
    steps = [1, 2, 5] if high > 10 * low else [1, 1.5, 2, 3, 4, 5, 7]
    ticks = np.outer(10.0 ** np.arange(-4, 3), steps).ravel()
    axes.set_yscale("log")
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.minorticks_off()
    axes.set_ylim(low / (high / low) ** 0.05 * 0.98, high * (high / low) ** 0.05 * 1.02)


@_picture(4.6, 4.4)
def det_picture(figure, results, bands):
    """draw_det as SVG text; bands {name: (false-alarm rates (G,), lowest miss rates (G,), highest (G,))}, shaded."""
    _draw_det(figure.add_subplot(), results, bands, DET_TICKS[DET_TICKS != 0.002])  # it has no room
    _legend(figure)


@_picture(3.8, 2.4)
def histogram_picture(figure, scores, labels, thresholds):
    """Scores of the same and of different speakers -> SVG text; thresholds {name: score or None} as lines."""
    axes = figure.add_subplot()
    bins = np.linspace(scores.min(), max(scores.max(), scores.min() + 1e-9), 61)
    for label, name, colour in ((0, "different speakers", COLOURS[1]), (1, "same speaker", COLOURS[0])):
        chosen = scores[labels == label]
        axes.hist(chosen, bins, weights=np.full(len(chosen), 100 / len(chosen)), color=colour, alpha=0.55,
                  label=f"{name}: {len(chosen):,} trials")  # fmt: skip
    styles = ["-", "--", ":", "-."]
    for number, (name, threshold) in enumerate((n, t) for n, t in thresholds.items() if t is not None):
        axes.axvline(threshold, color="#202124", linewidth=1.1, linestyle=styles[number % 4],
                     label=_text(f"threshold {name}: {threshold:.3f}"))  # fmt: skip
    axes.set(xlabel="score", ylabel="% of their trials")
    _legend(figure)


@_picture(3.8, 2.4)
def speakers_picture(figure, eers, eer):
    """The EER of each speaker (S,), in %, worst first, beside that of the list -> SVG text."""
    axes = figure.add_subplot()
    axes.fill_between(np.arange(len(eers) + 1), [*eers, eers[-1]], step="post", color=COLOURS[0], alpha=0.55,
                      linewidth=0)  # fmt: skip
    axes.axhline(eer, color="#202124", linewidth=1.1, linestyle="--", label=f"all trials: {eer:.2f} %")
    axes.axhline(np.median(eers), color="#202124", linewidth=1.1, linestyle=":",
                 label=f"median speaker: {np.median(eers):.2f} %")  # fmt: skip
    axes.set(xlabel=f"{len(eers):,} speakers, worst first", ylabel="EER (%)", xlim=(0, len(eers)))
    axes.set_ylim(bottom=0)
    _legend(figure)


@_picture(3.8, 2.4)
def durations_picture(figure, bins, eer):
    """EER of trials by duration, [(words for the duration, EER in % or None)], beside that of the list -> SVG text."""
    axes = figure.add_subplot()
    for place, (_, value) in enumerate(bins):
        axes.bar(place, value or 0, 0.7, color=COLOURS[0], alpha=0.55)
    axes.axhline(eer, color="#202124", linewidth=1.1, linestyle="--", label=f"all trials: {eer:.2f} %")
    axes.set_xticks(range(len(bins)), [words for words, _ in bins])
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="seconds of the shorter side", ylabel="EER (%)")
    axes.set_ylim(bottom=0)
    _legend(figure)
