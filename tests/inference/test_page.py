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
from evaluation.records import scores_of
from evaluation.scoring import compute_metrics, score_trials, write_scores
from inference.encoder import SpeakerEncoder
from inference.gallery import Gallery
from inference.page import DRAW, ENROLLED, NOBODY, Page, clusters, import_gradio
from tools import InputError, save_checkpoint

NASTY = '"<img src=x onerror="window.ran=1">, Jr.'


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The folder of a run with a model of random weights and its evaluation, and a recording of two "speakers"."""
    folder, network, trials = tmp_path_factory.mktemp("run"), small_network(), TrialList(corpus / "trials.txt")
    embedded = SpeakerEncoder(network).embed_for_scoring([*trials.enrol, *trials.test], corpus / "eval")
    scores = score_trials(trials, embedded)
    write_scores(folder / "scores/trials.txt", scores, trials)
    (folder / "settings.json").write_text(json.dumps({"settings": {"eval_list": [str(corpus / "trials.txt")]}}))
    (folder / "model").mkdir()
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
    encoder, enrolled = page.encoder, {"Anna": files[:2], NASTY: files[4:5]}
    assert page.compare(files[0], files[5]) == (encoder.verify(files[0], files[5]).score, [])
    for name, theirs in enrolled.items():
        for file in theirs:
            page.enrol(name, file)
    (vector,) = encoder.scoring_vectors([files[6]])
    assert page.identify(files[6])[0] == Gallery(page.gallery, encoder).identify(vector)
    found, _ = page.windows(str(run / "long.wav"), ENROLLED)
    embeddings, times = encoder.embed_windows(run / "long.wav", 3, 1)
    spoken = [i for i, (start, end) in enumerate(times) if start < 6 or end > 11]  # between them there are zeros
    for i, (*time, name, score) in zip(spoken, rows := page.rows(found, -1)):
        means = {who: np.mean([encoder.compare(embeddings[i], encoder.embed(file)).score for file in theirs])
                 for who, theirs in enrolled.items()}  # fmt: skip
        assert (time, name, score) == (list(times[i]), max(means, key=means.get), pytest.approx(max(means.values())))
    assert len(rows) == len(spoken) and {row[2] for row in page.rows(found, 1)} == {NOBODY}


def test_what_is_shown(page, files, run):
    page.enrol(NASTY, files[0])
    found = page.windows(str(run / "long.wav"), ENROLLED)
    ranked, threshold, eer = page.identify(files[0]), page.encoder.threshold, page.evaluation[1]["eer"]
    timeline = DRAW.timeline(page, *found, -1, 0.99)
    table = csv.reader(io.StringIO(urllib.parse.unquote(re.search('href="data:text/csv,([^"]*)"', timeline)[1])))
    assert [(float(a), float(b), name, float(c)) for a, b, name, c in list(table)[1:]] == page.rows(found[0], -1)
    for each in (timeline, DRAW.enrolled(page), DRAW.ranking(page, *ranked, 0.5, None), DRAW.refusal(NASTY)):
        assert "&lt;img" in each and "<img src=x" not in each
    for score, words in ((threshold, "Same speaker"), (threshold - 1e-6, "Different speakers")):
        assert words in DRAW.comparison(page, score, [], threshold, threshold)
    assert f"{eer:.2f} %" in DRAW.about(page, 50, 10) and eer == pytest.approx(sklearn_eer(*page.evaluation[2:]))
    with pytest.raises(InputError, match="no scores of this model"):
        scores_of(SpeakerEncoder(small_network(1)), run)
    assert np.mean(page.error_rates(threshold)) == pytest.approx(eer, abs=1.5)  # of 24 and 96 trials


def test_clusters_leave_out_changes_of_speaker():
    a, b, _, between = axes = np.eye(4)
    found = clusters(np.array([a] * 5 + [between] * 2 + [b] * 4 + [a] * 3) + 0.01, 0.5)
    assert list(found) == ["Speaker 1", "Speaker 2"] and found["Speaker 1"] @ a > 0.9 < found["Speaker 2"] @ b
    assert len(clusters(axes[:1], 0.5)) == 1 and len(clusters(axes, 0.5)) == 4


def hostile_files(folder):
    """{name: (content, what the page says of it)}; a pickle that is run makes a file called ran."""
    runs, archive, claims, hours = type("Runs", (), {}), io.BytesIO(), io.BytesIO(), io.BytesIO()
    runs.__reduce__ = lambda self: (Path.touch, (folder / "ran",))
    globals()["Runs"] = runs
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("zeros", bytes(10**7))
    soundfile.write(claims, np.random.default_rng(0).uniform(-1, 1, 16000), 16000, format="FLAC")
    flac = bytearray(claims.getvalue())
    flac[21:26] = (int.from_bytes(flac[21:26], "big") + 7199 * 16000).to_bytes(5, "big")  # the number of its samples
    soundfile.write(hours, np.zeros(7200 * 1000), 1000, "PCM_U8", format="WAV")
    return {
        "a.wav": (pickle.dumps(runs()), "a.wav cannot be read as audio"),
        "bomb.wav": (archive.getvalue(), "bomb.wav cannot be read as audio"),
        "claims.flac": (bytes(flac), "claims.flac has 120 minutes"),
        "hours.wav": (hours.getvalue(), "hours.wav has 120 minutes"),
    }


def test_refusals_and_remarks(page, tmp_path, monkeypatch):
    for name, (content, said) in hostile_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        for button in (lambda file: page.compare(file, file), lambda file: page.enrol("A", file), page.windows):
            with pytest.raises(InputError, match=f"^{said}"):  # without its folder
                button(str(tmp_path / name))
    short, silent = str(tmp_path / "short.wav"), str(tmp_path / "silent.wav")
    soundfile.write(short, voice(90, 0.2, 0), 16000)
    soundfile.write(silent, np.zeros(48000), 16000)
    assert [each.split(" is ")[0] for each in page.compare(short, short)[1]] == ["short.wav", "short.wav"]
    monkeypatch.setitem(sys.modules, "gradio", None)
    for button, said in ((lambda: page.windows(silent), "^silent.wav is silent"), (import_gradio, "pip install"),
                         (lambda: page.compare(short, silent), "^silent.wav is silent"),
                         (lambda: page.compare(None, short), "missing"), (lambda: page.enrol(" ", short), "name"),
                         (lambda: page.identify(short), "Nobody is enrolled")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            button()
    assert not (tmp_path / "ran").exists() and not page.gallery.exists()


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(run, corpus, tmp_path_factory):
    """Chromium, the page's address, and the folder in which it runs, with temporary files in tmp/."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -r tests/requirements.txt")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, as gradio")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("served")
    (folder / "tmp").mkdir()
    command = [sys.executable, ROOT / "verify.py", "--page", "--model", run, "--examples", corpus / "eval"]
    settings = {"cwd": folder, "env": {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **settings) as server:
        url = server.stdout.readline().split()[0]
        with api.sync_playwright() as playwright:
            chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            yield chrome, url, folder
            chrome.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 128 + signal.SIGINT
    assert list(folder.rglob("*")) == [folder / "tmp"]  # nothing is left, and nothing was written elsewhere


def give(view, field, file):
    """Upload a file (a path, or what Playwright takes for one) to a recording of the open tab, by its number."""
    block = view.locator(".block:visible", has=view.locator("[data-testid=block-label]")).nth(field)
    if block.get_by_label("Clear").count():
        block.get_by_label("Clear").click()
    block.locator("input[type=file]").set_input_files(file)
    block.get_by_label("Clear").wait_for()


def press(view, button, shown):
    view.get_by_role("button", name=button).click()
    found = view.locator(shown).filter(visible=True)
    found.first.wait_for(timeout=60000)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browser, page, files, run, tmp_path, width):
    (chrome, url, folder), encoder, loaded = browser, page.encoder, []
    view = chrome.new_page(viewport={"width": width, "height": 900})
    view.on("request", lambda request: loaded.append(request.url))
    view.goto(url)
    give(view, 0, files[0])
    for name, (content, said) in hostile_files(tmp_path).items() if width > 390 else ():
        give(view, 1, {"name": name, "mimeType": "audio/wav", "buffer": content})
        press(view, "Compare", f"text={said}")
    give(view, 1, {"name": f"{NASTY}.wav", "mimeType": "audio/wav", "buffer": b"text"})
    press(view, "Compare", "text=Jr..wav cannot be read as audio")
    upload = {"name": "../../../../../escaped.wav", "mimeType": "audio/wav", "buffer": b"text"}
    assert view.request.post(f"{url}gradio_api/upload", multipart={"files": upload}).ok
    give(view, 1, files[9])
    verdict = press(view, "Compare", ".verdict")
    score, same, _ = encoder.verify(files[0], files[9])
    words = "Different speakers", "Same speaker"
    assert verdict.inner_text().split("\n") == [words[same], f"score {score:.4f}"]
    view.get_by_label("number input for Threshold").filter(visible=True).fill("1" if same else "-1")
    verdict.get_by_text(words[not same]).wait_for()
    give(view, 1, files[4])  # of this one nothing has been said
    verdict.first.wait_for(state="hidden")
    view.get_by_role("tab", name="Who is it?").click()
    for name, file in (("Anna", files[0]), (NASTY, files[4])):
        view.get_by_label("Name").fill(name)
        give(view, 0, file)
        view.get_by_role("button", name="Enrol").click()
        view.get_by_text(f"{name} is enrolled").wait_for(timeout=60000)
    give(view, 1, files[1])
    numbers = press(view, "Identify", ".rows .number").all_inner_texts()
    vectors = encoder.scoring_vectors([files[0], files[4], files[1]])
    assert numbers == [f"{score:.4f}" for score in sorted(vectors[:2] @ vectors[2], reverse=True)]
    view.get_by_role("tab", name="Who speaks when?").click()
    give(view, 0, run / "long.wav")
    numbers = press(view, "Find", ".table td:nth-child(4)").all_inner_texts()
    rows = page.rows(page.windows(str(run / "long.wav"))[0], encoder.cosine_threshold)
    assert numbers == [f"{row[3]:.4f}" for row in rows]
    with open(tmp_path / "large.wav", "wb") as large:
        large.truncate(51 << 20)
    view.get_by_label("Clear").filter(visible=True).click()
    view.locator(".block:visible input[type=file]").set_input_files(tmp_path / "large.wav")
    view.get_by_text("exceed the maximum allowed size").first.wait_for()
    view.get_by_role("tab", name="About").click()
    view.get_by_text(f"{page.evaluation[1]['eer']:.2f} %").wait_for()
    assert view.evaluate("[window.ran, document.documentElement.scrollWidth]") == [None, width]
    assert [each for each in loaded if not each.startswith((url, "data:", "blob:"))] == []
    assert {path.parts[len(folder.parts)] for path in folder.rglob("*")} == {"tmp"} and not (tmp_path / "ran").exists()
