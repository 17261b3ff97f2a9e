"""Feed every reader broken files, by the ten thousand: none may crash, hang, run code, or fill the memory.

    python tests/fuzz.py 20000                  so many cases, shared among the readers
    python tests/fuzz.py 5000 pack --seed 7     of readers whose names contain "pack", another seed

A case is a nasty file (tests/nasty.py) or a valid one with some bytes changed; which bytes, depends on the seed, the
reader and the number of the case. A reader either reads it or refuses it with an InputError of one line. Each reader
works in a process of its own, so that even one that dies or never comes back is told in the table.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from typing import NamedTuple

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import nasty
import numpy as np
import torch
from published import HYPERPARAMS, pyannote_shapes, random_state, speechbrain_shapes, taoruijie_shapes, wespeaker_shapes

from corpora.audio import AudioFile, Folder
from corpora.lists import TrainingList, TrialList, audio_of, check_files
from corpora.pack import open_source, write_pack
from evaluation.backend import read_cohort
from evaluation.scoring import read_history, read_scores
from inference.checkpoints import load_pretrained
from inference.encoder import SpeakerEncoder
from inference.gallery import Gallery
from tools import InputError, RunError, load_checkpoint

HANG = 60  # seconds that no case may take
MEMORY = 100  # MB that no case may take, beyond ten times its size


# ---- readers ---------------------------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """How files of one kind are read. A case is {name: bytes}; ``main`` is the file that a lone content goes to."""

    main: str
    read: object  # function (folder, whose files those are)
    seeds: object  # function () -> cases that are read without complaint
    nasty: object  # function () -> {name: case or content of ``main``}
    words: tuple = ()  # that mean something in such a file


def tiny_encoder():
    """An encoder of few weights, with a threshold."""
    from model import ECAPA_TDNN

    torch.manual_seed(0)
    return SpeakerEncoder(ECAPA_TDNN(C=8, aggregation=24, attention=8, bottleneck=8).eval())


ENCODER = tiny_encoder()
TRIALS = TrialList.of("trials.txt", [1, 0, 1, 0], ["a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav"], ["c.wav"] * 4)


def in_place(folder):
    """A folder of the files that the lists of the cases name, beside a file that is none of their business."""
    root = folder.parent / "root"
    if not root.exists():
        root.mkdir()
        for number in range(4):
            (root / f"s{number % 2}").mkdir(exist_ok=True)
            (root / f"s{number % 2}/{number}.wav").touch()
        (folder.parent / "secret.wav").touch()
        os.mkfifo(root / "pipe.wav")
    return Folder(root)


def read_list(kind):
    def read(folder):
        listing, source = kind(folder / "list.txt"), in_place(folder)
        check_files(listing, source, "--train_path")
        files = listing.files if kind is TrainingList else [*listing.enrol, *listing.test]
        stay_inside(source.root, [source.name(file) for file in files])

    return read


def stay_inside(root, files):
    """AssertionError if one of the files is not under the folder, links followed."""
    inside = os.path.realpath(root) + os.sep
    for file in files:
        assert os.path.realpath(file).startswith(inside), f"{file} is outside"


def read_embed_list(folder):
    root = in_place(folder).root
    files = audio_of(folder / "list.txt", root)
    stay_inside(root, [file for file in files if os.path.isfile(file)])


def read_sound(folder):
    path = folder / "a.wav"
    for channel in (None, 0):
        with AudioFile(path, channel) as file:
            for wave in (file.read(file.length // 3, 1000, "int16"), file.read(0, min(file.length, 100_000))):
                assert np.isfinite(wave).all()
            if file.length < 10_000_000:
                assert len(file.read()) == file.length


def read_pack(folder):
    if (folder / "packing.json").exists():  # begun, and to be continued
        source, begun = in_place(folder), folder / "packing.json"
        begun.write_bytes(begun.read_bytes().replace(b'"?"', json.dumps(str(source.root)).encode()))
        with contextlib.suppress(RunError):  # nothing in it that can be read
            write_pack(folder, "speech", source, ["s0/0.wav"], threads=1)
        return
    pack = open_source(folder, "--train_path")
    for file in pack.find():
        with pack.open(file) as packed:
            assert len(packed.read()) == packed.length
            assert len(packed.read(0, 400, "int16")) == 400
    assert pack.missing(["a" * 5000, "\0", ""]) == ["a" * 5000, "\0", ""] and pack.missing([]) == []


def read_model(name, system=None):
    def read(folder):
        encoder_of = load_pretrained(folder / name, system)
        encoder = SpeakerEncoder(encoder_of.network, "cpu", encoder_of)
        encoder.embed_batch(torch.zeros(1, 8000))
        if encoder.classifier is not None and encoder.speakers is not None:
            encoder.classify(sound_file(folder))
        f"{encoder.threshold} {encoder.thresholds} {encoder.listing} {encoder.origin} {encoder.held_out}"

    return read


def sound_file(folder):
    path = folder.parent / "sound.wav"
    if not path.exists():
        path.write_bytes(nasty.sound(8000))
    return path


def read_gallery(folder):
    Gallery(folder / "g.npz", ENCODER).identify(np.ones(ENCODER.vector_size, np.float32))


def model_content():
    """A model of ours, small enough to be read in milliseconds."""
    weights = {f"speaker_encoder.{key}": tensor for key, tensor in ENCODER.network.state_dict().items()}
    return {
        "kind": "model",
        "settings": {"C": 8, "s": 30.0},
        "weights": {**weights, "speaker_loss.weight": torch.ones(3, 192)},
        "speakers": ["a", "b", "c"],
        "valid_speakers": ["d"],
        "scores": {"o": {"thresholds": {"EER": 0.5}}},
    }


def state_content():
    weights = {"speaker_encoder.conv1.weight": torch.ones(3, 4, 5), "speaker_loss.weight": torch.ones(3, 4)}
    return {
        **model_content(),
        "kind": "training state",
        "weights": weights,
        "optimizer": {"state": {}, "param_groups": [{}]},
        "epoch": 3,
        "step": 2,
        "sums": [1.0],
        "train_list_sha256": "0" * 64,
    }


def gallery_arrays():
    vectors = np.random.default_rng(0).standard_normal((3, ENCODER.vector_size)).astype(np.float32)
    return {
        "names": np.array(["anna", "bo", "c"]),
        "vectors": vectors,
        "counts": np.array([1, 2, 3]),
        "model": np.array(ENCODER.fingerprint()),
    }


def cohort_arrays():
    embeddings = np.random.default_rng(0).standard_normal((4, 192)).astype(np.float32)
    return {
        "embeddings": embeddings,
        "speakers": np.array(["a", "b", "a", "c"]),
        "model": np.array(ENCODER.fingerprint()),
    }


SOUNDS = (
    {},
    {"form": "FLAC"},
    {"form": "OGG", "subtype": "VORBIS"},
    {"form": "MP3", "subtype": "MPEG_LAYER_III"},
    {"subtype": "FLOAT"},
    {"rate": 44100, "channels": 2},
    {"form": "AIFF"},
    {"form": "W64"},
    {"form": "AU"},
    {"form": "CAF"},
    {"form": "OGG", "subtype": "OPUS"},
    {"subtype": "IMA_ADPCM"},
    {"form": "RF64"},
)
SCORES = "".join(f"0.5 {enrol} {test}\n" for enrol, test in zip(TRIALS.enrol, TRIALS.test)).encode()
HISTORY = b'{"epoch": 0, "lists": {}}\n{"epoch": 1, "loss": 2.5, "lists": {"o": {"eer": 3.0}}}\n'
CONFIGURATION = (
    b'{"model": {"type": "ecapa-tdnn-sv", "model_config": {"sample_rate": 16000}, '
    b'"pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": 0.37}}'
)
LABELS = b"'id1' => 0\n'id2' => 1\n================\n'starting_index' => 0\n"
NUMBERS = (
    b"0",
    b"-1",
    b"65536",
    b"2147483647",
    b"-2147483648",
    b"4294967296",
    b"9223372036854775808",
    b"1e999",
    b"nan",
)


def beside(name, weights, file, contents, more=None):
    """The nasty contents of a file beside a model's weights, each with those."""
    return {what: {name: weights, **(more or {}), file: content} for what, content in contents.items()}


def readers():
    """{name: Reader} of everything that takes a file from elsewhere."""
    training, trials = (lambda path: f"s1 {path}\n"), (lambda path: f"1 s0/0.wav {path}\n0 {path} s0/0.wav\n")
    lines = {
        "training": "".join(map(training, ("s0/0.wav", "s1/1.wav", "s0/2.wav"))).encode(),
        "trials": "".join(map(trials, ("s0/2.wav", "s1/1.wav"))).encode(),
    }
    words = (
        b"../",
        b"/",
        b" ",
        b"\n",
        b"\t",
        b"\0",
        b"\xff",
        b"1 ",
        b"s0/0.wav",
        b"secret.wav",
        b"\xe2\x80\xa8",
        b"pipe.wav",
    )
    speechbrain, wespeaker = (
        nasty.torch_file(random_state(speechbrain_shapes(8))),
        nasty.torch_file(random_state(wespeaker_shapes(8))),
    )
    classifier = {"classifier.ckpt": nasty.torch_file({"weight": torch.ones(2, 192)})}
    brain = {"embedding_model.ckpt": speechbrain, **classifier, "label_encoder.txt": LABELS}
    model = nasty.torch_file(model_content())
    return {
        "training list": Reader(
            "list.txt", read_list(TrainingList), lambda: [lines["training"]], lambda: nasty.lists(training), words
        ),
        "trial list": Reader(
            "list.txt", read_list(TrialList), lambda: [lines["trials"]], lambda: nasty.lists(trials), words
        ),
        "list to embed": Reader(
            "list.txt", read_embed_list, lambda: list(lines.values()), lambda: nasty.lists(training), words
        ),
        "audio": Reader(
            "a.wav",
            read_sound,
            lambda: [nasty.sound(**form) for form in SOUNDS],
            nasty.audio,
            (b"data", b"fmt ", b"LIST", b"fLaC", b"OggS", b"\xff\xff\xff\xff", bytes(4)),
        ),
        "pack": Reader("index.tsv", read_pack, lambda: [nasty.pack_files()], nasty.packs, (b"\t", b"\n", *NUMBERS)),
        "pack, begun": Reader("packing.json", read_pack, lambda: [begun_pack()], lambda: {}, (b"\t", b"\n", *NUMBERS)),
        "model": Reader("x.model", read_model("x.model"), lambda: [model], lambda: nasty.checkpoints(model_content())),
        "TaoRuijie": Reader(
            "x.model",
            read_model("x.model"),
            lambda: [nasty.torch_file(random_state(taoruijie_shapes(8, 3)))],
            nasty.published,
        ),
        "SpeechBrain": Reader(
            "embedding_model.ckpt",
            read_model(""),
            lambda: [brain],
            lambda: beside("classifier.ckpt", classifier["classifier.ckpt"], "embedding_model.ckpt", nasty.published()),
        ),
        "wespeaker": Reader("avg_model.pt", read_model("avg_model.pt"), lambda: [wespeaker], nasty.published),
        "pyannote": Reader(
            "pytorch_model.bin",
            read_model(""),
            lambda: [
                nasty.torch_file(
                    {"state_dict": random_state(pyannote_shapes()), "pyannote.audio": {}, "hyper_parameters": {}}
                )
            ],
            nasty.published,
        ),
        "training state": Reader(
            "state.pt",
            lambda folder: load_checkpoint(folder / "state.pt", "training state"),
            lambda: [nasty.torch_file(state_content())],
            lambda: nasty.checkpoints(state_content()),
        ),
        "hyperparams.yaml": Reader(
            "hyperparams.yaml",
            read_model(""),
            lambda: [{**brain, "hyperparams.yaml": HYPERPARAMS.encode()}],
            lambda: beside("embedding_model.ckpt", speechbrain, "hyperparams.yaml", nasty.yamls("n_mels")),
            (b"<<: ", b"&a ", b"*a", b"!!", b"- ", b"? ", b": ", b"{", b"[", b"!!timestamp ", b"\n  "),
        ),
        "label_encoder.txt": Reader(
            "label_encoder.txt",
            read_model(""),
            lambda: [brain],
            lambda: beside("embedding_model.ckpt", speechbrain, "label_encoder.txt", nasty.labels(), classifier),
            (b" => ", b"'", b"(", b"\n", b"==", *NUMBERS),
        ),
        "config.yaml": Reader(
            "config.yaml",
            read_model(""),
            lambda: [{"avg_model.pt": wespeaker, "config.yaml": b"model: ECAPA_TDNN_GLOB_c512\n"}],
            lambda: beside("avg_model.pt", wespeaker, "config.yaml", nasty.yamls("model")),
            (b"<<: ", b"&a ", b"*a", b"!!"),
        ),
        "configuration.json": Reader(
            "configuration.json",
            read_model(""),
            lambda: [{"ecapa_tdnn.bin": speechbrain, "configuration.json": CONFIGURATION}],
            lambda: beside("ecapa_tdnn.bin", speechbrain, "configuration.json", nasty.jsons()),
            NUMBERS,
        ),
        "gallery": Reader(
            "g.npz",
            read_gallery,
            lambda: [nasty.npz(**gallery_arrays())],
            lambda: nasty.arrays(gallery_arrays()),
            NUMBERS,
        ),
        "cohort": Reader(
            "c.npz",
            lambda folder: read_cohort(folder / "c.npz", ENCODER),
            lambda: [nasty.npz(**cohort_arrays())],
            lambda: nasty.arrays(cohort_arrays()),
            NUMBERS,
        ),
        "metrics.jsonl": Reader(
            "metrics.jsonl",
            lambda folder: read_history(folder / "metrics.jsonl"),
            lambda: [HISTORY],
            nasty.histories,
            NUMBERS,
        ),
        "score file": Reader(
            "o.txt",
            lambda folder: read_scores(folder / "o.txt", TRIALS),
            lambda: [SCORES],
            lambda: nasty.scores(SCORES),
            NUMBERS,
        ),
    }


def begun_pack():
    """A pack of s0/0.wav, the empty file of ``in_place``, that was begun."""
    names = hashlib.sha256(b"-\ts0/0.wav\n").hexdigest()
    origin = {"format": 1, "kind": "speech", "source": "?", "list_sha256": None, "files_sha256": names}
    return {"packing.json": json.dumps(origin).encode(), "index.tsv": b"-\ts0/0.wav\t0\t0\t0\n", "samples.int16": b""}


# ---- changed bytes ---------------------------------------------------------------------------------------------------


def changed(content, random, words, others):
    """The content with one to four changes that a broken disk or a bad mind might make."""
    content = bytearray(content)
    for _ in range(random.integers(1, 5)):
        first, second = sorted(random.integers(0, len(content) + 1, 2).tolist())
        second = min(second, first + int(2 ** random.integers(0, 12)))
        kind = random.integers(9)
        if kind == 0:
            del content[first:]
        elif kind == 1:
            del content[first:second]
        elif kind == 2:
            content[first:first] = random.bytes(int(random.integers(1, 20)))
        elif kind == 3:  # twice
            content[first:first] = content[first:second]
        elif kind == 4 and len(content) > first:
            content[first] ^= 1 << int(random.integers(8))
        elif kind == 5:  # a number that a header may hold
            size = int(random.choice([1, 2, 4, 8]))
            number = int(random.choice([0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62])) & (256**size - 1)
            content[first : first + size] = number.to_bytes(size, ["little", "big"][random.integers(2)])
        elif kind == 6 and words:
            content[first : first + int(random.integers(0, 4))] = words[random.integers(len(words))]
        elif kind == 7 and (found := list(re.finditer(rb"\d+", content[:100_000]))):  # a number that a text holds
            place = found[random.integers(len(found))]
            content[slice(*place.span())] = NUMBERS[random.integers(len(NUMBERS))]
        elif kind == 8:  # part of another file
            other = others[random.integers(len(others))]
            content[first:second] = other[first : first + int(2 ** random.integers(0, 12))]
    return bytes(content)


def mutated(case, reader, random, others):
    """A case with changes in one of its files; half of the time inside a zip file, or with a hash that fits again."""
    name = reader.main if random.random() < 0.8 else sorted(case)[random.integers(len(case))]
    content, inside = case[name], random.random() < 0.7
    if inside and zipfile.is_zipfile(io.BytesIO(content)):
        parts = nasty.parts_of(content)
        # Where the structure is, more often than where the numbers are.
        small = [part for part in parts if len(parts[part]) < 100_000 and "/data/" not in part]
        part = small[random.integers(len(small))] if random.random() < 0.8 else list(parts)[random.integers(len(parts))]
        content = nasty.zip_of({**parts, part: changed(parts[part], random, reader.words, list(parts.values()))})
    else:
        content = changed(content, random, reader.words, others)
    case = {**case, name: content}
    if inside and "pack.json" in case and name == "index.tsv":
        about = json.loads(case["pack.json"])
        about |= {"index_sha256": hashlib.sha256(content).hexdigest(), "entries": content.count(b"\n")}
        case["pack.json"] = json.dumps(about).encode()
    return case


def cases(name, reader, count, seed):
    """Yield (what, case): the seeds, all that is nasty, then mutations, up to so many in all."""
    seeds = [case if isinstance(case, dict) else {reader.main: case} for case in reader.seeds()]
    yield from ((f"seed {number}", case) for number, case in enumerate(seeds[:count]))
    bad = reader.nasty()
    yield from ((what, case if isinstance(case, dict) else {reader.main: case}) for what, case in bad.items())
    others = [case[reader.main] for case in seeds]
    for number in range(len(seeds) + len(bad), count):
        random = np.random.default_rng([seed, int.from_bytes(name.encode(), "little") % 2**32, number])
        yield f"mutation {number}", mutated(seeds[random.integers(len(seeds))], reader, random, others)


# ---- trying ----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    kind: str  # "read", "refused", or what went wrong: "crashed", "hung"
    seconds: float
    megabytes: float  # that the process grew by, at its peak
    message: str


class Hung(BaseException):
    """Not an Exception, so that no reader mistakes it for a fault of the file."""


def peak_memory():
    """The most memory that this process held since ``forget_peak``, MB; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
    return 0.0


def forget_peak():
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def attempt(read, folder, case):
    """Write a case's files into the folder, read them, and see what becomes of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in case.items():
        (folder / name).write_bytes(content)

    def alarm(*_):
        raise Hung

    before, began = forget_peak(), time.perf_counter()
    old = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    kind, message = "read", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder)
    except InputError as error:
        kind, message = "refused", str(error)
        if not message.isprintable() or not 10 < len(message) < 3000:
            kind = "crashed"  # no message for a person
    except Hung:
        kind, message = "hung", traceback.format_exc()
    except Exception:
        kind, message = "crashed", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    seconds, grown = time.perf_counter() - began, peak_memory() - before
    if os.path.exists(nasty.HARM) or (folder / nasty.HARM).exists():
        kind, message = "crashed", "code was run"
    return Outcome(kind, seconds, grown, message)


def work(name, count, seed, start, folder, pipe):
    """A process that tries the cases from ``start`` on, and tells of each before and after."""
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - bars and remarks
    os.dup2(sys.stderr.fileno(), 2)
    reader = readers()[name]
    for number, (what, case) in enumerate(cases(name, reader, count, seed)):
        if number >= start:
            pipe.send(what)
            pipe.send((attempt(reader.read, folder / "case", case), sum(map(len, case.values()))))
    pipe.send(None)


def fuzz(name, count, seed, folder):
    """Try so many cases of one reader -> [(what, Outcome, bytes)]."""
    found, context = [], multiprocessing.get_context("fork")
    while True:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, count, seed, len(found), folder, theirs))
        process.start()
        theirs.close()
        what = None
        try:
            while (what := ours.recv()) is not None:
                if not ours.poll(2 * HANG):
                    found.append((what, Outcome("hung", 2 * HANG, 0, "beyond the reach of an alarm"), 0))
                    process.kill()
                    break
                outcome, size = ours.recv()
                found.append((what, outcome, size))
        except EOFError:
            process.join()
            found.append((what, Outcome("crashed", 0, 0, f"the process ended with {process.exitcode}"), 0))
        process.join()
        if what is None:
            return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int)
    parser.add_argument("reader", nargs="?", default="")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in readers() if args.reader in name]
    print(f"{'reader':20}{'cases':>7}{'refused':>9}{'read':>7}{'crashed':>9}{'hung':>6}{'slowest s':>11}{'most MB':>9}")
    faults = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, args.cases // len(names), args.seed, pathlib.Path(folder))
        kinds = collections.Counter(outcome.kind for _, outcome, _ in found)
        slowest, largest = (max(getattr(outcome, key) for _, outcome, _ in found) for key in ("seconds", "megabytes"))
        print(
            f"{name:20}{len(found):7}{kinds['refused']:9}{kinds['read']:7}{kinds['crashed']:9}{kinds['hung']:6}"
            f"{slowest:11.2f}{largest:9.0f}",
            flush=True,
        )
        for what, outcome, size in found:
            greedy = outcome.megabytes > MEMORY + size / 1e5
            if outcome.kind in ("crashed", "hung") or greedy or (what.startswith("seed") and outcome.kind != "read"):
                where = (
                    outcome.message.strip().splitlines()[-1:]
                    + re.findall(r'work.*/(\w+\.py", line \d+)', outcome.message)[-2:]
                )
                where = where or re.findall(r'"([^"]*", line \d+)', outcome.message)[-2:]
                faults.setdefault((name, outcome.kind, *where, greedy and round(outcome.megabytes)), []).append(
                    (what, outcome)
                )
    for (name, *fault), examples in faults.items():
        print(f"{name}: {fault}, {len(examples)} of them, such as {examples[0][0]}", file=sys.stderr)
        if os.environ.get("FUZZ_VERBOSE"):
            print(examples[0][1].message, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
