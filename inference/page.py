"""A page to try a model on (verify.py --page): what its buttons do, as methods of Page, and its layout in Gradio.

Gradio is optional: only ``import_gradio`` imports it. Results are drawn by page.html, which escapes all names.
"""

import base64
import contextlib
import io
import itertools
import os
import socket
import tempfile
import threading
import warnings
from pathlib import Path

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
                most = f"this page takes {MAX_MINUTES} minutes, the command line more"
                raise InputError(f"{file} has {minutes:.0f} minutes, {samples / 1e6:.0f} million samples: {most}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AudioWarning)
            return function(list(files)), [named(str(each.message)) for each in caught]
    except InputError as error:
        raise InputError(named(str(error))) from error


class Page:
    """What the buttons do: methods of files that return (result, remarks about the files), or raise InputError.

    gallery: path of the enrolled speakers, which need not exist yet. evaluation: as from ``scores_of``, or None.
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
        """The windows of a file that are not silent: (unit embeddings (N, D), start and end in seconds (N, 2),
        seconds of the file, {speaker: mean unit embedding (D,)} of the enrolled or {} for clusters).
        """
        speakers, scale = {}, np.sqrt(2) if self.encoder.system.crops else 1
        if against == ENROLLED:  # scoring vectors begin with those of whole utterances, to which windows compare
            means = {name: mean[: self.encoder.dimension] for name, (mean, _) in self._enrolled().speakers.items()}
            speakers = {name: scale * mean for name, mean in means.items()}
        (vectors, times), remarks = read(lambda files: self.encoder.embed_windows(files[0], WINDOW, STEP), file)
        with self.encoder.open(file) as audio:
            waveform = audio.read()
        parts = [waveform[start:end] for start, end in np.rint(times * SAMPLE_RATE).astype(int)]
        level = np.array([np.sqrt(np.mean(np.square(part))) for part in parts])
        audible = level > max(SILENCE, QUIET * level.max())
        if not audible.any():
            raise InputError(f"{Path(file).name} is silent.")
        vectors = vectors[audible] / np.linalg.norm(vectors[audible], axis=1, keepdims=True)
        return (vectors, times[audible], len(waveform) / SAMPLE_RATE, speakers), remarks

    def _enrolled(self):
        gallery = Gallery(self.gallery, self.encoder)  # read again: the command line may have enrolled somebody
        if not gallery.speakers:
            raise InputError("Nobody is enrolled yet: enrol speakers first (Who is it?).")
        return gallery

    # ---- for page.html -----------------------------------------------------------------------------------------------

    def speakers(self):
        """{name: number of recordings} of the gallery."""
        return {name: number for name, (_, number) in Gallery(self.gallery, self.encoder).speakers.items()}

    def error_rates(self, threshold):
        """In the model's evaluation: % of same-speaker trials rejected, of different-speaker trials accepted."""
        _, _, scores, labels = self.evaluation
        accepted = scores > threshold if self.encoder.system.above else scores >= threshold
        return 100 * (~accepted[labels == 1]).mean(), 100 * accepted[labels == 0].mean()

    def histograms(self):
        """{kind: 80 heights from 0 to 1} of the evaluation's scores from -1 to 1."""
        _, _, scores, labels = self.evaluation
        counts = [np.histogram(scores[labels == label], 80, (-1, 1))[0] for label in (0, 1)]
        return {kind: (each / each.max()).tolist() for kind, each in zip(("different", "same"), counts)}

    def rows(self, windows, threshold):
        """[(start, end, speaker, score)] of windows: the cosine with a speaker, or the mean one with a cluster."""
        vectors, times, _, enrolled = windows
        means = enrolled or clusters(vectors, threshold)
        names, scores = list(means), vectors @ np.stack(list(means.values())).T
        rows = [(*time, names[row.argmax()], float(row.max())) for time, row in zip(times.tolist(), scores)]
        if not enrolled:
            return rows
        known = [self.encoder.decide(score, threshold).same_speaker for *_, score in rows]
        return [row if each else (*row[:2], NOBODY, row[3]) for row, each in zip(rows, known)]

    def picture(self, windows):
        """The cosines of all pairs of windows, in time, as a PNG in base64; silent parts are transparent."""
        vectors, at = windows[0], np.rint(windows[1][:, 0] / STEP).astype(int)
        cosines = np.full((at.max() + 1, at.max() + 1), np.nan)
        cosines[np.ix_(at, at)] = vectors @ vectors.T
        imsave(file := io.BytesIO(), np.ma.masked_invalid(cosines), vmin=0, vmax=1, cmap="viridis", format="png")
        return base64.b64encode(file.getvalue()).decode()


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
    with contextlib.suppress(ImportError):
        import gradio

        if gradio.__version__.startswith("6."):
            return gradio
    raise InputError("--page needs Gradio 6, which is optional: python -m pip install 'gradio>=6,<7'")


def build(gr, page, pairs):
    """The gradio.Blocks of a Page. pairs: examples, as from ``example_pairs``."""
    private = {"api_visibility": "private"}

    def audio(label):
        return gr.Audio(sources=["upload", "microphone"], type="filepath", label=label, buttons=[], editable=False)

    def action(label, inputs, compute, draw, own=None, stays=False):
        """A button that computes and draws the result, and a slider that draws it again. Returns where.

        stays: what is drawn stays, without a slider, when another file is chosen.
        """
        start = UNSET if own is None else round(own, 4)

        def show(found, threshold):
            unmoved = own is not None and abs(threshold - own) < 1e-4  # the slider has four decimals
            return str(draw(page, *found, own if unmoved else threshold, own))

        def click(threshold, *given):
            try:
                found = compute(*given)
                return found, show(found, threshold)
            except (InputError, OSError) as error:
                return None, str(DRAW.refusal(str(error))) + (str(draw(page)) if stays else "")

        def move(threshold, found):
            return gr.skip() if found is None else show(found, threshold)

        button, state = gr.Button(label, variant="primary"), gr.State()
        slider = gr.Slider(-1, 1, start, step=0.0001, label="Threshold", buttons=[], visible=not stays)
        output = gr.HTML()
        # One click at a time: the warnings that are caught are those of the whole process.
        button.click(click, [slider, *inputs], [state, output], concurrency_id="encoder", **private)
        slider.change(move, [slider, state], output, show_progress="hidden", trigger_mode="always_last", **private)
        for each in [] if stays else inputs:  # the result is no longer that of what is shown
            each.change(lambda: (None, ""), None, [state, output], queue=False, show_progress="hidden", **private)
        return output

    with gr.Blocks(title="Speaker verification", delete_cache=(600, 3600), analytics_enabled=False) as blocks:
        gr.HTML(DRAW.head(page.model))
        with gr.Tab("Same speaker?"):
            with gr.Row():
                files = [audio("First recording"), audio("Second recording")]
            if pairs:
                gr.Examples(list(pairs.values()), files, example_labels=list(pairs), cache_examples=False, **private)
            action("Compare", files, page.compare, DRAW.comparison, page.encoder.threshold)
        with gr.Tab("Who is it?"), gr.Row():
            with gr.Column():
                inputs = [gr.Textbox(label="Name", max_length=60), audio("A recording of this speaker")]
                enrolled = action("Enrol", inputs, page.enrol, DRAW.enrolled, stays=True)
                blocks.load(lambda: str(DRAW.enrolled(page)), None, enrolled, **private)
            with gr.Column():
                action("Identify", [audio("Who speaks here?")], page.identify, DRAW.ranking, page.encoder.threshold)
        with gr.Tab("Who speaks when?"):
            inputs = [audio("A recording of several speakers")]
            inputs += [gr.Radio([CLUSTERS, ENROLLED], value=CLUSTERS, label="Compare its windows with")]
            action("Find", inputs, page.windows, DRAW.timeline, page.encoder.cosine_threshold)
        with gr.Tab("About"):
            gr.HTML(DRAW.about(page, MAX_MB, MAX_MINUTES))
    return blocks


def serve(encoder, model, evaluation, gallery, examples, host, port):
    """Serve the page until the process is interrupted; then all is removed that it wrote but a gallery with a name."""
    pairs = example_pairs(examples)
    with tempfile.TemporaryDirectory(prefix="page_", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = folder, os.path.join(folder, "uploads")  # before the import
        gr = import_gradio()
        theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page, host = Page(encoder, model, gallery or f"{folder}/gallery.npz", evaluation), host or "127.0.0.1"
        page.speakers()  # an error now if the gallery is of another model
        blocks = build(gr, page, pairs)
        try:
            _, url, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
                run_history=False, enable_monitoring=False, footer_links=[], max_file_size=MAX_MB * 2**20, theme=theme,
                css=str(DRAW.style()), allowed_paths=list(itertools.chain(*pairs.values())),
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            where = f"--host {host} --port {'7860 to 7959' if port is None else port}"
            raise InputError(f"{where}: the port is in use, or this is no address of this machine") from error
        print(f"{url.replace('localhost', socket.gethostname()) if host == '0.0.0.0' else url} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
