"""The page about an experiment: well-formed, self-contained, escaped, its numbers those of independent computations."""

import html.parser
import itertools
import json

import numpy as np
import pytest

from corpora.lists import TrialList
from evaluation.report import write_report
from evaluation.scoring import compute_metrics, write_scores
from tools import InputError

NASTY = 'O <i>&amp;"$x_$'  # the name of a list: HTML, an entity, and what matplotlib takes for mathematics
SPEAKERS = [f"id<{number}>&amp;" for number in range(6)]


class Page(html.parser.HTMLParser):
    """``text``; ``tables`` {(heading, summary): rows of cells}; ``sources`` of pictures and links."""

    def __init__(self, path):
        super().__init__()
        self.open, self.section, self.summary, self.text, self.tables, self.sources = [], "", "", "", {}, []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("h2", "summary"):
            self.section, self.summary = ("", "") if tag == "h2" else (self.section, "")
        if tag == "tr":
            self.tables.setdefault((self.section, self.summary), []).append([])
        if tag in ("td", "th"):
            self.tables[self.section, self.summary][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.section += data if "h2" in self.open else ""
        self.summary += data if "summary" in self.open else ""
        if {"td", "th"} & set(self.open):
            cells = self.tables[self.section, self.summary][-1]
            cells[-1] = " ".join([*cells[-1].split(), *data.split()])
        self.text += data

    def table(self, section, summary=""):
        """The rows under the one summary that contains these words, without the head."""
        (found,) = (rows for (place, words), rows in self.tables.items() if place == section and summary in words)
        return found[1:]


class TrainedExperiment:
    """A training of three epochs with a list and held-out speakers, written as trainSpeakerNet.py does."""

    def __init__(self, root):
        self.folder = root / "exp <b>&1"
        random = np.random.default_rng(5)
        files = [f"{speaker}/{take}.wav" for speaker in SPEAKERS for take in range(5)]
        self.trials, self.scores, results = {}, {}, {}
        (self.folder / "scores").mkdir(parents=True)
        paths = {NASTY: root / f"{NASTY}.txt", "valid": self.folder / "scores" / "valid_trials.txt"}
        for name, path in paths.items():
            pairs = random.permutation(list(itertools.combinations(files, 2)))[:300].tolist()
            label = np.array([int(a.split("/")[0] == b.split("/")[0]) for a, b in pairs])
            trials = TrialList.of(path, label, *zip(*pairs))
            path.write_text(trials.text())
            self.trials[name], self.scores[name] = trials, np.round(1.5 * label + random.normal(size=300), 1)  # ties
            write_scores(self.folder / "scores" / f"{name}.txt", self.scores[name], trials)
            results[name] = compute_metrics(self.scores[name], trials)
        first = {NASTY: {**results[NASTY], "eer": 17.17}, "valid": {**results["valid"], "eer": 1.25}}
        record = {"loss": 3.5, "accuracy": 1.0, "learning_rate": 0.1, "margin": 0.2, "utterances_per_second": 5,
                  "waiting_percent": 0.1, "seconds": 1800, "unreadable_files": 3}  # fmt: skip
        self.history = [{"epoch": 0, "lists": {}}, {**record, "epoch": 1, "lists": first},
                        {**record, "epoch": 2, "lists": results, "averages": {"average": results}}]  # fmt: skip
        self.settings = {
            "C": 32, "train_list": "a/train.txt", "eval_list": [str(paths[NASTY])], "n_class": 77,
            "max_epoch": 5, "batch_size": 6, "num_frames": 200,
            "initial_model": "", "save_path": "<script>alert(1)</script>",
        }  # fmt: skip
        self.content = {"settings": self.settings, "sha256": {}, "versions": {}, "command": ["a & <b>", "\udcff"]}

    def page(self):
        (self.folder / "settings.json").write_text(json.dumps(self.content))
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.history))
        return Page(write_report(self.folder))

    def rows(self):
        trials = self.trials[NASTY]
        return list(zip(self.scores[NASTY].tolist(), trials.label.tolist(), trials.enrol, trials.test))


@pytest.fixture
def experiment(tmp_path):
    return TrainedExperiment(tmp_path)


def test_the_page_is_self_contained_and_escaped(experiment):
    page = experiment.page()
    assert {source.split(",")[0] for source in page.sources if source[0] != "#"} == {"data:image/svg+xml;base64"}
    assert sum(source.startswith("data:") for source in page.sources) == 2  # training, DET
    assert "exp <b>&1" in page.text and "<script>alert(1)</script>" in page.text
    assert "'a & <b>' '\\udcff'" in page.text
    assert ["n_class", "77"] in page.table("Settings", "Settings") and "3 files could not be read" in page.text
    assert "C=32 trained on train.txt (77 classes) for 2 of" in page.text and "1.00 hours" in page.text


def test_results_are_those_on_record(experiment):
    result = experiment.history[-1]["lists"][NASTY]
    head, chosen, last, average, *_ = experiment.page().table("Results")
    low, high = result["interval"]["eer"]
    assert head == [f"{NASTY} 300 trials, 6 speakers, 30 utterances"]
    assert chosen[0] == "epoch 1, best on valid" and chosen[1].startswith("17.17 ")
    assert last[:2] == ["epoch 2, the last", f"{result['eer']:.2f} {low:.2f} to {high:.2f}"]
    assert last[3].startswith(f"{result['min_dcf_0.01']:.4f} ") and average[0] == "epoch 2 (average), the last"


def test_the_worst_trials_are_those_of_a_search_one_by_one(experiment):
    page = experiment.page()
    for label, worse, summary in ((0, max, "different"), (1, min, "lowest")):
        left = [row for row in experiment.rows() if row[1] == label]
        found = page.table(NASTY, summary)
        assert len(found) == 20
        for pair, score, line in found:
            assert float(score) == worse(row[0] for row in left)  # of equal scores any may come first
            row = experiment.rows()[int(line) - 1]
            assert pair == f"{row[2]} {row[3]}" and float(score) == row[0]
            left.remove(row)


def test_what_is_missing_is_said_and_the_rest_goes_on(experiment):
    (experiment.folder / "scores" / "valid.txt").unlink()
    page = experiment.page()
    assert "No scores: " in page.text
    assert page.table(NASTY, "lowest")
    path = experiment.trials[NASTY].path
    path.write_text(path.read_text().replace("\n0 ", "\n1 ", 1))
    assert "has changed since it was evaluated" in experiment.page().text


def test_an_evaluation_and_a_run_that_was_never_evaluated(experiment):
    experiment.history = []
    assert "No evaluation yet" in experiment.page().text
    (experiment.folder / "settings.json").unlink()
    scores, trials = experiment.scores[NASTY], experiment.trials[NASTY]
    results = {NASTY: compute_metrics(scores, trials)}
    results[f"{NASTY}.calibrated"] = {**results[NASTY], "cohort": "77 speakers", "cllr": 0.2468, "min_cllr": 0.1357}
    write_scores(experiment.folder / "scores" / f"{NASTY}.calibrated.txt", scores, trials)
    experiment.settings["initial_model"] = "/x/best.model"
    (experiment.folder / "results.json").write_text(json.dumps({**experiment.content, "results": results}))
    page = Page(write_report(experiment.folder))
    assert "best.model, evaluated" in page.text and "cohort: 77 speakers" in page.text
    assert page.table("Results")[-1][-2:] == ["0.2468", "0.1357"]
    assert sum(source.startswith("data:") for source in page.sources) == 1
    assert (experiment.folder / "report.html").read_text().count("<strong>") == 1  # the back-end's are in the table
    (experiment.folder / "results.json").unlink()
    with pytest.raises(InputError, match=r"no settings\.json and no results\.json"):
        write_report(experiment.folder)
