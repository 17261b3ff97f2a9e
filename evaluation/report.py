"""One page about an experiment: its results, its course, and the trials it gets wrong.

report.html holds all of it, pictures included: it needs no server, no network and no scripts, and can be mailed.
"""

import base64
import datetime
import html
import json
import math
import shlex
from pathlib import Path

import numpy as np
from scipy.stats import norm

from evaluation.findings import WORST, Experiment, ScoredList, errors_by_duration, errors_by_speaker, worst_trials
from evaluation.intervals import det_band
from evaluation.plots import (
    course_picture,
    det_picture,
    durations_picture,
    histogram_picture,
    speakers_picture,
)
from evaluation.scoring import VALID
from tools import InputError, whole_file


def write_report(folder):
    """Write report.html into the folder of an experiment, from what lies there; returns its path.

    folder: what trainSpeakerNet.py left, of a training (settings.json, metrics.jsonl) or an --eval (results.json), with
    its scores. What else is needed (trial lists, audio) is looked for where the settings say; the page says what is
    absent or has changed since. InputError if the folder holds no experiment.
    """
    experiment = Experiment(folder)
    names = list(dict.fromkeys(row.name for row in experiment.rows))
    lists, notes = {}, {}
    for name in names:
        try:
            lists[name] = ScoredList(experiment, name)
        except InputError as error:
            notes[name] = str(error)
    groups = [
        ("Results", _results(experiment)),
        ("Training", _training(experiment)),
        ("Detection error trade-off", _trade_off(experiment, lists, notes)),
    ]
    for name in names:
        known = name in lists
        is_open = known and name == next(iter(lists))  # the tables of one list are enough at a first look
        groups.append((name, _list_section(experiment, lists[name], is_open) if known else
                       [note(f"No scores to look at: {notes[name]}.")]))  # fmt: skip
    groups.append(("Settings", _settings(experiment)))
    path = experiment.folder / "report.html"
    with whole_file(path) as file:
        # A name may be no text; it is shown with its bytes as numbers.
        file.write(_page(experiment, [group for group in groups if group[1]]).encode("utf-8", "backslashreplace"))
    return path


# ---- HTML ------------------------------------------------------------------------------------------------------------


class Markup(str):
    """Text that is HTML; all other text is escaped on its way into an element."""


def tag(element, *contents, **attributes):
    """<element attributes>contents</element>; class_ stands for class."""
    words = "".join(f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items())
    inner = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in contents)
    return Markup(f"<{element}{words}>{inner}</{element}>")


def table(columns, rows):
    """A table that a narrow screen scrolls; columns: {head: "number" or "text"}; a row of one cell is a heading."""
    kinds = list(columns.values())
    head = tag("tr", *(tag("th", name, class_=kind) for name, kind in columns.items()))
    body = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds))) if len(row) > 1 else
        tag("tr", tag("td", row[0], colspan=len(kinds), class_="heading"))
        for row in rows
    ]  # fmt: skip
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def figure(svg, title, words=""):
    """A picture with its title above it."""
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode()
    image = Markup(f'<img src="{source}" alt="{html.escape(title)}">')
    return tag("figure", tag("figcaption", tag("b", title), " ", words), image)


def grid(*contents, kind=""):
    """Things side by side, as many as the width allows; kind: "large" pictures, or "tables"."""
    return tag("div", *contents, class_=f"grid {kind}")


def note(words):
    return tag("p", words, class_="note")


def details(summary, *contents, is_open=False):
    return tag("details", tag("summary", summary), *contents, **({"open": "open"} if is_open else {}))


def _interval(result, metric, decimals):
    low, high = result["interval"][metric]
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _has_interval(result, metric):
    return metric in (result.get("interval") or {})


# ---- the sections ----------------------------------------------------------------------------------------------------


def _page(experiment, groups):
    title = experiment.folder.resolve().name
    keys = [f"section-{number}" for number in range(len(groups))]
    links = [tag("a", name, href=f"#{key}") for key, (name, _) in zip(keys, groups)]
    sections = [tag("section", tag("h2", name), *parts, id=key) for key, (name, parts) in zip(keys, groups)]
    header = tag("header", tag("h1", title), tag("p", *_summary(experiment), class_="lead"), _tiles(experiment))
    head = tag("head", Markup('<meta charset="utf-8">'), tag("title", title), tag("style", Markup(STYLE)),
               Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'))  # fmt: skip
    body = tag("body", header, tag("nav", *links), tag("main", *sections))
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en-GB") + "\n"


def _summary(experiment):
    settings, history = experiment.settings, experiment.history
    when = max((experiment.folder / name).stat().st_mtime for name in ("settings.json", "metrics.jsonl", "results.json")
               if (experiment.folder / name).exists())  # fmt: skip
    when = datetime.datetime.fromtimestamp(when)
    when = f"{when.day} {when:%B %Y, %H:%M}"
    initial = Path(settings.get("initial_model") or "").name
    if not experiment.is_training:
        yield f"{initial or 'A model'}, evaluated; written on {when}. "
    else:
        epochs = max((record["epoch"] for record in history), default=0)
        yield (
            f"An ECAPA-TDNN with C={settings.get('C')}{f', begun from {initial},' if initial else ''} trained on "
            f"{Path(settings.get('train_list', '?')).name} ({settings.get('n_class') or '?'} classes) for {epochs} of "
            f"{settings.get('max_epoch')} epochs, in batches of {settings.get('batch_size')} crops of "
            f"{settings.get('num_frames', 0) / 100:g} s; last written on {when}. "
        )
    tests = [row for name, row in experiment.headline.items() if name != VALID]
    models = list(dict.fromkeys(row.model for row in tests))
    tests.sort(key=lambda row: models.index(row.model))
    before = None
    for row in tests:
        interval = f" (95 % interval {_interval(row.result, 'eer', 2)})" if _has_interval(row.result, "eer") else ""
        yield ", " if row.model == before else f"{'EER of' if before is None else '; of'} {row.model}: "
        yield tag("b", f"{row.result['eer']:.2f} %")
        yield f" on {row.name}{interval}"
        before = row.model
    yield "." if tests else "Nothing is evaluated yet."


def _tiles(experiment):
    tiles = []
    for name, row in experiment.headline.items():
        result, facts = row.result, []
        if _has_interval(result, "eer"):
            facts.append(f"{_interval(result, 'eer', 2)} %")
        facts.append(f"{result['trials']:,} trials")
        tiles.append(tag("div", tag("span", name), tag("strong", f"{result['eer']:.2f} %"),
                         *(tag("small", fact) for fact in facts)))  # fmt: skip
    return tag("div", *tiles, class_="tiles")


# Column, key in a result, decimals.
RATES = [("EER (%)", "eer", 2), ("minDCF 0.05", "min_dcf_0.05", 4), ("minDCF 0.01", "min_dcf_0.01", 4),
         ("actDCF 0.05", "act_dcf_0.05", 4), ("actDCF 0.01", "act_dcf_0.01", 4), ("Cllr", "cllr", 4),
         ("min Cllr", "min_cllr", 4)]  # fmt: skip


def _results(experiment):
    rows = experiment.rows
    if not rows:
        return [note("Nothing is evaluated yet.")]
    shown = [rate for rate in RATES if any(row.result.get(rate[1]) is not None for row in rows)]
    lines, before = [], None
    for row in rows:
        heading = row.name, _size(row.result)
        if heading != before:
            lines.append([tag("div", tag("b", row.name), tag("small", heading[1]))])
        before = heading
        line = [row.model]
        for _, key, decimals in shown:
            value = row.result.get(key)
            cell = [f"{value:.{decimals}f}" if value is not None else "-"]
            if _has_interval(row.result, key):
                cell.append(tag("small", _interval(row.result, key, 2 if key == "eer" else 3)))
            line.append(tag("div", *cell))
        lines.append(line)
    words = []
    if any(row.result.get("interval") for row in rows):
        words.append("Small: 95 % intervals, by bootstrap over speakers.")
    if experiment.chosen:
        words.append(
            f"{VALID}: trials of held-out training speakers; the epoch is chosen on them, never on a test list."
        )
    columns = {"": "text nowrap", **{head: "number" for head, _, _ in shown}}
    return [table(columns, lines), *([note(" ".join(words))] if words else [])]


def _size(result):
    """What a list is made of, and what its scores were normalised with, in words."""
    words = [f"{result[key]:,} {key}" for key in ("trials", "speakers", "utterances") if result.get(key) is not None]
    return ", ".join([*words, f"cohort: {result['cohort']}"] if result.get("cohort") else words)


def _training(experiment):
    trained = [record for record in experiment.history if record["epoch"] > 0]
    tested = [record for record in experiment.history if record["lists"]]
    if not trained:
        return [note("No epoch is over yet.")] if experiment.is_training else []
    # Title, key in a record, unit, and where the axis from 0 ends at least: 1 % of waiting is not to look like 100.
    panels = [
        ("Loss", "loss", "", None), ("Accuracy", "accuracy", "%", 10), ("Learning rate", "learning_rate", "", 0),
        ("Margin", "margin", "radians", 0), ("Throughput", "utterances_per_second", "utterances/s", 0),
        ("Waiting for data", "waiting_percent", "% of the time", 20),
    ]  # fmt: skip
    pictures = []
    for title, key, unit, least in panels:
        points = [(record["epoch"], record[key]) for record in trained if record.get(key) is not None]
        if points:
            svg = course_picture({"": tuple(zip(*points))}, unit or title.lower(), reaches=least)
            last = f"{points[-1][1]:,.0f}" if points[-1][1] >= 100 else f"{points[-1][1]:.3g}"
            pictures.append(figure(svg, title, f"last {last} {unit}"))
    seen = dict.fromkeys(name for record in tested for name in record["lists"])
    for name in sorted(seen, key=lambda name: name == VALID):
        pictures.append(_course_of_list(tested, name))
    hours = sum(record.get("seconds", 0) for record in trained) / 3600
    words = f"{len(trained)} epochs took {hours:.1f} hours, evaluation aside." if hours >= 0.1 else ""
    unreadable = trained[-1].get("unreadable_files") or 0
    if unreadable:
        words += f" {unreadable} files could not be read and were replaced."
    return [*([note(words.strip())] if words else []), grid(*pictures)]


def _course_of_list(tested, name):
    def points(results_of):
        found = [(record["epoch"], results_of(record)[name]) for record in tested if name in results_of(record)]
        return [epoch for epoch, _ in found], [result["eer"] for _, result in found]

    curves = {"as trained": points(lambda record: record["lists"])}
    for average in dict.fromkeys(average for record in tested for average in record.get("averages", {})):
        curves[average] = points(lambda record, average=average: record.get("averages", {}).get(average, {}))
    curves = {words: curve for words, curve in curves.items() if curve[0]}
    last = curves["as trained"][1][-1]
    if len(curves) == 1:
        curves = {"": curves["as trained"]}
    known = [record for record in tested if _has_interval(record["lists"].get(name, {}), "eer")]
    band = None
    if known:
        low, high = zip(*(record["lists"][name]["interval"]["eer"] for record in known))
        band = [record["epoch"] for record in known], low, high
    return figure(course_picture(curves, "EER (%)", band, logarithmic=True), f"EER on {name}", f"last {last:.2f} %")


def _trade_off(experiment, lists, notes):
    if not lists:
        return []
    bands = {}
    for name, scored in lists.items():
        count = np.sum(scored.label == 0)
        rates = norm.cdf(np.linspace(norm.ppf(max(1 / count, 1e-6)), norm.ppf(0.8), 80)) if count > 1 else []
        if len(rates):
            bands[name] = rates, *det_band(*scored.by_speaker(), rates)
    # Lists among themselves, and each with what the back-end made of it.
    families = {}
    for name in lists:
        families.setdefault(experiment.list_of(name), []).append(name)
    chosen = {"All lists": [family[0] for family in families.values()]} if len(families) > 1 else {}
    for name, family in families.items():
        if len(family) > 1 or len(families) == 1:
            chosen[f"{name}, before and after the back-end" if len(family) > 1 else name] = family
    pictures = []
    for title, names in chosen.items():
        curves = {name: (lists[name].scores, lists[name].label) for name in names}
        pictures.append(figure(det_picture(curves, bands), title))
    words = "Shaded: 95 % bands, by bootstrap over speakers. Dots: equal error rates."
    if notes:
        words += f" Without {', '.join(notes)}: see there."
    return [note(words), grid(*pictures, kind="large")]


def _list_section(experiment, scored, is_open):
    pictures = [
        figure(histogram_picture(scored.scores, scored.label, scored.row.result.get("thresholds") or {}), "Scores")
    ]
    errors = errors_by_speaker(*scored.by_speaker(), scored.threshold)
    if errors:
        pictures.append(figure(speakers_picture([each.eer for each in errors], scored.eer), "EER of each speaker"))
        speakers = _speakers_table(scored, errors, is_open)
    else:
        speakers = note("No EER by speaker: no speaker has trials of both kinds.")
    picture, by_duration = _by_duration(experiment, scored, is_open)
    highest, lowest = worst_trials(scored.scores, scored.label)
    tables = [speakers, by_duration] + [
        details(words, _trials_table(scored, positions), is_open=is_open) for words, positions in (
            (f"The {len(highest)} highest scores of different speakers", highest),
            (f"The {len(lowest)} lowest scores of the same speaker", lowest),
        )
    ]  # fmt: skip
    about = f"{scored.row.model}: EER {scored.eer:.2f} % at the threshold {scored.threshold:.4f}."
    return [note(about), grid(*pictures, *picture), grid(*tables, kind="tables")]


def _speakers_table(scored, errors, is_open):
    columns = {"speaker": "text nowrap", "EER (%)": "number", "misses (%)": "number", "alarms (%)": "number",
               "same": "number", "different": "number"}  # fmt: skip
    rows = [
        (tag("code", scored.listing.speakers[each.speaker]), f"{each.eer:.2f}", f"{each.misses:.2f}",
         f"{each.false_alarms:.2f}", f"{each.targets:,}", f"{each.others:,}")
        for each in errors[:WORST]
    ]  # fmt: skip
    words = f"EER at a speaker's own threshold; misses and false alarms at the list's, {scored.threshold:.4f}."
    left = len(scored.listing.speakers) - len(errors)
    if left:
        words += f" {left:,} of {len(scored.listing.speakers):,} speakers do not have trials of both kinds."
    return details(f"The {len(rows)} worst speakers of {len(errors):,}", note(words), table(columns, rows),
                   is_open=is_open)  # fmt: skip


def _by_duration(experiment, scored, is_open):
    """([picture], table or note) of the EER by duration."""
    trials, root = scored.listing.trials, scored.listing.root
    if not root or not Path(root).is_dir():
        return [], note(f"No EER by duration: the audio is not at {root or 'hand'}.")
    try:
        shorter = np.minimum(experiment.seconds(root, trials.enrol), experiment.seconds(root, trials.test))
    except InputError as error:
        return [], note(f"No EER by duration: {error}.")
    unknown = np.isnan(shorter)
    if unknown.all():
        return [], note(f"No EER by duration: the audio is not in {root}.")
    bins = [
        (f"{low:g}-{high:g}" if high < math.inf else f"{low:g}+", targets, others, eer)
        for low, high, targets, others, eer in errors_by_duration(scored.scores, scored.label, shorter)
    ]
    svg = durations_picture([(words, eer) for words, _, _, eer in bins], scored.eer)
    columns = {"seconds": "text", "EER (%)": "number", "same": "number", "different": "number"}
    rows = [(words, "-" if eer is None else f"{eer:.2f}", f"{same:,}", f"{different:,}")
            for words, same, different, eer in bins]  # fmt: skip
    contents = [table(columns, rows)]
    if unknown.any():
        contents.insert(0, note(f"Without {unknown.sum():,} trials whose audio could not be read in {root}."))
    return [figure(svg, "EER by duration")], details("By seconds of the shorter side", *contents, is_open=is_open)


def _trials_table(scored, positions):
    trials = scored.listing.trials
    rows = [
        (f"{scored.scores[position]:.4f}", f"{trials.line_numbers[position]:,}",
         tag("div", tag("code", trials.enrol[position]), tag("code", trials.test[position])))
        for position in positions
    ]  # fmt: skip
    return table({"score": "number", "line": "number", "enrolment and test": "text"}, rows)


def _settings(experiment):
    def listing(content):
        return table({"": "text", " ": "text"}, [(name, tag("code", _plain(value))) for name, value in content.items()])

    parts = [details("Settings", listing(experiment.settings))]
    if experiment.command:
        command = shlex.join(map(str, experiment.command))
        parts.append(details("Command", tag("p", tag("code", command))))
    if experiment.versions:
        parts.append(details("Versions", listing(experiment.versions)))
    hashes = dict(experiment.sha256)
    for row in experiment.rows:
        if row.result.get("list_sha256") and row.result["list_sha256"] not in hashes.values():
            hashes[row.name] = row.result["list_sha256"]
    if hashes:
        parts.append(details("SHA-256 of the lists", listing(hashes)))
    return parts


def _plain(value):
    """A setting as one would write it."""
    return value if isinstance(value, str) else json.dumps(value)


STYLE = """
:root { color-scheme: light; --ink: #202124; --quiet: #5f6368; --line: #e4e6e9; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 2rem; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.3rem;
  overflow-wrap: anywhere; }
h3 { margin: 1.75rem 0 .25rem; font-size: 1rem; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.note { color: var(--quiet); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .9rem; }
a { color: var(--blue); text-decoration: none; overflow-wrap: anywhere; }
a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
.tiles div { display: flex; flex-direction: column; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .5rem; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere; }
.tiles strong { margin-top: auto; font-size: 1.6rem; line-height: 1.3; font-weight: 600; }
small { color: var(--quiet); font-size: .8rem; font-weight: 400; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem 1.75rem;
  margin: 1.25rem 0; }
.grid.large, .grid.tables { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
  gap: .75rem 1.75rem; }
.grid > * { min-width: 0; }
figure { margin: 0; break-inside: avoid; }
figcaption { margin-bottom: .25rem; color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid #9aa0a6; color: var(--quiet); font-weight: 600; white-space: nowrap;
  vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { padding: .4rem 1.25rem .4rem 0; }
th:last-child, td:last-child { padding-right: 0; }
.text { text-align: left; }
.heading { padding-top: 1rem; }
.heading div { position: sticky; left: 0; max-width: calc(100vw - 3rem); }
.heading b { margin-right: .5rem; }
.nowrap { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.number small { display: block; }
code { font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
td div code { display: block; }
details { margin: .5rem 0; }
summary { padding: .25rem 0; cursor: pointer; font-weight: 600; font-size: .95rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 2rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding-right: .9rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  .wide { overflow: visible; }
  .note { break-after: avoid; }
  .grid, .grid.large { grid-template-columns: repeat(2, 1fr); }
  .grid.tables { display: block; }
}
"""
