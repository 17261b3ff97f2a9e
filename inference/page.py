"""A page to try a model on (verify.py --page): what its buttons do, as methods of Page, and its layout in Gradio.

Gradio is optional: only ``import_gradio`` imports it. Results are drawn by page.html, which escapes all names.
"""

import base64
import csv
import io
import itertools
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from matplotlib.image import imsave
from sklearn.cluster import AgglomerativeClustering

from corpora.audio import SAMPLE_RATE, AudioFile, find_audio
from inference.encoder import AudioWarning
from inference.gallery import Gallery
from tools import InputError

MAX_MB, MAX_MINUTES = 50, 10  # of a recording
MAX_SAMPLES = MAX_MINUTES * 60 * 48000 * 2  # of all its channels: a FLAC may hold 5000 of them in a byte
WINDOW, STEP = 3.0, 1.0  # of the timeline, seconds
SILENCE, QUIET = 5e-4, 10 ** (-30 / 20)  # windows below this RMS, or this far below the loudest one, are left out
CLUSTERS, ENROLLED, NOBODY = "each other (clusters)", "the enrolled speakers", "nobody"
UNSET = 0.5  # where the slider begins for a model without a threshold
LOADER = jinja2.FileSystemLoader(Path(__file__).parent)
DRAW = jinja2.Environment(loader=LOADER, autoescape=True, trim_blocks=True).get_template("page.html").module


class Windows(NamedTuple):
    """The windows of a file that are not silent."""

    vectors: np.ndarray  # (N, D) unit embeddings
    times: np.ndarray  # (N, 2) start and end, seconds
    seconds: float  # of the file
    enrolled: dict | None  # {name: mean unit embedding (D,)} to compare them with; None: with each other


def read(function, *files):
    """(function(files), remarks) for recordings of the page; remarks and InputErrors call them by their names only."""

    def named(message):
        for file in files:
            message = message.replace(file, Path(file).name)
        return message

    if None in files:
        raise InputError("A recording is missing: upload or record one.")
    try:
        for file in files:
            with AudioFile(file) as audio:
                minutes, samples = audio.length / SAMPLE_RATE / 60, audio.file.frames * audio.file.channels
            if minutes > MAX_MINUTES or samples > MAX_SAMPLES:
                most = f"this page takes {MAX_MINUTES} minutes of stereo at 48 kHz, the command line more"
                raise InputError(f"{file} has {minutes:.0f} minutes, {samples / 1e6:.0f} million samples: {most}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AudioWarning)
            return function(list(files)), [named(str(each.message)) for each in caught]
    except InputError as error:
        raise InputError(named(str(error))) from error


class Page:
    """What the buttons do -> (result, remarks about the recordings), and that as HTML. Errors are InputErrors.

    gallery: the file of the enrolled speakers, which may not exist yet. evaluation: as from ``scores_of``, or None.
    """

    def __init__(self, encoder, model, gallery, evaluation=None):
        self.encoder, self.model, self.gallery, self.evaluation = encoder, model, gallery, evaluation

    def compare(self, first, second):
        """The score of two files, as by ``SpeakerEncoder.verify``."""
        (a, b), remarks = read(self.encoder.scoring_vectors, first, second)
        return self.encoder.decide(a @ b).score, remarks

    def enrol(self, name, file):
        """Add a file to a speaker of the gallery: (name, number of the speaker's recordings)."""
        if not (name := (name or "").strip()[:60]):
            raise InputError("The speaker's name is missing.")
        vectors, remarks = read(self.encoder.scoring_vectors, file)
        return (name, Gallery(self.gallery, self.encoder).enrol(name, list(vectors))), remarks

    def identify(self, file):
        """[(score, name)] of a file against all enrolled speakers, highest first."""
        gallery = self._enrolled()
        (vector,), remarks = read(self.encoder.scoring_vectors, file)
        return gallery.identify(vector), remarks

    def windows(self, file, against=CLUSTERS):
        """The Windows of a file."""
        enrolled, encoder = None, self.encoder
        if against == ENROLLED:  # scoring vectors begin with those of whole utterances, to which windows compare
            speakers, scale = self._enrolled().speakers, np.sqrt(2) if encoder.system.crops else 1
            enrolled = {name: scale * mean[: encoder.dimension] for name, (mean, _) in speakers.items()}
        (vectors, times), remarks = read(lambda files: encoder.embed_windows(files[0], WINDOW, STEP), file)
        with AudioFile(file, encoder.channel) as audio:
            waveform = audio.read()
        parts = [waveform[start:end] for start, end in np.rint(times * SAMPLE_RATE).astype(int)]
        level = np.array([np.sqrt(np.mean(np.square(part))) for part in parts])
        audible = level > max(SILENCE, QUIET * level.max())
        if not audible.any():
            raise InputError(f"{Path(file).name} is silent.")
        vectors = vectors[audible] / np.linalg.norm(vectors[audible], axis=1, keepdims=True)
        return Windows(vectors, times[audible], len(waveform) / SAMPLE_RATE, enrolled), remarks

    def _enrolled(self):
        gallery = Gallery(self.gallery, self.encoder)  # read again: the command line may have enrolled somebody
        if not gallery.speakers:
            raise InputError("Nobody is enrolled yet: enrol speakers first (Who is it?).")
        return gallery

    def speakers(self, windows, threshold):
        """[(speaker, score)] of the Windows: the cosine with an enrolled speaker, or the mean one with a cluster."""
        means = windows.enrolled or clusters(windows.vectors, threshold)
        names, scores = list(means), windows.vectors @ np.stack(list(means.values())).T
        best = [(names[i], score) for i, score in zip(scores.argmax(axis=1), scores.max(axis=1).tolist())]
        if not windows.enrolled:
            return best
        return [(name if self.encoder.decide(s, threshold).same_speaker else NOBODY, s) for name, s in best]

    def show_comparison(self, found, threshold):
        (score, remarks), told = found, self._threshold(threshold, self.encoder.threshold)
        curves, rates = [], None
        if self.evaluation:
            _, _, scores, labels = self.evaluation
            accepted = scores > told["value"] if self.encoder.system.above else scores >= told["value"]
            rates = 100 * accepted[labels == 0].mean(), 100 * (~accepted[labels == 1]).mean()
            curves = [(name, outline(scores[labels == label])) for label, name in enumerate(("different", "same"))]
        same = self.encoder.decide(score, told["value"]).same_speaker
        return DRAW.comparison(score, same, told, curves, rates, self.evaluation, remarks)

    def show_enrolled(self, found=(None, ()), _=None):
        return DRAW.enrolled(*found, Gallery(self.gallery, self.encoder).speakers)

    def show_ranking(self, found, threshold):
        (ranking, remarks), told = found, self._threshold(threshold, self.encoder.threshold)
        known = self.encoder.decide(ranking[0][0], told["value"]).same_speaker
        return DRAW.ranking(ranking, known, told, remarks)

    def show_timeline(self, found, threshold):
        (windows, remarks), told = found, self._threshold(threshold, self.encoder.cosine_threshold)
        spoken = self.speakers(windows, told["value"])
        rows = [(*times, *each) for times, each in zip(windows.times.tolist(), spoken)]
        names = sorted(dict(spoken), key=NOBODY.__eq__)  # in the order in which they speak, nobody last
        lanes = {name: [row for row in rows if row[2] == name] for name in names}
        csv.writer(table := io.StringIO()).writerows([("start", "end", "speaker", "score"), *rows])
        drawn = picture(windows), table.getvalue()
        return DRAW.timeline(lanes, NOBODY, rows, windows.seconds, STEP, told, remarks, *drawn)

    def _threshold(self, value, own):
        """The slider has four decimals: where it is at the model's own threshold, that is taken."""
        value = own if own is not None and abs(value - own) < 1e-4 else value
        return {"value": value, "own": own, "origin": self.encoder.origin}


def clusters(vectors, threshold):
    """{"Speaker 1": mean of the windows' unit embeddings (D,), ...}: merged while their mean cosine is above it.

    A cluster without three windows in a row is left out if there are others: it is one of changes of speaker.
    """
    if len(vectors) == 1:
        return {"Speaker 1": vectors[0]}
    settings = {"metric": "cosine", "linkage": "average", "distance_threshold": 1 - threshold}
    labels = AgglomerativeClustering(None, **settings).fit_predict(vectors)
    turns = [(label, len(list(windows))) for label, windows in itertools.groupby(labels)]
    kept = dict.fromkeys(label for label, length in turns if length >= WINDOW / STEP) or dict.fromkeys(labels)
    return {f"Speaker {i}": vectors[labels == label].mean(axis=0) for i, label in enumerate(kept, 1)}


def outline(scores):
    """The histogram of scores as the points of an SVG polygon, x from -1 to 1, y from 1 up to 0."""
    counts, edges = np.histogram(scores, 80, (-1, 1))
    heights = [0, *np.repeat(counts / max(counts.max(), 1), 2), 0]
    return " ".join(f"{x:.3f},{1 - y:.3f}" for x, y in zip(np.repeat(edges, 2), heights))


def picture(windows):
    """The cosines of all pairs of windows, in time, as a PNG in base64; silent parts are transparent."""
    at = np.rint(windows.times[:, 0] / STEP).astype(int)
    cosines = np.full((at.max() + 1, at.max() + 1), np.nan)
    cosines[np.ix_(at, at)] = windows.vectors @ windows.vectors.T
    imsave(file := io.BytesIO(), np.ma.masked_invalid(cosines), vmin=0, vmax=1, cmap="viridis", format="png")
    return base64.b64encode(file.getvalue()).decode()


def example_pairs(folder):
    """{label: [file, file]} of the first three speakers' folders in a folder: each with itself and with the next."""
    named = sorted((str(path.relative_to(folder)), str(path)) for path in find_audio(folder))
    chosen = [list(files) for _, files in itertools.groupby(named, lambda each: Path(each[0]).parts[0])][:3]
    pairs = [(files[0], files[-1]) for files in chosen]
    pairs += [(files[0], others[-1]) for files, others in itertools.pairwise(chosen)]
    return {f"{first} + {second}": [a, b] for (first, a), (second, b) in pairs}


def import_gradio():
    """The module gradio, told to send nothing. InputError without a version that fits."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        gradio = None
    if not gradio or not gradio.__version__.startswith("6."):
        raise InputError("--page needs Gradio 6, which is optional: python -m pip install 'gradio>=6,<7'")
    return gradio


def build(gr, page, pairs):
    """The gradio.Blocks of a Page. pairs: examples, as from ``example_pairs``."""
    private = {"api_visibility": "private"}

    def audio(label):
        return gr.Audio(sources=["upload", "microphone"], type="filepath", label=label, buttons=[], editable=False)

    def action(label, inputs, compute, show, own=None, **slider):
        """A button that computes and shows the result, and a slider that shows it again. Returns where."""
        button, state = gr.Button(label, variant="primary"), gr.State()
        value = UNSET if own is None else round(own, 4)
        slider = gr.Slider(-1, 1, value, step=0.0001, label="Threshold", buttons=[], **slider)

        def click(threshold, *given):
            try:
                found = compute(*given)
                return found, str(show(found, threshold))
            except (InputError, OSError) as error:
                return None, str(DRAW.refusal(str(error)))

        def move(threshold, found):
            return gr.skip() if found is None else str(show(found, threshold))

        output = gr.HTML()  # one click at a time: caught warnings are the whole process's
        button.click(click, [slider, *inputs], [state, output], concurrency_id="encoder", **private)
        slider.change(move, [slider, state], output, show_progress="hidden", trigger_mode="always_last", **private)
        return output

    with gr.Blocks(title="Speaker verification", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        gr.HTML(DRAW.head(page.model))
        with gr.Tab("Same speaker?"):
            with gr.Row():
                files = [audio("First recording"), audio("Second recording")]
            if pairs:
                gr.Examples(list(pairs.values()), files, example_labels=list(pairs), cache_examples=False, **private)
            action("Compare", files, page.compare, page.show_comparison, page.encoder.threshold)
        with gr.Tab("Who is it?"), gr.Row():
            with gr.Column():
                inputs = [gr.Textbox(label="Name", max_length=60), audio("A recording of this speaker")]
                enrolled = action("Enrol", inputs, page.enrol, page.show_enrolled, visible=False)
                blocks.load(lambda: str(page.show_enrolled()), None, enrolled, **private)
            with gr.Column():
                inputs = [audio("Who speaks here?")]
                action("Identify", inputs, page.identify, page.show_ranking, page.encoder.threshold)
        with gr.Tab("Who speaks when?"):
            inputs = [audio("A recording of several speakers")]
            inputs += [gr.Radio([CLUSTERS, ENROLLED], value=CLUSTERS, label="Compare its windows with")]
            action("Find", inputs, page.windows, page.show_timeline, page.encoder.cosine_threshold)
        with gr.Tab("About"):
            gr.HTML(DRAW.about(page.encoder, page.model, page.evaluation, MAX_MB, MAX_MINUTES))
    return blocks


def serve(gr, encoder, model, evaluation, gallery, examples, host, port):
    """Serve the page until the process is interrupted; then all is removed that it wrote but a gallery with a name."""
    with tempfile.TemporaryDirectory(prefix="page_", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = folder, os.path.join(folder, "uploads")
        page, pairs = Page(encoder, model, gallery or f"{folder}/gallery.npz", evaluation), example_pairs(examples)
        blocks = build(gr, page, pairs)
        theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        _, url, _ = blocks.launch(
            server_name=host or "127.0.0.1", server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            run_history=False, enable_monitoring=False, footer_links=[], max_file_size=MAX_MB * 2**20, theme=theme,
            css=str(DRAW.style()), allowed_paths=list(itertools.chain(*pairs.values())),
        )  # fmt: skip
        print(f"{url} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
