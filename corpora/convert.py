"""Audio of any kind as 16 kHz mono wav or flac in the same layout; MUSAN in pieces of 5 seconds.

    convert_folder("voxceleb2/dev/aac", "voxceleb2/wav")    # id00012/21Uxsk56VDQ/00001.m4a -> the same name, .wav

What libsndfile reads is read by audio.py. ffmpeg decodes the rest, and does no more than that: the mean of the channels
and the resampling are those of audio.py for all files. Every result appears whole, after it has been read back.
"""

import collections
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import soundfile

from corpora.audio import AUDIO_SUFFIXES, FFMPEG_SUFFIXES, SAMPLE_RATE, AudioFile, UnreadableAudio, check_folder
from corpora.file_check import HEAD, is_text, missing_bytes
from tools import InputError, RunError, check_writable, in_order, one_line, progress_bar, whole_file, write_text

SUFFIXES = AUDIO_SUFFIXES | FFMPEG_SUFFIXES | {".aif", ".aiff", ".au", ".caf", ".sph", ".w64", ".mp2"}
# ffmpeg goes by the content: a playlist that is called .m4a would have it open other files.
FFMPEG_FORMATS = "mov,aac,asf,matroska,amr,ac3,eac3,mp3,wav,w64,flac,ogg,aiff,au,caf,nistsphere"
# Decoding AAC takes a hundredth of its playing time: a minute, and one for each 3 MB, is long on a busy machine, too.
FFMPEG_SECONDS, FFMPEG_BYTES_PER_SECOND = 60, 50_000
TOLERANCE = 0.1  # seconds that a container may claim more or less than it holds: frames of AAC have 0.064 s at 16 kHz
BLOCK = 60 * SAMPLE_RATE  # samples in memory at a time
# As split_musan of voxceleb_trainer's dataprep.py does it: 5 s from every third second on.
PIECE, STRIDE = 5 * SAMPLE_RATE, 3 * SAMPLE_RATE
INSTALL = "apt-get install ffmpeg (Debian, Ubuntu), brew install ffmpeg (macOS) or conda install -c conda-forge ffmpeg"


class Done(NamedTuple):
    """What became of the files: (path, reason) of those that failed, and {kind: number} of those left alone."""

    files: int
    written: int
    already: int
    seconds: float
    failed: list
    left_alone: dict


def convert_folder(source, to, suffix="wav", threads=4):
    """All audio under ``source`` as 16 kHz mono 16-bit files under ``to``, named alike, ending in wav or flac -> Done.

    What is there already is kept. Files that fail are listed with reasons in ``to``/failed.tsv. InputError before the
    work when there is nothing to do, ffmpeg is needed and absent, or two files would become one; RunError for a full
    disk, after which the same call continues.
    """
    source, to = pathlib.Path(source), pathlib.Path(to)
    check_folders(source, to, "--convert")
    files, left_alone = find_sources(source)
    if not files:
        others = ", ".join(f"{count} {kind}" for kind, count in left_alone.most_common(3))
        others = others and f", but {others}"
        raise InputError(f"--convert {source} holds no audio{others}; known are {' '.join(sorted(SUFFIXES))}")
    targets = targets_of(files, f".{suffix}", f"--convert {source}")
    _check_ffmpeg([file for file, target in zip(files, targets) if not os.path.lexists(to / target)], len(files))
    check_writable(to, "--to")

    def convert(job):
        file, target = job
        return None if _is_done(to / target) else convert_file(source / file, to / target)

    seconds, failed = run_all(convert, list(zip(files, targets)), threads, to, "converting")
    written = [each for each in seconds if each is not None]
    return Done(len(files), len(written), len(seconds) - len(written), sum(written), failed, dict(left_alone))


def split_musan(source, to, threads=4):
    """MUSAN's files as pieces of 5 s, one every 3 s: noise/free-sound/x.wav -> noise/free-sound/x/00003.wav -> Done.

    Names (the second where a piece begins), lengths and places are those of voxceleb_trainer's dataprep.py, whose
    range(0, length - 5 s, 3 s) leaves out a file that is no longer than 5 s; these count as left alone. Otherwise as
    convert_folder.
    """
    source, to = pathlib.Path(source), pathlib.Path(to)
    check_folders(source, to, "--split_musan")
    files, _ = find_sources(source)
    files = [file for file in files if file.startswith(("music/", "noise/", "speech/"))]
    absent = {"music", "noise", "speech"} - {file.split("/")[0] for file in files}
    if absent:
        raise InputError(f"--split_musan {source} has no audio in its folder '{min(absent)}': give MUSAN's own folder")
    folders = targets_of(files, "", f"--split_musan {source}")
    check_writable(to, "--to")

    def split(job):
        file, folder = job
        new = 0
        with AudioFile(source / file) as audio:
            starts = range(0, audio.length - PIECE, STRIDE)
            for start in starts:
                path = to / folder / f"{start // SAMPLE_RATE:05d}.wav"
                if not _is_done(path):
                    write_audio(path, audio, start, PIECE)
                    new += 1
        return len(starts), new

    counts, failed = run_all(split, list(zip(files, folders)), threads, to, "splitting")
    pieces, written = sum(count for count, _ in counts), sum(new for _, new in counts)
    short = {"of 5 s or less": sum(count == 0 for count, _ in counts)}
    return Done(len(files), written, pieces - written, written * PIECE / SAMPLE_RATE, failed, short)


# ---- one file --------------------------------------------------------------------------------------------------------


def convert_file(source, target):
    """Write an audio file as 16 kHz mono to ``target``, a .wav or .flac -> its length in seconds. UnreadableAudio."""
    if not os.path.isfile(source) or _libsndfile_opens(source):
        with AudioFile(source) as audio, open(source, "rb") as file:
            size = os.path.getsize(source)
            if (missing := missing_bytes(file.read(8), size)) > TOLERANCE * size * SAMPLE_RATE / audio.length:
                raise UnreadableAudio(f"{source} lacks {missing} bytes of those its header claims: cut short?")
            write_audio(target, audio)
            return audio.length / SAMPLE_RATE
    _refuse_text(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.decoded.part")
    try:
        claimed = decode(source, beside)
        try:
            audio = AudioFile(beside)
        except UnreadableAudio as error:
            odd = str(error).removeprefix(f"{beside} ")
            raise UnreadableAudio(f"{source}: what ffmpeg made of it {odd}") from error
        audio.path = source  # for what is said about it
        with audio:
            seconds = audio.length / SAMPLE_RATE
            if claimed is not None and abs(seconds - claimed) > TOLERANCE:
                odd = f"claims {claimed:.2f} s, but ffmpeg got {seconds:.2f} s out of it"
                raise UnreadableAudio(f"{source} {odd}: damaged or cut short?")
            write_audio(target, audio)
            return seconds
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _libsndfile_opens(path):
    try:
        soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path).close()
    except (soundfile.LibsndfileError, OSError):
        return False
    return True


def _refuse_text(path):
    """UnreadableAudio for what is no audio at a glance: ffmpeg would only say that the data are invalid."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UnreadableAudio(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise UnreadableAudio(f"{path} is empty")
    if is_text(head):
        begin = one_line(head[:40].decode("latin-1"))
        raise UnreadableAudio(f"{path} is text, not audio: an error page or a Git LFS pointer ({begin})")


def decode(source, target):
    """Decode with ffmpeg into floats, at the file's own rate and channels -> the seconds it claims, None if unknown.

    UnreadableAudio when ffmpeg is absent, fails, or takes for ever.
    """
    limit = FFMPEG_SECONDS + os.path.getsize(source) / FFMPEG_BYTES_PER_SECOND
    # "file:" keeps a name with a colon from being taken for a protocol.
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-loglevel", "info", "-threads", "1",
               "-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS,
               "-i", f"file:{os.path.abspath(source)}", "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav",
               "-rf64", "auto", "-y", f"file:{os.path.abspath(target)}"]  # fmt: skip
    # A file takes what it says: a pipe would be kept open by any process that ffmpeg leaves behind.
    with tempfile.TemporaryFile() as said:
        try:
            settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": said}
            status = subprocess.run(command, timeout=limit, check=False, **settings).returncode
        except subprocess.TimeoutExpired as error:
            raise UnreadableAudio(f"{source}: ffmpeg was stopped, it had not ended after {limit:.0f} s") from error
        except OSError as error:
            raise UnreadableAudio(f"{source} cannot be read as audio without ffmpeg ({error.strerror})") from error
        said.seek(0)
        text = said.read(1 << 16).decode("utf-8", "replace")
    if "No space left on device" in text:
        raise _full_disk(target)
    if "matches no streams" in text:
        raise UnreadableAudio(f"{source} has no sound in it")
    if status:
        last = text.strip().rpartition("\n")[2].removeprefix(f"file:{os.path.abspath(source)}: ")
        raise UnreadableAudio(f"{source} cannot be decoded by ffmpeg ({last[:200] or f'exit status {status}'})")
    found = re.search(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", text, re.MULTILINE)
    # A film may be longer than its sound; a bare stream of frames tells no length, so ffmpeg guesses.
    if not found or "Video:" in text or "Estimating duration" in text:
        return None
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def write_audio(path, audio, start=0, count=None):
    """Write samples [start, start + count) of an AudioFile to a .wav or .flac, 16 bits, whole and read back.

    UnreadableAudio if they cannot be read, RunError if they cannot be written.
    """
    end = audio.length if count is None else start + count
    with whole_file(path, "w+b", sync=False) as file:
        try:
            form = path.suffix[1:].upper()
            with soundfile.SoundFile(file.fileno(), "w", SAMPLE_RATE, 1, "PCM_16", None, form, closefd=False) as out:
                for first in range(start, end, BLOCK):
                    out.write(audio.read(first, min(BLOCK, end - first), "int16"))
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            with soundfile.SoundFile(file.fileno(), closefd=False) as written:
                whole = _has_form(written) and written.frames == end - start
        except soundfile.LibsndfileError as error:
            raise _full_disk(path) from error
        if not whole:  # libsndfile does not complain if the end of a file cannot be written on closing it
            raise _full_disk(path)


def _full_disk(path):
    return RunError(f"{path} cannot be written: is the disk full? Make room and run the same again: it continues")


def _has_form(file):
    return (file.samplerate, file.channels, file.subtype) == (SAMPLE_RATE, 1, "PCM_16") and file.frames > 0


def _is_done(path):
    """Whether a result is there. UnreadableAudio if something else is in its place, which is not to be lost."""
    if not os.path.lexists(path):
        return False
    if os.path.isfile(path):
        with contextlib.suppress(soundfile.LibsndfileError), soundfile.SoundFile(os.fsencode(path)) as file:
            if _has_form(file):
                return True
    raise UnreadableAudio(f"{path} is there already, but is no 16 kHz mono 16-bit audio: move it away")


# ---- all files -------------------------------------------------------------------------------------------------------


def check_folders(source, to, flag):
    """InputError unless ``source`` is a folder and neither of the two lies in the other."""
    check_folder(source, flag)
    a, b = source.resolve(), to.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise InputError(f"--to {to} and {flag} {source} must not lie in one another: results would mix with sources")


def find_sources(source):
    """All audio under a folder -> (names from there, sorted; Counter of what is left alone)."""

    def complain(error):
        raise error

    files, left_alone = [], collections.Counter()
    for folder, folders, names in os.walk(source, onerror=complain):  # does not follow links, which may go in circles
        below = pathlib.Path(folder).relative_to(source)
        folders[:] = [name for name in folders if not name.startswith(".")]
        left_alone["linked folders"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):  # macOS keeps a ._00001.m4a beside 00001.m4a
                left_alone["hidden files"] += 1
            elif suffix in SUFFIXES:
                files.append((below / name).as_posix())
            else:
                left_alone[f"{suffix} files" if suffix else "files without a suffix"] += 1
    return sorted(files), +left_alone


def targets_of(files, suffix, flag):
    """The names of the results. InputError if two files would become one."""
    targets = [os.path.splitext(file)[0] + suffix for file in files]
    taken, twice = {}, []
    for file, target in zip(files, targets):
        if taken.setdefault(target, file) != file:
            twice.append((taken[target], file, target))
    if twice:
        first, second, target = twice[0]
        others = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        raise InputError(f"{flag}: {first} and {second} would both become {target}{others}: move one of them away")
    return targets


def _check_ffmpeg(files, total):
    """InputError if one of the files needs ffmpeg, by its name, and that is absent or does not run."""
    needed = sum(os.path.splitext(file)[1].lower() in FFMPEG_SUFFIXES for file in files)
    if not needed:
        return
    if not shutil.which("ffmpeg"):
        raise InputError(f"{needed} of {total} files need ffmpeg, which is not installed: {INSTALL}")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        works = not subprocess.run(["ffmpeg", "-version"], timeout=60, check=False, **quiet).returncode
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works:
        path = shutil.which("ffmpeg")
        raise InputError(f"{needed} of {total} files need ffmpeg, but {path} does not run: try `ffmpeg -version`")


def run_all(task, jobs, threads, to, label):
    """Run ``task(job)`` on jobs (file, target) in threads -> (results, [(file, reason)] of those that failed).

    Those that failed are written to ``to``/failed.tsv, after an interruption, too.
    """
    results, failed = [], []

    def attempt(job):
        try:
            return True, task(job)
        except UnreadableAudio as error:
            return False, error

    outcomes = in_order(attempt, jobs, threads)
    try:
        with contextlib.closing(outcomes), progress_bar(total=len(jobs), desc=label, unit=" files") as bar:
            for (file, _), (fine, outcome) in zip(jobs, outcomes):
                if fine:
                    results.append(outcome)
                else:
                    failed.append((one_line(file), str(outcome)))
                bar.update()
                if failed:
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
    finally:
        if failed or (to / "failed.tsv").exists():
            write_text(to / "failed.tsv", "file\treason\n" + "".join(f"{file}\t{why}\n" for file, why in failed))
    return results, failed
