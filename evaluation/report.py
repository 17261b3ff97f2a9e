"""One page about an experiment: its results, its training, and the trials it gets wrong.

report.html is self-contained, pictures included: it needs no network and can be mailed. The layout is in
evaluation/report.html.
"""

import concurrent.futures
import functools
import itertools
import json
import math
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from scipy.stats import norm

from corpora.audio import SAMPLE_RATE, UnreadableAudio
from corpora.lists import TrialList
from corpora.pack import open_source
from evaluation.intervals import det_band, speakers_of
from evaluation.plots import as_svg, bar_plot, course_plot, det_plot, histogram_plot
from evaluation.scoring import VALID, evaluated_models, read_history, read_scores
from tools import InputError, equal_error_rate, whole_file

WORST = 20  # so many trials of each kind, and speakers, are listed
DURATIONS = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, math.inf]  # edges of the bins, seconds
# Title, key in metrics.jsonl, unit.
COURSES = [("Loss", "loss", ""), ("Accuracy", "accuracy", "%"), ("Learning rate", "learning_rate", ""),
           ("Margin", "margin", "radians"), ("Throughput", "utterances_per_second", "utterances/s"),
           ("Waiting for data", "waiting_percent", "% of the time")]  # fmt: skip


def write_report(folder):
    """Write report.html into the folder of an experiment, from what is there; returns its path.

    folder: --save_path of a training (settings.json, metrics.jsonl) or an --eval (results.json), with its scores. Trial
    lists and audio are looked for where the settings say; the page says what is missing or has changed since.
    InputError if the folder holds no experiment.
    """
    folder = Path(folder)
    training, evaluation = read_json(folder / "settings.json"), read_json(folder / "results.json")
    content = training or evaluation
    if not content:
        raise InputError(f"{folder} has no settings.json and no results.json: it is not the folder of an experiment")
    history = read_history(folder / "metrics.jsonl") if training else []
    rows = result_rows(history, evaluation)
    results = {name: [row for row in rows if row.name == name] for name in dict.fromkeys(row.name for row in rows)}
    tested, errors = read_tested(folder, results, [each["settings"] for each in (training, evaluation) if each])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = template.get_template("report.html").render(
        title=folder.resolve().name, settings=content["settings"], content=content, history=history, results=results,
        training=training_pictures(history), det=det_pictures(tested), errors=errors,
        command=shlex.join(content["command"]), lists={name: look_at(each) for name, each in tested.items()},
        basename=os.path.basename, dumps=json.dumps,
    )  # fmt: skip
    with whole_file(folder / "report.html") as file:
        file.write(page.encode("utf-8", "backslashreplace"))  # the name of a file may be no text
    return folder / "report.html"


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


# ---- results and scores ----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the results; ``scored``: whether scores/<name>.txt can be of it, as of the last model, or an --eval."""

    model: str
    name: str
    result: dict
    scored: bool


def result_rows(history, evaluation):
    """Rows of the model chosen on held-out speakers, if any, the last model, its averages, and an --eval."""
    tested = [record for record in history if record["lists"]]
    valid = [each for each in evaluated_models(history) if VALID in each[2]]
    models = [min(valid, key=lambda each: each[2][VALID]["eer"])] if valid else []
    chosen = models[0][2] if valid else None
    if tested:
        last = {"model": tested[-1]["lists"], **tested[-1].get("averages", {})}
        models += [(tested[-1], kind, results) for kind, results in last.items() if results is not chosen]
    rows = []
    for record, kind, results in models:
        is_last, is_average = record is tested[-1], kind != "model"
        words = f"epoch {record['epoch']}" if record["epoch"] else "before training"
        words += f" ({kind})" * is_average + ", the last" * is_last + f", chosen on {VALID}" * (results is chosen)
        rows += [Row(words, *item, scored=is_last and not is_average) for item in results.items()]
    if evaluation:
        model = os.path.basename(evaluation["settings"]["initial_model"])
        rows += [Row(model, *item, scored=True) for item in evaluation["results"].items()]
    return sorted(rows, key=lambda row: row.name == VALID)


class Trials:
    """A trial list, its speakers' numbers ``enrol`` and ``test`` (N,), and where its audio is, ``root``."""

    def __init__(self, path, root):
        self.list, self.root = TrialList(path, "the trial list"), root
        self.enrol, self.test, _ = speakers_of(self.list)

    @functools.cached_property
    def speaker_names(self):
        """{number: name}: the folder that all files of a speaker share, or one of the files."""
        names = {}
        for side, files in ((self.enrol, self.list.enrol), (self.test, self.list.test)):
            for speaker, file in zip(side.tolist(), files):
                names[speaker] = os.path.commonpath([names.get(speaker, file), os.path.dirname(file)]) or file
        return names

    @functools.cached_property
    def seconds(self):
        """(N,) seconds of the shorter side of each trial, nan for the unreadable. InputError without the audio."""
        source = open_source(self.root, "the audio's folder")

        def seconds(file):
            try:
                with source.open(file) as audio:
                    return audio.length / SAMPLE_RATE
            except UnreadableAudio:
                return math.nan

        files = list({*self.list.enrol, *self.list.test})
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # a network disk answers many questions at once
            of = dict(zip(files, pool.map(seconds, files)))
        return np.minimum([of[file] for file in self.list.enrol], [of[file] for file in self.list.test])


class Tested(NamedTuple):
    """A row of the results with its trials and scores (N,)."""

    row: Row
    trials: Trials
    scores: np.ndarray
    eer: float
    threshold: float


def read_tested(folder, results, settings):
    """({name: Tested}, {name: error}) of all results with scores."""
    places = {Path(path).stem: (path, each["eval_path"]) for each in settings for path in each["eval_list"]}
    places[VALID] = folder / "scores" / f"{VALID}_trials.txt", settings[0]["train_path"]
    opened, tested, errors = {}, {}, {}
    for name, rows in results.items():
        try:
            stem = next(stem for stem in places if f"{name}.".startswith(f"{stem}."))  # a list, or <list>.as_norm
            trials = opened[stem] = opened.get(stem) or Trials(*places[stem])
            scores = read_scores(folder / "scores" / f"{name}.txt", trials.list)
            eer, threshold = equal_error_rate(scores, trials.list.label)
            row = min((row for row in rows if row.scored), key=lambda row: abs(row.result["eer"] - eer))
            if row.result["list_sha256"] != trials.list.sha256:
                raise InputError(f"{trials.list.path} has changed since it was evaluated")
            tested[name] = Tested(row, trials, scores, eer, threshold)
        except InputError as error:
            errors[name] = error
    return tested, errors


# ---- pictures: (title, words, address) -------------------------------------------------------------------------------


def training_pictures(history):
    trained = [record for record in history if record["epoch"] > 0]
    pictures = []
    for title, key, unit in COURSES if trained else []:
        points = [(record["epoch"], record[key]) for record in trained]
        picture = as_svg(course_plot, {"": points}, unit or title.lower())
        pictures.append((title, f"last {points[-1][1]:.4g} {unit}", picture))
    for name in dict.fromkeys(name for record in history for name in record["lists"]):
        curves, band = {}, []
        for record in (record for record in history if name in record["lists"]):
            for kind, results in {"as trained": record["lists"], **record.get("averages", {})}.items():
                curves.setdefault(kind, []).append((record["epoch"], results[name]["eer"]))
            band.append((record["epoch"], *record["lists"][name]["interval"]["eer"]))
        last = f"last {curves['as trained'][-1][1]:.2f} %"
        pictures.append((f"EER on {name}", last, as_svg(course_plot, curves, "EER (%)", band)))
    return pictures


def det_pictures(tested):
    """One of all lists, and of each list one with what the back-end makes of it."""
    bands, groups = {}, {}
    for name, each in tested.items():
        label = each.trials.list.label
        rates = norm.cdf(np.linspace(norm.ppf(min(0.5, max(1 / np.sum(label == 0), 1e-6))), norm.ppf(0.8), 80))
        bands[name] = rates, *det_band(each.scores, label, each.trials.enrol, each.trials.test, rates)
        groups.setdefault(each.trials, []).append(name)
    figures = {f"{names[0]} with the back-end": names for names in groups.values() if len(names) > 1}
    if len(groups) > 1 or not figures:
        figures = {"All lists": [names[0] for names in groups.values()], **figures}
    pictures = []
    for title, names in figures.items() if tested else []:
        curves = {name: (tested[name].scores, tested[name].trials.list.label) for name in names}
        pictures.append((title, "", as_svg(det_plot, curves, bands, size=(4.6, 4.4))))
    return pictures


# ---- where the errors are --------------------------------------------------------------------------------------------


def look_at(tested):
    """What the page shows of a scored list: pictures and tables."""
    row, trials, scores, eer, threshold = tested
    label, order = trials.list.label, np.argsort(scores, kind="stable")
    speakers = errors_by_speaker(scores, label, trials.enrol, trials.test, threshold)
    pictures = [("Scores", "", as_svg(histogram_plot, scores, label, row.result["thresholds"]))]
    if speakers:
        words = f"{len(speakers):,} speakers, worst first"
        pictures.append(("EER by speaker", "", as_svg(bar_plot, [each[1] for each in speakers], eer, words)))
    durations, note = [], ""
    try:
        durations = errors_by_duration(scores, label, trials.seconds)
        unknown = int(np.isnan(trials.seconds).sum())
        note = f"Without {unknown:,} trials whose audio could not be read in {trials.root}." if unknown else ""
        bars = [each[1] for each in durations], eer, "seconds of the shorter side", [each[0] for each in durations]
        pictures.append(("EER by duration", "", as_svg(bar_plot, *bars)))
    except InputError as error:
        note = f"No EER by duration: {error}."
    worst = {
        "highest scores of different speakers": order[label[order] == 0][::-1][:WORST],
        "lowest scores of the same speaker": order[label[order] == 1][:WORST],
    }
    fields = scores, trials.list.line_numbers, trials.list.enrol, trials.list.test
    return {
        "about": f"{row.model}: EER {eer:.2f} % at the threshold {threshold:.4f}.", "pictures": pictures,
        "speakers": [(trials.speaker_names[number], *errors) for number, *errors in speakers[:WORST]],
        "durations": durations, "note": note,
        "worst": {words: [[field[i] for field in fields] for i in places] for words, places in worst.items()},
    }  # fmt: skip


def errors_by_speaker(scores, label, enrol, test, threshold):
    """[(speaker, EER in %, misses in %, false alarms in %, targets, others)], highest EER first.

    Of those with trials of both kinds, which are the speaker's on either side; the EER at a threshold of the speaker's
    own, misses and false alarms at the list's. All but the threshold (N,).
    """
    found = []
    for speaker in np.union1d(enrol, test).tolist():
        own = (enrol == speaker) | (test == speaker)
        target, other = scores[own & (label == 1)], scores[own & (label == 0)]
        if len(target) and len(other):
            eer, _ = equal_error_rate(scores[own], label[own])
            misses, alarms = 100 * float(np.mean(target < threshold)), 100 * float(np.mean(other >= threshold))
            found.append((speaker, eer, misses, alarms, len(target), len(other)))
    return sorted(found, key=lambda errors: -errors[1])


def errors_by_duration(scores, label, seconds):
    """[(seconds in words, EER in % or None, targets, others)] of bins that hold trials; seconds (N,), nan: left out."""
    found = []
    for low, high in itertools.pairwise(DURATIONS):
        own = (low <= seconds) & (seconds < high)
        targets, others = int(np.sum(label[own] == 1)), int(np.sum(label[own] == 0))
        if targets or others:
            eer = equal_error_rate(scores[own], label[own])[0] if targets and others else None
            found.append((f"{low}-{high}" if high < math.inf else f"{low}+", eer, targets, others))
    return found
