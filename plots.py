"""Pictures: detection error trade-off curves, and how a training run went."""

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from tools import equal_error_rate, error_curve, whole_file


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
    ticks = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    low = ticks[0]
    for name, (scores, labels) in results.items():
        _, miss, false_alarm = error_curve(scores, labels)
        shown = (miss > 0) & (false_alarm > 0) & (miss < 1) & (false_alarm < 1)
        if shown.any():  # a perfect separation has no curve
            # A lowest tick below the rarest error that this list can show would be empty paper.
            low = min(low, miss[shown].min(), false_alarm[shown].min())
        eer, _ = equal_error_rate(scores, labels)
        (line,) = axes.step(norm.ppf(false_alarm[shown]), norm.ppf(miss[shown]), where="post",
                            label=f"{name}: EER {eer:.2f} %, {len(labels):,} trials")
        if 0 < eer < 100:
            axes.plot(norm.ppf(eer / 100), norm.ppf(eer / 100), "o", color=line.get_color())
    limits = norm.ppf([low * 0.8, 0.8])
    axes.plot(limits, limits, ":", color="gray", linewidth=1)
    axes.set(xlim=limits, ylim=limits, xlabel="false alarms (%)", ylabel="misses (%)", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(norm.ppf(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    _save_figure(figure, path)


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
        lower.plot(*zip(*points), marker=".", label=f"{name}: last {points[-1][1]:.2f} %, best "
                                                    f"{min(eer for _, eer in points):.2f} %")
    if tested:
        lower.legend()
    lower.set(xlabel="epoch", ylabel="EER (%)")
    lower.xaxis.get_major_locator().set_params(integer=True)
    lower.set_ylim(bottom=0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    _save_figure(figure, path)
