"""What machines and people do to a training run, done on purpose: what happened, and what was lost of it.

    python tests/studies/faults.py                    # the table, in two minutes on a core; the kills: --kills 500
    python tests/studies/faults.py kills two_runs     # some of them

Every run is a fork of this process, which has imported everything and computed nothing, so that hundreds of lives cost
minutes. A run saves its state after every step. Every fault must end in the weights, scores and records of a run that
was left alone, to the bit, or in one line that says what is wrong and harms nothing.
"""

import argparse
import ctypes
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of its parent's threads, and would wait for them
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # optimizers ask for it: once here, not in every fork
from conftest import data_flags, live, make_corpus  # noqa: E402

import trainSpeakerNet  # noqa: E402
from evaluation import records as records_module  # noqa: E402
from evaluation import scoring  # noqa: E402
from training import run as run_module  # noqa: E402

SETTINGS = ["--C", 8, "--num_frames", 60, "--batch_size", 4, "--max_epoch", 3, "--test_step", 2, "--bank_mb", 5,
            "--device", "cpu", "--amp", "off", "--save_minutes", 0, "--average", 2, "--valid_speakers", 2,
            "--optimizer", "sgd", "--lr", 0.02, "--n_cpu", 1]  # fmt: skip
PHASES = ["starting", "training", "saving", "evaluating", "recording"]


class Life:
    """A run in a process of its own: ``phase`` says what it is doing; the rest is a process's.

    prepare: called in the child before it starts; stop_at: in this step (1, 2, ...) it stops itself, until SIGCONT.
    """

    def __init__(self, folder, *flags, prepare=None, stop_at=0):
        self.stop_at = stop_at
        self.seen, self.log = mmap.mmap(-1, 8), Path(tempfile.mkstemp(suffix=".log")[1])
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(folder, flags, prepare)

    def _live(self, folder, flags, prepare):
        log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        self._tell_phases()
        live("trainSpeakerNet.py", trainSpeakerNet.main, [*flags, "--save_path", folder], prepare)

    def _tell_phases(self):
        def told(function, phase):
            def telling(*args, **more):
                before, self.seen[0] = self.seen[0], PHASES.index(phase)
                try:
                    return function(*args, **more)
                finally:
                    self.seen[0] = before

            return telling

        run_module.save_state = told(run_module.save_state, "saving")
        trainSpeakerNet.evaluate = told(trainSpeakerNet.evaluate, "evaluating")
        records_module.Records.add = told(records_module.Records.add, "recording")
        forward = run_module.SpeakerNet.forward

        def training(*args):
            self.seen[0] = PHASES.index("training")
            self.seen[1] = min(255, self.seen[1] + 1)
            if self.steps == self.stop_at:
                os.kill(os.getpid(), signal.SIGSTOP)
            return forward(*args)

        run_module.SpeakerNet.forward = training

    @property
    def phase(self):
        return PHASES[self.seen[0]]

    @property
    def steps(self):
        return self.seen[1]

    def wait_until(self, condition, seconds=60):
        """Whether it came so far before it ended."""
        until = time.monotonic() + seconds
        while not condition(self):
            if self.ended() is not None:
                return False
            assert time.monotonic() < until, self.said()
            time.sleep(0.0005)
        return True

    def ended(self):
        """Its exit status, that of a signal negative; None if it lives."""
        if not hasattr(self, "status"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def finish(self, seconds=120):
        until = time.monotonic() + seconds
        while self.ended() is None:
            assert time.monotonic() < until, f"does not end: {self.said()}"
            time.sleep(0.005)
        return self.status

    def kill(self):
        if self.ended() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.finish()

    def said(self):
        return self.log.read_text(errors="replace")


class Scene:
    """A corpus, and a run on it that was left alone."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.corpus = make_corpus(self.folder / "corpus")
        self.flags = [*data_flags(self.corpus), *SETTINGS]
        self.alone = self.folder / "alone"
        self.run(self.alone)

    def run(self, folder, *flags, prepare=None):
        life = Life(folder, *self.flags, *flags, prepare=prepare)
        assert life.finish() == 0, life.said()
        return life.said()

    def assert_same(self, folder):
        """As the run that was left alone, but for how long things took."""
        for name in sorted(path.name for path in (self.alone / "model").iterdir()):
            one, other = (torch.load(where / "model" / name, weights_only=True) for where in (self.alone, folder))
            assert one["weights"].keys() == other["weights"].keys()
            for key, value in one["weights"].items():
                assert torch.equal(value, other["weights"][key]), (name, key)
        for name in ("score.txt", "scores/trials.txt", "scores/valid.txt"):
            assert (self.alone / name).read_text() == (folder / name).read_text(), name
        assert records(self.alone) == records(folder)


def records(folder):
    timed = {"seconds", "seconds_left", "utterances_per_second", "waiting_percent", "unreadable_files"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_whole(folder):
    """Every file that a reader would look at is whole: old or new."""
    for path in [*folder.glob("*.pt"), *folder.glob("model/*.model")]:
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None, path
    if (folder / "metrics.jsonl").exists():
        assert records(folder)


# ---- the faults: each returns (how often, what happened, what was lost) ----------------------------------------------


def kills(scene, count):
    """SIGKILL at a random moment"""
    random, hits, runs = np.random.default_rng(0), dict.fromkeys(PHASES, 0), 0
    lost = 0  # steps at most
    while sum(hits.values()) < count:
        runs += 1
        folder, done = scene.folder / f"killed{runs}", 0
        for life_number in itertools.count(runs):
            life = Life(folder, *scene.flags, "--n_cpu", 1 + life_number % 3)
            # A moment of a phase, in turns, so that the short ones have their share.
            wanted = PHASES[life_number % len(PHASES)]
            lived = life.wait_until(lambda life, wanted=wanted: life.phase == wanted)
            if lived and sum(hits.values()) < count:
                time.sleep(random.exponential(0.02 if wanted in ("starting", "training") else 0.004))
            elif life.finish() == 0:
                break
            phase = life.phase
            if life.kill() == 0:
                break
            assert life.status == -signal.SIGKILL, life.said()
            begun = re.search(r"resuming after step (\d+) of epoch (\d+)", life.said())
            begun_at = 4 * int(begun[2]) - 4 + int(begun[1]) if begun else 0  # four steps an epoch
            if begun or life.steps:
                lost = max(lost, done - begun_at)
                done = begun_at + life.steps  # the last of them only begun, perhaps
            hits[phase] += 1
            assert_whole(folder)
        scene.assert_same(folder)
    where = ", ".join(f"{number} {phase}" for phase, number in hits.items())
    assert lost <= 1, lost
    return sum(hits.values()), f"{runs} runs ended as one left alone, to the bit ({where})", f"at most {lost} step each"


def torn_states(scene):
    """the last state truncated, spoilt, emptied, deleted; then both"""
    begun = scene.folder / "begun"
    life = Life(begun, *scene.flags, stop_at=4)
    assert life.wait_until(lambda life: life.steps >= 4), life.said()
    life.kill()

    def truncate(path):
        os.truncate(path, path.stat().st_size // 2)

    def spoil(path):
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    tears = truncate, spoil, lambda path: os.truncate(path, 0), os.unlink
    for number, tear in enumerate(tears):
        folder = scene.folder / f"torn{number}"
        shutil.copytree(begun, folder)
        tear(folder / "state.pt")
        said = scene.run(folder)
        assert f"resuming from {folder}/state_before.pt" in said, said
        scene.assert_same(folder)
    folder = scene.folder / "torn-both"
    shutil.copytree(begun, folder)
    truncate(folder / "state.pt"), truncate(folder / "state_before.pt")
    life = Life(folder, *scene.flags)
    assert life.finish() == 2 and "choose another --save_path" in life.said() and "Traceback" not in life.said()
    return 5, "4 went on from the state before, and said so; without any: one line", "a step"


def two_runs(scene):
    """a second run in the same folder"""
    folder = scene.folder / "shared"
    first = Life(folder, *scene.flags, stop_at=1)
    assert first.wait_until(lambda life: life.phase == "training"), first.said()
    second = Life(folder, *scene.flags)
    assert second.finish() == 2, second.said()
    assert f"--save_path {folder} is being written to by process {first.pid} on" in second.said()
    os.kill(first.pid, signal.SIGCONT)
    assert first.finish() == 0, first.said()
    scene.assert_same(folder)
    return 1, "refused, naming the first one's process", "nothing"


def small_disk(scene, action):
    """Run in a file system of 300 MB of our own: the return value of action(folder), in a child. None: not allowed."""
    folder, said = scene.folder / "disk", scene.folder / f"{action.__name__}.json"
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            uid, gid = os.getuid(), os.getgid()
            new_namespace, new_user = 0x20000, 0x10000000
            if libc.unshare(new_namespace if uid == 0 else new_namespace | new_user):
                os._exit(77)
            if uid:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
                Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=300m", "tmpfs", folder]):
                if subprocess.run(["mount", *command], stderr=subprocess.DEVNULL).returncode:
                    os._exit(77)
            said.write_text(json.dumps(action(folder)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 77:
        return None
    assert status == 0, "see above"
    return json.loads(said.read_text())


def full_disk(scene):
    """a disk that is full at a state, a model, a score file, a record"""

    def fill(disk):
        happened = []

        def fill_before(module, function):
            """Another process fills the disk just before that is called for the second time."""

            def prepare():
                plain, calls = getattr(module, function), itertools.count(1)

                def late(*args, **more):
                    if next(calls) == 2:
                        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                        (disk / "stuffing").write_bytes(bytes(free))
                    return plain(*args, **more)

                setattr(module, function, late)

            return prepare

        for module, function in ((run_module, "save_state"), (run_module, "save_checkpoint"),
                                 (scoring, "write_scores"), (records_module, "write_text")):  # fmt: skip
            folder = disk / function
            life = Life(folder, *scene.flags, prepare=fill_before(module, function))
            assert life.finish() == 1, life.said()
            line = life.said().strip().splitlines()[-1]
            assert f"{folder}/" in line and "No space left on device" in line and "Traceback" not in life.said(), line
            happened.append(line.split(":")[1].rpartition("/")[2])
            assert_whole(folder)
            (disk / "stuffing").unlink()
            scene.run(folder)
            scene.assert_same(folder)
            shutil.rmtree(folder)
        return happened

    said = small_disk(scene, fill)
    if said is None:
        return 0, "not tried: mounting is not allowed here", "-"
    return len(said), f"stopped, naming {', '.join(said)}; with room, went on to the same end", "a step"


def spoilt_data(scene):
    """a training file truncated, replaced by noise, by another, deleted, in a running epoch"""

    def truncate(path):
        os.truncate(path, 1000)

    def noise(path):
        path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))

    def replace(path):
        shutil.copy(next(scene.corpus.rglob("music-2.wav")), path)

    counts = []
    for number, spoil in enumerate((truncate, noise, replace, os.unlink)):
        data, folder = scene.folder / f"data{number}", scene.folder / f"spoilt{number}"
        shutil.copytree(scene.corpus / "train", data)
        life = Life(folder, *scene.flags, "--train_path", data, stop_at=1)
        assert life.wait_until(lambda life: life.steps >= 1), life.said()
        held_out = json.loads(json.dumps(sorted({line.split()[1].split("/")[0] for line in
                              (folder / "scores" / "valid_trials.txt").read_text().splitlines()})))  # fmt: skip
        spoil(next(path for path in sorted(data.rglob("*.wav")) if path.parts[-3] not in held_out))
        os.kill(life.pid, signal.SIGCONT)
        assert life.finish() == 0, life.said()
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        counts.append(json.loads(lines[-1])["unreadable_files"])
        assert_whole(folder)
    assert counts == [0, 1, 0, 1], counts
    return 4, "noise, nothing: replaced by the next line, counted, named; a shorter or other wav is just that", "a file"


def bad_steps(scene):
    """numbers that are not finite all through the network, once; then in every step"""

    def spoil(steps):
        def spoiling():
            forward, count = run_module.SpeakerNet.forward, itertools.count()

            def spoilt(self, waveform, *args):
                return forward(self, waveform * (float("nan") if next(count) in steps else 1), *args)

            run_module.SpeakerNet.forward = spoilt

        return spoiling

    folder = scene.folder / "bad"
    said = scene.run(folder, prepare=spoil([2]))
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
    assert last["skipped_steps"] == 1 and np.isfinite(last["loss"]) and "step 3 of epoch 1" in said, said
    listed = (folder / "skipped_batch.txt").read_text().splitlines()
    assert len(listed) == 4 and set(listed) <= set((scene.corpus / "train_list.txt").read_text().splitlines())
    for path in (folder / "model").iterdir():
        weights = torch.load(path, weights_only=True)["weights"]
        assert all(value.isfinite().all() for value in weights.values()), path
    life = Life(scene.folder / "worse", *scene.flags, "--max_epoch", 9, "--average", 0, prepare=spoil(range(4, 99)))
    assert life.finish() == 1 and "steps before: try a smaller --lr" in life.said(), life.said()
    assert_whole(scene.folder / "worse")
    return 2, "skipped, counted, its utterances listed; ten in a row end the run", "that step"


FAULTS = [kills, torn_states, two_runs, full_disk, spoilt_data, bad_steps]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(fault.__name__ for fault in FAULTS)}; all by default")
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        scene = Scene(folder)
        for fault in FAULTS:
            if args.faults and fault.__name__ not in args.faults:
                continue
            try:
                often, happened, lost = fault(scene, *([args.kills] if fault is kills else []))
                print(f"{fault.__name__} | {fault.__doc__} | {often} | {happened} | {lost}", flush=True)
            except Exception:
                failures += 1
                print(f"{fault.__name__} | {fault.__doc__} | FAILED | {traceback.format_exc()}", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
