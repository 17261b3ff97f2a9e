"""The page about an experiment says what the files say, in well-formed HTML, and goes on when some are amiss."""

import html.parser
import itertools
import json

import numpy as np
import pytest
import soundfile
from sklearn.metrics import roc_curve

from corpora.lists import TrialList
from evaluation import findings, report
from tools import InputError, equal_error_rate, read_history, sha256, write_scores

NASTY = 'O <i>&amp;"$x_$'  # the name of a list: HTML, an entity, and what matplotlib takes for mathematics
VOID = {"meta", "img"}
KNOWN = {"id", "class", "href", "src", "alt", "open", "lang", "charset", "name", "content", "colspan"}


class Page(html.parser.HTMLParser):
    """What a report says: ``text``; ``sections`` {heading: text}; ``tables`` {(heading, summary): rows of cells}."""

    def __init__(self, path):
        super().__init__()
        self.open, self.section, self.summary, self.words = [], "", "", []
        self.sections, self.tables, self.sources = {}, {}, []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        assert {name for name, _ in attributes} <= KNOWN
        self.sources += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.summary = ""
        if tag == "tr":
            self.tables.setdefault((self.section, self.summary), []).append([])
        if tag in ("td", "th"):
            self.tables[self.section, self.summary][-1].append("")
        if tag in ("h2", "summary"):
            self.heading = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "h2":
            self.section = self.heading
        if tag == "summary":
            self.summary = self.heading
        if tag == "details":
            self.summary = ""

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
            return
        self.words.append(data)
        if {"h2", "summary"} & set(self.open):
            self.heading += data
        if {"td", "th"} & set(self.open):
            cells = self.tables[self.section, self.summary][-1]
            cells[-1] = f"{cells[-1]} {data}".strip()
        self.sections[self.section] = f"{self.sections.get(self.section, '')} {data}"

    def table(self, section, summary):
        """The rows of the table under the one summary that contains these words, without its head."""
        (found,) = (rows for (place, words), rows in self.tables.items() if place == section and summary in words)
        return found[1:]


def result_of(scores, trials, **more):
    eer, threshold = equal_error_rate(scores, trials.label)
    return {
        "eer": eer, "thresholds": {"EER": threshold, "1%": threshold + 0.5, "0.1%": None}, "min_dcf_0.05": 0.4321,
        "min_dcf_0.01": 0.6543, "trials": len(trials), "utterances": 40, "list_sha256": sha256(trials.path),
        "seconds": 1.5, **more,
    }  # fmt: skip


def all_trials(files, seed, count):
    """A trial list of ``count`` pairs of files {speaker: files}, with scores: [(label, enrol, test, score)]."""
    random = np.random.default_rng(seed)
    pairs = list(itertools.combinations([(s, file) for s in files for file in files[s]], 2))
    chosen = [pairs[place] for place in random.choice(len(pairs), count, replace=False)]
    ability = dict(zip(files, random.normal(0, 0.5, len(files))))
    rows = [(int(a[0] == b[0]), a[1], b[1], 1.5 * (a[0] == b[0]) + ability[a[0]] + random.normal()) for a, b in chosen]
    return [(label, a, b, round(score, 1)) for label, a, b, score in rows]  # rounded: many ties


def write_list(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{label} {enrol} {test}\n" for label, enrol, test, _ in rows))
    return TrialList(path)


class MadeUp:
    """A training of three epochs with two lists and held-out speakers, written as trainSpeakerNet.py does."""

    def __init__(self, root):
        self.folder, self.audio = root / "exp <b>&1", root / "audio"
        random = np.random.default_rng(5)
        self.seconds, files = {}, {}
        for speaker in range(8):
            for take in range(5):
                file = f"wav/id<{speaker}>&amp;/{take}.wav"
                self.seconds[file] = round(float(random.uniform(0.5, 9)), 2)
                files.setdefault(speaker, []).append(file)
                (self.audio / file).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(self.audio / file, np.zeros(round(1000 * self.seconds[file])), 1000)
        self.rows = {NASTY: all_trials(files, 0, 500), "H": all_trials(files, 1, 200)}
        self.lists = {name: write_list(root / "lists" / f"{name}.txt", rows) for name, rows in self.rows.items()}
        self.scores = {name: np.array([row[3] for row in rows]) for name, rows in self.rows.items()}
        self.rows["valid"] = all_trials(files, 2, 150)
        self.lists["valid"] = write_list(self.folder / "scores" / "valid_trials.txt", self.rows["valid"])
        self.scores["valid"] = np.array([row[3] for row in self.rows["valid"]])
        for name, scores in self.scores.items():
            write_scores(self.folder / "scores" / f"{name}.txt", scores, self.lists[name])
        self.results = {name: result_of(self.scores[name], trials) for name, trials in self.lists.items()}
        del self.results["valid"]["list_sha256"]
        self.results[NASTY].update(speakers=8, interval={"eer": [12.345, 45.678], "min_dcf_0.05": [0.2, 0.8765]})
        self.history = [{"epoch": 0, "lists": {"H": {**self.results["H"], "eer": 49.0}}}]
        for epoch in (1, 2, 3):
            lists = {name: dict(result) for name, result in self.results.items()}
            if epoch < 3:
                lists["valid"]["eer"] *= 0.5 * epoch  # the first epoch is the chosen one
                lists["H"]["eer"] = 30.0 + epoch
            self.history.append({
                "epoch": epoch, "step": epoch, "loss": 9.0 - epoch, "accuracy": 1.0, "learning_rate": 0.1,
                "margin": 0.2, "utterances_per_second": 5, "waiting_percent": 0.1, "seconds": 900, "seconds_left": 1,
                "unreadable_files": 3, "lists": lists,
            })  # fmt: skip
        self.history[-1]["averages"] = {"ema": {"H": {**self.results["H"], "eer": 17.17}}}
        self.settings = {
            "C": 32, "train_list": "train.txt", "train_path": str(self.audio), "eval_path": str(self.audio),
            "eval_list": [str(self.lists[name].path) for name in (NASTY, "H")], "n_class": 77, "max_epoch": 5,
            "batch_size": 6, "num_frames": 200, "initial_model": "", "save_path": "<script>alert(1)</script>",
        }  # fmt: skip
        self.write()

    def write(self):
        content = {"settings": self.settings, "sha256": {"train.txt": "abc123"}, "versions": {"python": "3.99"},
                   "command": ["trainSpeakerNet.py", "--save_path", "a & <b>", "\udcff"]}  # fmt: skip
        (self.folder / "settings.json").write_text(json.dumps(content))
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.history))

    def page(self):
        return Page(report.write_report(self.folder))


PICTURES = ("course_picture", "det_picture", "histogram_picture", "speakers_picture", "durations_picture")


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    for name in PICTURES:  # drawing takes most of the time of a page
        monkeypatch.setattr(report, name, lambda *_, **__: "<svg/>")
    return MadeUp(tmp_path)


@pytest.fixture
def drawn(tmp_path):
    return MadeUp(tmp_path)


def eer_by_roc(scores, labels):
    """EER in % from scikit-learn's curve, by solving for the crossing on the piece where it lies."""
    false_alarm, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    gap = false_alarm - (1 - hit)  # rises along the curve
    return 100 * np.interp(0, gap, false_alarm)


def test_the_worst_trials_are_those_of_a_search_one_by_one(made_up):
    rows, page = made_up.rows[NASTY], made_up.page()
    for label, worse, summary in ((0, max, "different"), (1, min, "same")):
        left = [row for row in rows if row[0] == label]
        found = page.table(NASTY, f"scores of {'the ' * label}{summary} speaker")
        assert len(found) == 20
        for score, line, pair in found:
            assert float(score) == worse(row[3] for row in left)  # of equal scores any may come first
            row = rows[int(line) - 1]
            assert pair == f"{row[1]} {row[2]}" and float(score) == row[3]
            left.remove(row)


def test_a_speakers_error_rate_is_that_of_its_trials(made_up):
    rows, page = made_up.rows[NASTY], made_up.page()
    threshold = made_up.results[NASTY]["thresholds"]["EER"]
    expected = {}
    for number in range(8):
        name = f"id<{number}>&amp;"
        own = [row for row in rows if f"/{name}/" in row[1] or f"/{name}/" in row[2]]  # a target has it on both sides
        same, other = [row[3] for row in own if row[0]], [row[3] for row in own if not row[0]]
        eer = eer_by_roc(same + other, [1] * len(same) + [0] * len(other))
        misses = 100 * sum(score < threshold for score in same) / len(same)
        alarms = 100 * sum(score >= threshold for score in other) / len(other)
        expected[name] = f"{eer:.2f}", f"{misses:.2f}", f"{alarms:.2f}", str(len(same)), str(len(other))
    found = page.table(NASTY, "worst speakers")
    assert {name: tuple(numbers) for name, *numbers in found} == expected
    eers = [float(row[1]) for row in found]
    assert eers == sorted(eers, reverse=True) and eers[0] > eers[-1]


def test_speakers_without_both_kinds_of_trials_are_left_out():
    scores, label = np.array([0.9, 0.1, 0.8, 0.7]), np.array([1, 0, 0, 1])
    enrol, test = np.array([0, 0, 1, 2]), np.array([0, 1, 3, 2])  # 1 and 3 have no targets, 2 no non-targets
    (errors,) = findings.errors_by_speaker(scores, label, enrol, test, 0.9)
    assert (errors.speaker, errors.targets, errors.others) == (0, 1, 1)
    assert (errors.misses, errors.false_alarms) == (0, 0)  # who reaches the threshold is accepted


def test_errors_by_duration_are_those_of_the_shorter_side(made_up):
    edges = [0, 1, 2, 3, 4, 5, 6, 8, 10]
    expected = []
    for low, high in itertools.pairwise(edges):
        own = [row for row in made_up.rows[NASTY] if low <= min(made_up.seconds[f] for f in row[1:3]) < high]
        same = sum(row[0] for row in own)
        if own:
            eer = f"{eer_by_roc([row[3] for row in own], [row[0] for row in own]):.2f}" if 0 < same < len(own) else "-"
            expected.append([f"{low}-{high}", eer, str(same), str(len(own) - same)])
    assert len(expected) > 4
    assert made_up.page().table(NASTY, "shorter side") == expected


def test_trials_whose_audio_is_gone_are_counted(made_up):
    gone = made_up.rows["H"][0][1]
    (made_up.audio / gone).unlink()
    left = [row for row in made_up.rows["H"] if gone not in row]
    page = made_up.page()
    assert sum(int(same) + int(other) for *_, same, other in page.table("H", "shorter side")) == len(left)
    assert f"Without {len(made_up.rows['H']) - len(left)} trials whose audio" in page.sections["H"]


def test_results_are_those_on_record(made_up):
    page = made_up.page()
    text = [" | ".join(row) for row in page.tables["Results", ""]]
    assert text[0] == " | EER (%) | minDCF 0.05 | minDCF 0.01"
    eer = f"{made_up.results[NASTY]['eer']:.2f}"
    place = text.index(f"{NASTY} 500 trials, 8 speakers, 40 utterances")
    assert text[place + 1 : place + 3] == [
        f"{epoch} | {eer} 12.35 to 45.68 | 0.4321 0.200 to 0.876 | 0.6543"
        for epoch in ("epoch 1, chosen on valid", "epoch 3, the last")
    ]
    place = text.index("H 200 trials, 40 utterances")
    assert [line.split(" | ")[:2] for line in text[place + 1 : place + 4]] == [
        ["epoch 1, chosen on valid", "31.00"], ["epoch 3, the last", f"{made_up.results['H']['eer']:.2f}"],
        ["ema", "17.17"],
    ]  # fmt: skip
    lead = " ".join(page.sections[""].split())
    assert "C=32" in lead and "77 classes" in lead and "3 of 5 epochs" in lead
    assert f"epoch 1, chosen on valid: {eer} % on {NASTY} (95 % interval 12.35 to 45.68)" in lead
    assert "3 epochs took 0.8 hours" in page.text and "3 files could not be read" in page.text


def test_scores_are_told_of_the_model_that_they_are_of(made_up):
    """The chosen model has the same EER on this list, but its scores were written over."""
    scored = findings.ScoredList(findings.Experiment(made_up.folder), NASTY)
    assert scored.row.model == "epoch 3, the last"
    assert "epoch 3, the last" in made_up.page().sections[NASTY]


@pytest.mark.parametrize(
    "content", [{}, [], 5, {"settings": None}, {"settings": {"eval_list": None}}, {"settings": {"eval_list": [1]}},
                {"settings": {}, "results": []}, {"settings": {}, "results": {"H": {}}}, {"settings": {}, "sha256": 1}]
)  # fmt: skip
@pytest.mark.parametrize("file", ["settings.json", "results.json"])
def test_a_damaged_folder_gets_one_line(made_up, file, content):
    (made_up.folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{file} is not what trainSpeakerNet.py writes"):
        report.write_report(made_up.folder)


@pytest.mark.parametrize(
    "line", ["{}", "[]", "5", '{"epoch": 4, "lists": {"H": 3}}', '{"epoch": 4, "lists": {"H": {}}}']
)
def test_what_is_no_record_is_not_taken_for_one(made_up, line):
    file = made_up.folder / "metrics.jsonl"
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(InputError, match="line 5 is not the record of an epoch"):
        report.write_report(made_up.folder)


def test_a_record_cut_short_is_left_out(made_up):
    with open(made_up.folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lists"')
    assert read_history(made_up.folder / "metrics.jsonl") == made_up.history
    made_up.page()


def test_a_page_stands_alone_and_shows_names_as_they_are(drawn):
    page = drawn.page()
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in page.sources)
    assert sum(source.startswith("data:") for source in page.sources) == 6 + 3 + 1 + 3 * 3  # courses, DET, lists
    assert set(page.sections) >= {"Results", "Training", "Detection error trade-off", NASTY, "H", "valid", "Settings"}
    assert "exp <b>&1" in page.text and "<script>alert(1)</script>" in page.text
    assert "trainSpeakerNet.py --save_path 'a & <b>' '\\udcff'" in page.text
    assert dict(page.table("Settings", "Versions"))["python"] == "3.99"
    assert dict(page.table("Settings", "SHA-256"))["train.txt"] == "abc123"
    assert dict(page.table("Settings", "SHA-256"))["H"] == sha256(drawn.lists["H"].path)


def cut(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def other_scores(made_up, path):
    random = np.random.default_rng(9)
    write_scores(path, random.permutation(made_up.scores["H"]), made_up.lists["H"])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda made_up, scores, trials: scores.unlink(), "scores/H.txt is not there"),
        (lambda made_up, scores, trials: cut(scores), "scores/H.txt does not have the trials"),
        (lambda made_up, scores, trials: scores.write_text("x" + scores.read_text()), "scores/H.txt is damaged"),
        (lambda made_up, scores, trials: other_scores(made_up, scores), "that of none of the results"),
        (lambda made_up, scores, trials: trials.unlink(), "H.txt does not exist"),
        (lambda made_up, scores, trials: cut(trials), "H.txt has changed"),
        (lambda made_up, scores, trials: made_up.settings.update(eval_list=made_up.settings["eval_list"][:1]),
         "the settings name no trial list for H"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_said_and_the_rest_goes_on(made_up, damage, complaint):
    damage(made_up, made_up.folder / "scores" / "H.txt", made_up.lists["H"].path)
    made_up.write()
    page = made_up.page()
    assert complaint in page.sections["H"] and "Without H" in page.text
    assert not [key for key in page.tables if key[0] == "H"]
    assert len(page.table(NASTY, "worst speakers")) == 8
    assert page.table("valid", "worst speakers")


def test_audio_that_is_not_there_is_said(made_up):
    made_up.settings["eval_path"] = "/nowhere"
    made_up.write()
    page = made_up.page()
    assert "No EER by duration: the audio is not at /nowhere" in page.sections["H"]
    assert page.table("valid", "shorter side")  # of training speakers: another folder


def test_an_evaluation_with_a_back_end_is_reported(made_up):
    for name in ("settings.json", "metrics.jsonl"):
        (made_up.folder / name).unlink()
    normalised = made_up.scores["H"] * 3 + 2 * made_up.lists["H"].label
    write_scores(made_up.folder / "scores" / "H.as_norm.txt", normalised, made_up.lists["H"])
    results = {name: made_up.results[name] for name in ("H", NASTY)}
    results["H.as_norm"] = result_of(normalised, made_up.lists["H"], cohort="77 speakers", cllr=0.2468, min_cllr=0.1357)
    settings = {**made_up.settings, "initial_model": "/x/best.model"}
    (made_up.folder / "results.json").write_text(json.dumps({"settings": settings, "results": results}))
    page = made_up.page()
    text = [" | ".join(row) for row in page.tables["Results", ""]]
    assert text.index("H.as_norm 200 trials, 40 utterances, cohort: 77 speakers") < text.index(
        f"{NASTY} 500 trials, 8 speakers, 40 utterances"
    )
    assert any(line.startswith("best.model") and line.endswith("0.2468 | 0.1357") for line in text)
    assert len(page.table("H.as_norm", "worst speakers")) == 8
    assert "best.model, evaluated" in page.text and "Training" not in page.sections
    assert sum(source.startswith("data:") for source in page.sources) == 2 + 3 * 3


def test_a_run_that_was_never_evaluated_has_a_page(made_up):
    made_up.history = [{**record, "lists": {}, "averages": {}} for record in made_up.history[1:]]
    made_up.write()
    assert "Nothing is evaluated yet" in made_up.page().sections["Results"]
    made_up.history = []
    made_up.write()
    assert "No epoch is over yet" in made_up.page().sections["Training"]


def test_a_folder_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no settings\.json and no results\.json"):
        report.write_report(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is damaged"):
        report.write_report(tmp_path)


def test_speakers_are_named_by_the_folder_that_tells_them_apart(tmp_path):
    rows = [(1, "a/x/1.wav", "a/x/2.wav", 0), (1, "a/y/1.wav", "a/y/2.wav", 0), (0, "a/x/1.wav", "a/y/1.wav", 0)]
    enrol, test = np.array([1, 0, 1]), np.array([1, 0, 0])
    assert findings.speaker_names(write_list(tmp_path / "a.txt", rows), enrol, test, 2) == ["y", "x"]
    flat = [tuple(str(cell).replace("/", "") for cell in row) for row in rows]  # no folders at all
    assert findings.speaker_names(write_list(tmp_path / "b.txt", flat), enrol, test, 2) == ["ay1.wav", "ax1.wav"]


def test_contents_and_attributes_of_an_element_are_escaped():
    inner = report.tag("b", "a<b")
    found = report.tag("p", inner, "&", class_="x", title='"<')
    assert found == '<p class="x" title="&quot;&lt;"><b>a&lt;b</b>&amp;</p>'
