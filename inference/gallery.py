"""A gallery of enrolled speakers, for ``verify.py --enrol`` and ``--identify``."""

import hashlib
from pathlib import Path

import numpy as np
from filelock import FileLock  # a requirement of torch

from tools import InputError, load_arrays, whole_file


class Gallery:
    """Enrolled speakers with the mean of each one's scoring vectors, in an .npz file that may not exist yet.

    The score of an utterance against a speaker is the mean of its scores against that speaker's utterances, so a
    threshold for pairs of files applies here too. ``speakers``: {name: (mean vector (V,) float32, utterances)}.
    File: ``names`` (N,), ``vectors`` (N, V) float32, ``counts`` (N,) utterances of each, ``model`` (the encoder's
    fingerprint, and that of a subtracted mean). InputError for a file that is not a gallery, or is of another model.
    """

    def __init__(self, path, encoder, must_exist=False):
        self.path, self.model = Path(path), encoder.fingerprint()
        if encoder.mean is not None:
            self.model += f" less {hashlib.sha256(encoder.mean.numpy()).hexdigest()}"
        if must_exist and not self.path.exists():
            raise InputError(f"--gallery {path} does not exist: enrol speakers first, with --enrol")
        self.speakers = self._read() if self.path.exists() else {}

    def _read(self):
        arrays = load_arrays(self.path, "--gallery", "a gallery")
        if not {"names", "vectors", "counts", "model"} <= arrays.keys():
            raise InputError(f"--gallery {self.path} is not a gallery: names, vectors, counts or model is missing")
        if str(arrays["model"]) != self.model:
            what = "was made with another model, another --mean or none: the scores would be meaningless"
            raise InputError(f"--gallery {self.path} {what}")
        return dict(zip(arrays["names"].tolist(), zip(arrays["vectors"], arrays["counts"].tolist())))

    def enrol(self, name, vectors):
        """Add scoring vectors (M, V) to a new or known speaker; returns the speaker's number of utterances.

        Several processes may enrol at once. OSError if the file cannot be written; then nothing has changed.
        """
        new = np.stack(vectors)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            speakers = self._read() if self.path.exists() else {}  # another process may have enrolled since
            mean, count = speakers.get(name, (np.float32(0), 0))
            total = count + len(new)
            speakers[name] = (mean * count + new.sum(axis=0, dtype=np.float32)) / total, total
            means, counts = zip(*speakers.values())
            with whole_file(self.path) as file:
                np.savez(file, names=np.array(list(speakers)), vectors=np.stack(means), counts=np.array(counts),
                         model=np.array(self.model))  # fmt: skip
            self.speakers = speakers
        return total

    def identify(self, vector):
        """[(score, name)] of a scoring vector (V,) against all speakers, highest first."""
        vectors = np.stack([mean for mean, _ in self.speakers.values()])
        return sorted(zip((vectors @ vector).tolist(), self.speakers), reverse=True)
