"""The page to try a model on: its numbers against the encoder itself, and the page in a real browser."""

import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, sklearn_eer, voice
from test_model import small_network

from corpora.lists import TrialList
from evaluation.report import scores_of
from evaluation.scoring import compute_metrics, score_trials, write_scores
from inference.encoder import SpeakerEncoder
from inference.gallery import Gallery
from inference.page import CLUSTERS, DRAW, ENROLLED, NOBODY, Page, clusters, example_pairs, import_gradio
from tools import InputError, save_checkpoint

NASTY = '"<img src=x onerror="window.ran=1">, Jr.'


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The folder of a run: a model of random weights with its evaluation; and a recording of two "speakers"."""
    folder, network, trials = tmp_path_factory.mktemp("run"), small_network(), TrialList(corpus / "trials.txt")
    scores = score_trials(trials, SpeakerEncoder(network).embed_for_scoring([*trials.enrol, *trials.test], corpus / "eval"))
    for name in ("model", "scores"):
        (folder / name).mkdir()
    write_scores(folder / "scores/trials.txt", scores, trials)
    (folder / "settings.json").write_text(json.dumps({"settings": {"eval_list": [str(corpus / "trials.txt")]}}))
    save_checkpoint(folder / "model/model_0001.model", {
        "kind": "model", "settings": {"C": network.C}, "speakers": ["a", "b"],
        "weights": {f"speaker_encoder.{key}": value for key, value in network.state_dict().items()},
        "scores": {"trials": compute_metrics(scores, trials) | {"cosine_threshold": 0.99}},
    })  # fmt: skip
    turns = [voice(90, 6, 0), np.zeros(80000, np.float32), voice(220, 6.5, 1)]
    soundfile.write(folder / "long.wav", np.concatenate(turns), 16000)
    return folder


@pytest.fixture
def page(run, tmp_path):
    encoder = SpeakerEncoder.from_checkpoint(run)
    return Page(encoder, "some model", tmp_path / "people.npz", scores_of(encoder, run))


@pytest.fixture
def files(corpus):
    return [str(path) for path in sorted((corpus / "eval").rglob("*.wav"))]


def test_scores_are_those_of_the_encoder(page, files, run):
    encoder = page.encoder
    assert page.compare(files[0], files[5]) == (encoder.verify(files[0], files[5]).score, [])
    for name, file in (("Anna", files[0]), ("Anna", files[1]), (NASTY, files[4])):
        page.enrol(name, file)
    vector = encoder.scoring_vectors([files[6]])[0]
    assert page.identify(files[6])[0] == Gallery(page.gallery, encoder).identify(vector)
    assert page.speakers() == {"Anna": 2, NASTY: 1}
    windows, _ = page.windows(str(run / "long.wav"), ENROLLED)
    rows = page.rows(windows, -1)
    enrolled = {"Anna": files[:2], NASTY: files[4:5]}
    embeddings, times = encoder.embed_windows(run / "long.wav", 3, 1)
    audible = [i for i, (start, end) in enumerate(times) if not (start >= 6 and end <= 11)]  # five seconds of zeros
    assert [row[:2] for row in rows] == [tuple(times[i]) for i in audible]
    for i, (_, _, name, score) in zip(audible, rows):
        means = {who: np.mean([encoder.compare(embeddings[i], encoder.embed(file)).score for file in theirs])
                 for who, theirs in enrolled.items()}  # fmt: skip
        assert (name, score) == (max(means, key=means.get), pytest.approx(max(means.values()), abs=1e-5))
    assert {row[2] for row in page.rows(windows, 1)} == {NOBODY}


def test_the_table_and_what_is_shown(page, files, run):
    page.enrol(NASTY, files[0])
    found = page.windows(str(run / "long.wav"), ENROLLED)
    shown = DRAW.timeline(page, *found, -1, 0.99)
    link = urllib.parse.unquote(re.search('href="data:text/csv,([^"]*)"', shown)[1])
    rows = [(float(a), float(b), name, float(c)) for a, b, name, c in list(csv.reader(io.StringIO(link)))[1:]]
    assert rows == page.rows(found[0], -1)
    for each in (shown, DRAW.enrolled(page), DRAW.ranking(page, *page.identify(files[0]), 0.5, None), DRAW.refusal(NASTY)):
        assert "&lt;img" in each and "<img src=x" not in each
    threshold = page.encoder.threshold
    assert "Same speaker" in DRAW.comparison(page, threshold, [], threshold, threshold)
    assert "Different speakers" in DRAW.comparison(page, threshold - 1e-6, [], threshold, threshold)
    eer = page.evaluation[1]["eer"]
    assert f"{eer:.2f} %" in DRAW.about(page, 50, 10) and eer == pytest.approx(sklearn_eer(*page.evaluation[2:]))
    assert np.mean(page.error_rates(threshold)) == pytest.approx(eer, abs=1.5)  # 24 and 96 trials: steps of 4 and 1 %


def test_clusters_leave_out_changes_of_speaker():
    axes = np.eye(4)
    spoken = [axes[0]] * 5 + [axes[3]] * 2 + [axes[1]] * 4 + [axes[0]] * 3
    found = clusters(np.array(spoken) + np.random.default_rng(0).normal(0, 0.01, (14, 4)), 0.5)
    assert list(found) == ["Speaker 1", "Speaker 2"]
    assert found["Speaker 1"] @ axes[0] > 0.9 and found["Speaker 2"] @ axes[1] > 0.9
    assert list(clusters(axes[:1], 0.5)) == ["Speaker 1"] and len(clusters(axes, 0.5)) == 4


def hostile_files(folder):
    """{name: (content, what the page says)}; the pickle would write a file called ran."""

    class Runs:
        def __reduce__(self):
            return Path.touch, (folder / "ran",)

    archive, flac, hours = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", bytes(10**7))
    soundfile.write(flac, np.random.default_rng(0).uniform(-1, 1, 16000), 16000, format="FLAC")
    header = bytearray(flac.getvalue())
    header[21:26] = (int.from_bytes(header[21:26], "big") + (2 * 3600 * 16000 - 16000)).to_bytes(5, "big")  # its samples
    soundfile.write(hours, np.zeros(2 * 3600 * 1000), 1000, "PCM_U8", format="WAV")
    return {
        "a.wav": (pickle.dumps(Runs()), "a.wav cannot be read as audio"),
        "bomb.wav": (archive.getvalue(), "bomb.wav cannot be read as audio"),
        "claims.flac": (bytes(header), "claims.flac has 120 minutes"),
        "hours.wav": (hours.getvalue(), "hours.wav has 120 minutes"),
    }


def test_refusals_name_the_file_without_its_folder(page, tmp_path):
    for name, (content, said) in hostile_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        for button in (lambda file: page.compare(file, file), lambda file: page.enrol("A", file), page.windows):
            with pytest.raises(InputError, match=f"^{said}"):
                button(str(tmp_path / name))
    soundfile.write(tmp_path / "short.wav", voice(90, 0.2, 0), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(48000), 16000)
    score, remarks = page.compare(str(tmp_path / "short.wav"), str(tmp_path / "silent.wav"))
    assert [remark.split(" is ")[0] for remark in remarks] == ["short.wav", "silent.wav"]
    for button, said in ((lambda: page.windows(str(tmp_path / "silent.wav")), "silent.wav is silent"),
                         (lambda: page.compare(None, "x"), "missing"), (lambda: page.enrol(" ", "x"), "name"),
                         (lambda: page.identify("x"), "Nobody is enrolled")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            button()
    assert not (tmp_path / "ran").exists() and not page.gallery.exists()


def test_without_gradio(monkeypatch, corpus):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match="pip install 'gradio"):
        import_gradio()
    assert len(example_pairs(corpus / "eval")) == 5 and example_pairs(corpus / "nowhere") == {}


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(run, corpus, tmp_path_factory):
    """(address of the page, the folder in which it runs, with its temporary files in tmp/)."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -r tests/requirements.txt")
    folder = tmp_path_factory.mktemp("served")
    (folder / "tmp").mkdir()
    command = [sys.executable, ROOT / "verify.py", "--page", "--model", run, "--examples", corpus / "eval"]
    settings = {"cwd": folder, "env": {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings) as process:
        yield process.stdout.readline().split()[0], folder
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
    assert sorted(folder.rglob("*")) == [folder / "tmp"]  # nothing is left


@pytest.fixture
def browse(served):
    """browse(width) -> the page in Chromium, which may load nothing from elsewhere."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    elsewhere = []

    def open_page(width):
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.on("request", lambda request: elsewhere.append(request.url))
        view.goto(served[0])
        view.get_by_role("button", name="Compare").wait_for(timeout=60000)
        return view

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield open_page
        browser.close()
    assert [url for url in elsewhere if not url.startswith((served[0], "data:", "blob:"))] == []


def give(view, field, file):
    """Upload a file (a path, or a dict of Playwright's) to the numbered recording of the open tab."""
    block = view.get_by_role("tabpanel").filter(visible=True).locator(".block", has=view.locator("[data-testid=block-label]"))
    block = block.nth(field)
    if block.get_by_label("Clear").count():
        block.get_by_label("Clear").click()
    with view.expect_response("**/upload*"):
        block.locator("input[type=file]").set_input_files(file)
    block.get_by_label("Clear").wait_for()


def press(view, button, shown):
    view.get_by_role("button", name=button).click()
    found = view.get_by_role("tabpanel").filter(visible=True).locator(shown)
    found.first.wait_for(timeout=60000)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browse, page, files, run, width):
    view, encoder = browse(width), page.encoder
    give(view, 0, files[0])
    give(view, 1, files[9])
    verdict = press(view, "Compare", ".verdict")
    score, same, _ = encoder.verify(files[0], files[9])
    words = {True: "Same speaker", False: "Different speakers"}
    assert verdict.inner_text().split("\n") == [words[same], f"score {score:.4f}"]
    view.get_by_label("number input for Threshold").filter(visible=True).fill("1" if same else "-1")
    verdict.get_by_text(words[not same]).wait_for()
    view.get_by_role("tab", name="Who is it?").click()
    for name, file in (("Anna", files[0]), (NASTY, files[4])):
        view.get_by_label("Name").fill(name)
        give(view, 0, file)
        press(view, "Enrol", f"text={name} is enrolled")
    give(view, 1, files[1])
    rows = press(view, "Identify", ".rows")
    vectors = encoder.scoring_vectors([files[0], files[4], files[1]])
    assert [f"{score:.4f}" for score in sorted(vectors[:2] @ vectors[2], reverse=True)] == rows.locator(".number").all_inner_texts()
    view.get_by_role("tab", name="Who speaks when?").click()
    give(view, 0, run / "long.wav")
    press(view, "Find", ".lane")
    with view.expect_download() as download:
        view.get_by_text("Download the table").click()
    table = list(csv.reader(Path(download.value.path()).read_text().splitlines()))[1:]
    expected = page.rows(page.windows(str(run / "long.wav"), CLUSTERS)[0], encoder.cosine_threshold)
    assert [(float(a), float(b), name) for a, b, name, _ in table] == [row[:3] for row in expected]
    view.get_by_role("tab", name="About").click()
    view.get_by_text(f"{page.evaluation[1]['eer']:.2f} %").wait_for()
    assert view.evaluate("[window.ran, document.documentElement.scrollWidth]") == [None, width]


@pytest.mark.slow
def test_hostile_uploads(browse, served, files, tmp_path):
    view = browse(1280)
    give(view, 0, files[0])
    for name, (content, said) in hostile_files(tmp_path).items():
        give(view, 1, {"name": name, "mimeType": "audio/wav", "buffer": content})
        press(view, "Compare", f"text={said}")
    with open(tmp_path / "large.wav", "wb") as large:
        large.truncate(51 * 2**20)
