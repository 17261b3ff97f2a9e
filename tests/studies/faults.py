"""What machines do to a training run, done on purpose: what happened, and what was lost of it.

    python tests/studies/faults.py                    # in two minutes on a core; more kills: --kills 500

Every run is a fork of this process, which has imported everything and computed nothing, so that hundreds of lives cost
minutes. A run saves its state after every step. Every fault must end in the weights, scores and records of a run that
was left alone, to the bit, or in one line that says what is wrong and harms nothing.
"""

import argparse
import ctypes
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of its parent's threads, and would wait for them
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np  # noqa: E402
import torch._dynamo  # noqa: E402, F401  # optimizers ask for it: once here, not in every fork
from conftest import data_flags, make_corpus  # noqa: E402
from test_trainSpeakerNet import assert_same_run, results  # noqa: E402

import trainSpeakerNet  # noqa: E402
from evaluation import records as records_module  # noqa: E402
from evaluation import scoring  # noqa: E402
from tools import run_command  # noqa: E402
from training import run as run_module  # noqa: E402

SETTINGS = ["--C", 8, "--num_frames", 60, "--batch_size", 4, "--max_epoch", 3, "--test_step", 2, "--bank_mb", 5,
            "--device", "cpu", "--amp", "off", "--save_minutes", 0, "--average", 2, "--valid_speakers", 2,
            "--optimizer", "sgd", "--lr", 0.02, "--n_cpu", 1]  # fmt: skip
PHASES = ["starting", "training", "saving", "evaluating", "recording"]
fork = multiprocessing.get_context("fork")


class Life:
    """A run in a process of its own; ``phase``: what it is doing; ``steps``: how many it has begun.

    prepare: called in the process before the run starts.
    """

    def __init__(self, folder, *flags, prepare=None):
        self.folder, self.seen, self.log = Path(folder), fork.Array("i", 2, lock=False), tempfile.mkstemp()[1]
        self.process = fork.Process(target=self._live, args=([*flags, "--save_path", folder], prepare))
        self.process.start()

    def _live(self, flags, prepare):
        sys.stdout = sys.stderr = open(self.log, "w", buffering=1)  # noqa: SIM115
        self._tell(run_module, "save_state", "saving")
        self._tell(trainSpeakerNet, "evaluate", "evaluating")
        self._tell(records_module.Records, "add", "recording")
        self._tell(run_module.SpeakerNet, "forward", "training")
        if prepare:
            prepare()
        sys.argv = ["trainSpeakerNet.py", *map(str, flags)]
        run_command(trainSpeakerNet.main)

    def _tell(self, owner, function, phase):
        """Make a function say that it is at work; after a step, training goes on."""
        plain = getattr(owner, function)

        def telling(*args, **more):
            before, self.seen[0] = self.seen[0], PHASES.index(phase)
            self.seen[1] += phase == "training"
            result = plain(*args, **more)
            self.seen[0] = self.seen[0] if phase == "training" else before
            return result

        setattr(owner, function, telling)

    phase = property(lambda self: PHASES[self.seen[0]])
    steps = property(lambda self: self.seen[1])

    def wait_until(self, condition):
        """Whether it came so far before it ended."""
        while self.process.is_alive() and not condition(self):
            time.sleep(0.0005)
        return self.process.is_alive()

    def finish(self):
        """Its exit status, that of a signal negative."""
        self.process.join(120)
        assert self.process.exitcode is not None, f"does not end: {self.said()}"
        return self.process.exitcode

    def kill(self):
        self.process.kill()
        return self.finish()

    def said(self):
        return Path(self.log).read_text(errors="replace")


class Scene:
    """A corpus, and a run on it that was left alone."""

    def __init__(self, folder):
        self.folder, self.alone = folder, folder / "alone"
        self.corpus = make_corpus(folder / "corpus")
        self.flags = [*data_flags(self.corpus), *SETTINGS]
        self.run(self.alone)

    def run(self, folder):
        life = Life(folder, *self.flags)
        assert life.finish() == 0, life.said()

    def assert_same(self, folder):
        """As the run that was left alone, but for how long things took."""
        assert_same_run(self.alone, folder)
        for name in ("score.txt", "scores/trials.txt", "scores/valid.txt"):
            assert (self.alone / name).read_text() == (folder / name).read_text(), name


def assert_whole(folder):
    """Every file that a reader would look at is whole: old or new."""
    for path in [*folder.glob("*.pt"), *folder.glob("model/*.model")]:
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None, path
    if (folder / "metrics.jsonl").exists():
        assert results(folder)


# ---- the faults: each returns what happened --------------------------------------------------------------------------


def kills(scene, count):
    """SIGKILL at random moments of every phase, again and again until the run is done; then another run."""
    random, hits, lost = np.random.default_rng(0), dict.fromkeys(PHASES, 0), 0
    for run in itertools.count():
        folder, done = scene.folder / f"killed{run}", 0
        for number in itertools.count(run):
            life = Life(folder, *scene.flags, "--n_cpu", 1 + number % 3)
            wanted = PHASES[number % len(PHASES)]  # in turns, so that the short ones have their share
            lives = life.wait_until(lambda life, wanted=wanted: life.phase == wanted)
            if lives and sum(hits.values()) < count:
                time.sleep(random.exponential(0.02 if wanted in ("starting", "training") else 0.004))
            elif life.finish() == 0:
                break
            phase = life.phase
            if life.kill() == 0:
                break
            assert life.process.exitcode == -signal.SIGKILL, life.said()
            begun = re.search(r"resuming after step (\d+) of epoch (\d+)", life.said())
            begun_at = 4 * int(begun[2]) - 4 + int(begun[1]) if begun else 0  # four steps an epoch
            if begun or life.steps:
                lost = max(lost, done - begun_at)
                done = begun_at + life.steps  # the last of them only begun, perhaps
            hits[phase] += 1
            assert_whole(folder)
        scene.assert_same(folder)
        if sum(hits.values()) >= count:
            assert lost <= 1, lost
            where = ", ".join(f"{number} {phase}" for phase, number in hits.items())
            return f"{run + 1} runs ended as one left alone, to the bit ({where}); {lost} step lost at most"


def mount_small_disk(folder):
    """Mount a file system of 300 MB of this process's own; whether that is allowed."""
    folder.mkdir()
    uid, gid = os.getuid(), os.getgid()
    new_namespace, new_user = 0x20000, 0x10000000
    if ctypes.CDLL(None).unshare(new_namespace if uid == 0 else new_namespace | new_user):
        return False
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    mounts = ["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=300m", "tmpfs", folder]
    return all(subprocess.run(["mount", *each], capture_output=True, check=False).returncode == 0 for each in mounts)


def full_disk(scene):
    """A disk that is full at a state, a model, a score file, a record. The last fault: the mount stays."""
    disk, happened = scene.folder / "disk", []
    if not mount_small_disk(disk):
        return "not tried: mounting is not allowed here"
    for module, function in ((run_module, "save_state"), (run_module, "save_checkpoint"),
                             (scoring, "write_scores"), (records_module, "write_text")):  # fmt: skip
        folder = disk / function

        def prepare(module=module, function=function):
            """Another process fills the disk just before that is called for the second time."""
            plain, calls = getattr(module, function), itertools.count(1)

            def late(*args, **more):
                if next(calls) == 2:
                    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free))
                return plain(*args, **more)

            setattr(module, function, late)

        life = Life(folder, *scene.flags, prepare=prepare)
        assert life.finish() == 1, life.said()
        line = life.said().strip().splitlines()[-1]
        assert f"{folder}/" in line and "No space left on device" in line and "Traceback" not in life.said(), line
        happened.append(line.split(":")[1].rpartition("/")[2])
        assert_whole(folder)
        (disk / "filling").unlink()
        scene.run(folder)
        scene.assert_same(folder)
        shutil.rmtree(folder)
    return f"stopped, naming {', '.join(happened)}; with room, went on to the same end"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the mounted disk cannot be removed
        tempfile.tempdir = folder
        scene = Scene(Path(folder))
        print(f"kills: {kills(scene, args.kills)}", flush=True)
        print(f"full disk: {full_disk(scene)}")


if __name__ == "__main__":
    main()
