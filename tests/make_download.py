"""A small download of VoxCeleb, MUSAN and RIRS_NOISES, generated: the archives' names and layouts are the real ones.

VoxCeleb2 dev is 8 speakers in m4a (made with ffmpeg), VoxCeleb1 test 6 in wav and dev 1, MUSAN and RIRS_NOISES a few
files. The trial lists have as many trials of each kind as Vox1-O cleaned.
"""

import hashlib
import io
import itertools
import re
import subprocess
import tarfile
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile
from conftest import voice

TRAIN = {f"id{number:05d}": 80 * 1.13**i for i, number in enumerate((12, 15, 16, 18, 19, 20, 21, 22))}  # Hz
TEST = {f"id{10270 + i}": 85 * 1.16**i for i in range(6)}
TARGETS, NONTARGETS = 18802, 18809  # of Vox1-O cleaned


def wav(waveform, rate=16000):
    """The bytes of a wav file."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, "PCM_16", format="WAV")
    return file.getvalue()


def m4a(waveform):
    """The bytes of an m4a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["ffmpeg", "-loglevel", "error", "-i", "-", "-c:a", "aac", "a.m4a"]
        subprocess.run(command, cwd=folder, input=wav(waveform), check=True)
        return Path(folder, "a.m4a").read_bytes()


def zip_of(content):
    """{name: bytes} as a zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, each in content.items():
            archive.writestr(name, each)
    return file.getvalue()


def tar_of(content):
    """{name: bytes} as a tar.gz file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, each in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(each)
            archive.addfile(info, io.BytesIO(each))
    return file.getvalue()


def voxceleb2(random):
    """dev/aac/<speaker>/<video>/<utterance>.m4a, two utterances of each of two videos of a speaker."""
    content = {}
    for (speaker, pitch), video, utterance in itertools.product(TRAIN.items(), "AB", (1, 2)):
        waveform = voice(pitch, random.uniform(2.1, 2.8), len(content))
        content[f"dev/aac/{speaker}/{video * 11}/{utterance:05d}.m4a"] = m4a(waveform)
    return content


def voxceleb1():
    """wav/<speaker>/<video>/<utterance>.wav: 80 utterances of 1 s of each speaker, for enough same-speaker trials."""
    content = {}
    for (speaker, pitch), video, utterance in itertools.product(TEST.items(), "ABCDEFGH", range(1, 11)):
        waveform = voice(pitch, 1.0, [int(pitch), ord(video), utterance])
        content[f"wav/{speaker}/{video * 11}/{utterance:05d}.wav"] = wav(waveform)
    return content


def musan(random):
    return {f"musan/{category}/made-up/{category}-made-up-{number:04d}.wav": wav(0.1 * random.standard_normal(99_000))
            for category, number in itertools.product(("noise", "music", "speech"), range(3))}  # fmt: skip


def rirs_noises(random):
    """Of simulated_rirs, of the real ones, which have eight channels, and of the noises that lie among them."""
    content = {}
    for number in range(1, 5):
        response = 0.1 * random.standard_normal(8000) * np.exp(-np.arange(8000) / 1500)
        response[100 * number] = 0.9
        content[f"RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-{number:05d}.wav"] = wav(response)
    content["RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_a.wav"] = wav(np.tile(response[:, None], 8))
    content["RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav"] = wav(0.1 * random.standard_normal(48000))
    return content


def trial_lines(random, files):
    """Trials among files <speaker>/...: each pair once."""
    speaker = np.array([file.split("/")[0] for file in files])
    a, b = np.triu_indices(len(files), 1)
    same = speaker[a] == speaker[b]
    kinds = (same, TARGETS), (~same, NONTARGETS)
    chosen = [random.permutation(np.flatnonzero(kind))[:count] for kind, count in kinds]
    return [f"{int(same[i])} {files[a[i]]} {files[b[i]]}\n" for i in np.sort(np.concatenate(chosen))]


def make_download():
    """The archives and the trial lists, {name: bytes}."""
    random = np.random.default_rng(0)
    test, train = voxceleb1(), zip_of(voxceleb2(random))
    dev = zip_of({"wav/id10001/AA/00001.wav": wav(voice(100, 1.0, 0))})
    files = {"vox1_test_wav.zip": zip_of(test), "musan.tar.gz": tar_of(musan(random)),
             "rirs_noises.zip": zip_of(rirs_noises(random))}  # fmt: skip
    files |= in_parts("vox1_dev_wav", dev, 4) | in_parts("vox2_dev_aac", train, 8)
    trials = "".join(trial_lines(random, [file.removeprefix("wav/") for file in test])).encode()
    lists = ("veri_test", "list_test_all", "list_test_hard")
    return files | {f"{name}{number}.txt": trials for name in lists for number in ("", "2")}


def in_parts(name, archive, number):
    size = -(-len(archive) // number)
    return {f"{name}_parta{'abcdefgh'[i]}": archive[i * size : (i + 1) * size] for i in range(number)}


class Site:
    """A web server on 127.0.0.1 with the files ``content`` ({name: bytes}); its ways can be changed while it runs."""

    def __init__(self, content):
        self.content, self.requests = content, []  # of each request: name, first byte or None, Authorization
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"site": self}))
        self.server.handle_error = lambda *_: None  # the client may hang up
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.behave()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def behave(self):
        self.status, self.ranges, self.type, self.authorization = 200, True, "application/octet-stream", None
        self.encoding = "identity"
        self.announce, self.write = (lambda size: size), (lambda file, body: file.write(body))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, name, authorization = self.site, re.split("[/=]", self.path)[-1], self.headers["Authorization"]
        first = int(self.headers.get("Range", "bytes=0-")[6:-1]) if site.ranges else 0
        site.requests.append((name, first, authorization))
        content, status = site.content.get(name, b""), 206 if site.ranges else site.status
        size = site.announce(len(content))
        if site.authorization not in (None, authorization) or not content or first >= len(content):
            status = 404 if not content else 416 if first else 401
        self.send_response(status)
        if size:
            self.send_header("Content-Length", size - first if status < 400 else 0)
        self.send_header("Content-Type", site.type)
        self.send_header("Content-Encoding", site.encoding)
        self.send_header("ETag", hashlib.md5(content).hexdigest())
        if status == 206 and size:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()
        if status < 400:
            site.write(self.wfile, content[first:])

    def log_message(self, *_):
        pass
