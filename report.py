"""One page about an experiment: its results, its course, and the trials it gets wrong.

report.html holds all of it, pictures included: it needs no server, no network and no scripts, and can be mailed.
"""

import base64
import concurrent.futures
import datetime
import html
import json
import math
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.stats import norm

from audio import SAMPLE_RATE
from dataLoader import TrialList
from intervals import det_band, speakers_of
from pack import Pack
from plots import (
    course_picture,
    det_picture,
    durations_picture,
    histogram_picture,
    speakers_picture,
)
from tools import InputError, equal_error_rate, progress_bar, read_history, sha256, whole_file

WORST = 20  # so many trials of each kind, and speakers, are named
DURATIONS = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, math.inf])  # edges of the bins, seconds
VALID = "valid"  # the trials of held-out training speakers, by which the epoch is chosen


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


# ---- what there is to report -----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the results: what was evaluated, on which list, and the outcome as metrics.jsonl has it."""

    model: str
    name: str
    result: dict


class Experiment:
    """What an experiment's folder says: ``settings``, ``sha256``, ``versions``, ``command``, ``history``, ``rows``.

    ``rows``: the Rows of the results, list by list; ``headline``: those that the summary goes by, {name: Row}.
    ``chosen``: the record of the epoch with the lowest EER on the trials of held-out training speakers, or None.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        training, evaluation = self._read("settings.json"), self._read("results.json")
        if not training and not evaluation:
            raise InputError(f"{self.folder} has no settings.json and no results.json: it is no experiment's folder")
        self.is_training = bool(training)
        content = training or evaluation
        self.settings = content.get("settings", {})
        self.sha256, self.versions = content.get("sha256", {}), content.get("versions", {})
        self.command = content.get("command", [])
        self.history = read_history(self.folder / "metrics.jsonl") if training else []
        # Both, when a model was evaluated into the folder of its training: lists of either are found.
        self.eval_lists = [*self.settings.get("eval_list", [])]
        if training and evaluation:
            self.eval_lists += evaluation.get("settings", {}).get("eval_list", [])
        tested = [record for record in self.history if record["lists"]]
        valid = [record for record in tested if record["epoch"] > 0 and VALID in record["lists"]]
        self.last = tested[-1] if tested else None
        self.chosen = min(valid, key=lambda record: record["lists"][VALID]["eer"]) if valid else None
        rows = [*self._training_rows(), *self._evaluation_rows(evaluation)]
        self._listings, self._seconds = {}, {}  # of several results on a list it is read once
        # List by list, as they come; those of held-out training speakers last.
        lists = list(dict.fromkeys(self.list_of(row.name) for row in rows))
        names = list(dict.fromkeys(row.name for row in rows))
        self.rows = sorted(rows, key=lambda row: (
            row.name == VALID, lists.index(self.list_of(row.name)), names.index(row.name)
        ))  # fmt: skip
        self.headline = {}
        for row in self.rows:
            if row.model not in self._averages():
                self.headline.setdefault(row.name, row)

    def _read(self, name):
        path = self.folder / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} is not what trainSpeakerNet.py writes: delete it, or name another folder")
        return content

    def _averages(self):
        return self.last.get("averages", {}) if self.last else {}

    def _training_rows(self):
        if self.chosen and self.chosen is not self.last:
            name = f"epoch {self.chosen['epoch']}, chosen on {VALID}"
            yield from (Row(name, *item) for item in self.chosen["lists"].items())
        if self.last:
            also = f", chosen on {VALID}" if self.chosen is self.last else ""
            name = f"epoch {self.last['epoch']}, the last{also}" if self.last["epoch"] else "before training"
            yield from (Row(name, *item) for item in self.last["lists"].items())
            for average, results in self._averages().items():
                yield from (Row(average, *item) for item in results.items())

    def _evaluation_rows(self, evaluation):
        if evaluation:
            model = Path(evaluation.get("settings", {}).get("initial_model", "")).name or "the model"
            yield from (Row(model, *item) for item in evaluation.get("results", {}).items())

    def list_of(self, name):
        """The name of the list that a result ("O", or "O.as_norm" of a back-end) is about."""
        stems = [Path(path).stem for path in self.eval_lists]
        return max((stem for stem in stems if name == stem or name.startswith(f"{stem}.")), key=len, default=name)

    def listing(self, name):
        """The Listing behind a result, unchanged since then. InputError, in one line, if it is not, or absent."""
        paths = {Path(path).stem: path for path in self.eval_lists}
        path = self.folder / "scores" / f"{VALID}_trials.txt" if name == VALID else paths.get(self.list_of(name))
        if not path:
            raise InputError(f"the settings name no trial list for {name}")
        if path not in self._listings:
            self._listings[path] = Listing(path, self.settings.get("train_path" if name == VALID else "eval_path"))
        hashes = {row.result.get("list_sha256") for row in self.rows if row.name == name} - {None}
        if name != VALID and hashes and self._listings[path].sha256 not in hashes:
            raise InputError(f"the trial list {path} has changed since it was evaluated")
        return self._listings[path]

    def seconds(self, root, files):
        """How long audio files under a folder are: (N,) seconds, nan for those that cannot be read."""
        known = self._seconds.setdefault(root, {})
        new = [file for file in dict.fromkeys(files) if file not in known]
        known.update(zip(new, durations(root, new).tolist()))
        return np.array([known[file] for file in files])


class Listing:
    """A trial list and the speakers in it: ``trials``, a TrialList; ``enrol_speaker`` and ``test_speaker`` (N,) numbers
    of ``speakers``, their names; ``root``, where the audio was; ``sha256`` of the list."""

    def __init__(self, path, root):
        self.trials, self.root, self.sha256 = TrialList(path, "the trial list"), root, sha256(path)
        self.enrol_speaker, self.test_speaker, count = speakers_of(self.trials)
        self.speakers = speaker_names(self.trials, self.enrol_speaker, self.test_speaker, count)


class ScoredList:
    """The scores of a list, from scores/<name>.txt, made sure to be those of a result on record.

    ``row``: that result; ``listing``: the Listing; ``scores`` and ``label`` (N,); ``eer`` in % and its ``threshold``.
    InputError, in one line, when something is amiss.
    """

    def __init__(self, experiment, name):
        path = experiment.folder / "scores" / f"{name}.txt"
        if not path.exists():
            raise InputError(f"scores/{path.name} is not there")
        self.listing = experiment.listing(name)
        trials = self.listing.trials
        fields = path.read_text(encoding="utf-8", errors="replace").split()
        try:
            self.scores = np.array(fields[0::3], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"scores/{path.name} is damaged: {error}") from error
        if fields[1::3] != trials.enrol or fields[2::3] != trials.test or not np.isfinite(self.scores).all():
            raise InputError(f"scores/{path.name} does not have the trials of {trials.path}, one finite score for each")
        self.label = trials.label
        self.eer, self.threshold = equal_error_rate(self.scores, self.label)
        # The file has 8 decimals: a few pairs of scores that nearly tie may have changed sides.
        rows = [row for row in experiment.rows if row.name == name and abs(row.result["eer"] - self.eer) < 0.01]
        if not rows:
            raise InputError(f"scores/{path.name} has an EER of {self.eer:.2f} %, that of none of the results above")
        self.row = rows[0]

    def by_speaker(self):
        """What tells the speakers of the trials apart, as intervals.py takes it."""
        return self.scores, self.label, self.listing.enrol_speaker, self.listing.test_speaker


def speaker_names(trials, enrol_speaker, test_speaker, count):
    """Names for the speakers 0 to count - 1 of a TrialList: the folder that tells them apart, else an utterance."""
    of = dict(zip([*trials.enrol, *trials.test], np.concatenate([enrol_speaker, test_speaker]).tolist()))
    first = {}
    for file, speaker in of.items():
        first.setdefault(speaker, file)
    parts = {file: file.split("/")[:-1] for file in of}
    for depth in range(max(map(len, parts.values()))):
        folder = {file: "".join(part[depth : depth + 1]) for file, part in parts.items()}
        names = {speaker: folder[file] for speaker, file in first.items()}
        differ = len(set(names.values())) == len(names)
        if differ and all(folder[file] == names[speaker] for file, speaker in of.items()):
            return [names.get(speaker, "") for speaker in range(count)]
    return [first.get(speaker, "") for speaker in range(count)]


# ---- where it goes wrong ---------------------------------------------------------------------------------------------


def worst_trials(scores, label, count=WORST):
    """Positions of the non-targets with the highest and the targets with the lowest scores, worst first."""
    order = np.argsort(scores, kind="stable")
    return order[label[order] == 0][::-1][:count], order[label[order] == 1][:count]


class SpeakerErrors(NamedTuple):
    """How a speaker fares: EER in % at the speaker's own threshold; misses and false alarms in % at the list's."""

    speaker: int
    eer: float
    targets: int
    others: int
    misses: float
    false_alarms: float


def errors_by_speaker(scores, label, enrol_speaker, test_speaker, threshold):
    """SpeakerErrors of those who have trials of both kinds, highest EER first. All but the threshold (N,).

    A speaker's trials are the targets of the speaker, and the non-targets with the speaker on either side.
    """
    target, trial = label == 1, np.arange(len(scores))
    # Each trial once for every speaker in it, sorted by speaker.
    speaker = np.concatenate([enrol_speaker, test_speaker[~target]])
    trial = np.concatenate([trial, trial[~target]])
    order = np.argsort(speaker, kind="stable")
    numbers, starts = np.unique(speaker[order], return_index=True)
    found = []
    for number, own in zip(numbers.tolist(), np.split(trial[order], starts[1:])):
        same = target[own]
        if same.any() and not same.all():
            accepted = scores[own] >= threshold
            found.append(SpeakerErrors(
                number, equal_error_rate(scores[own], same)[0], int(same.sum()), int((~same).sum()),
                100 * float(1 - accepted[same].mean()), 100 * float(accepted[~same].mean()),
            ))  # fmt: skip
    return sorted(found, key=lambda errors: -errors.eer)


def errors_by_duration(scores, label, seconds):
    """EER of trials of like duration: [(from, to, targets, non-targets, EER in % or None)] for bins that hold trials.

    seconds (N,): the shorter side of each trial; nan leaves it out. None when one kind of trial is missing.
    """
    bins = np.searchsorted(DURATIONS, seconds, side="right") - 1
    found = []
    for place, (low, high) in enumerate(zip(DURATIONS[:-1].tolist(), DURATIONS[1:].tolist())):
        own = (bins == place) & ~np.isnan(seconds)
        targets, others = int(np.sum(label[own] == 1)), int(np.sum(label[own] == 0))
        if targets or others:
            eer = equal_error_rate(scores[own], label[own])[0] if targets and others else None
            found.append((low, high, targets, others, eer))
    return found


def durations(root, files):
    """Seconds of audio files under a folder, or in a pack of it, from their headers; nan for the unreadable: (N,)."""
    if (Path(root) / "pack.json").exists():
        pack = Pack(root)
        rows = pack.rows(files)
        length = np.where(rows >= 0, pack.length[rows], 0) / SAMPLE_RATE
        return np.where(length > 0, length, np.nan)

    def seconds(file):
        try:
            return soundfile.info(Path(root) / file).duration
        except (soundfile.LibsndfileError, OSError):
            return math.nan

    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # a network disk answers many questions at once
        found = pool.map(seconds, files)
        return np.array(list(progress_bar(iterable=found, total=len(files), desc="durations", unit="file", delay=2)))


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
    seen = {name for record in tested for name in record["lists"]}
    for name in sorted(seen, key=lambda name: (name == VALID, name)):
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
