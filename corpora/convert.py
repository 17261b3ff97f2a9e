"""Convert audio of any format to 16 kHz mono wav or flac, in the same folder layout, with ffmpeg."""

import collections
import os
import pathlib
import re
import shutil
import subprocess

from corpora.audio import SAMPLE_RATE, SUFFIXES, check_folder, find_audio
from tools import InputError, RunError, check_writable, in_order, one_line, progress_bar, write_text

INSTALL = "apt-get install ffmpeg (Debian, Ubuntu), brew install ffmpeg (macOS) or conda install -c conda-forge ffmpeg"


def convert_folder(source, to, suffix="wav", threads=4):
    """Convert all audio under ``source`` to files with the same names under ``to``, in wav or flac.

    Returns (number of new files, number of files that existed, {file: reason} of failures, also written to
    ``to``/failed.tsv). Existing results are kept, so the same call continues after an interruption. InputError: ffmpeg
    is not installed, no audio, two files with the same result. RunError: a full disk.
    """
    source, to = pathlib.Path(source), pathlib.Path(to)
    check_folder(source, "--convert")
    if source.resolve() in (to.resolve(), *to.resolve().parents):
        raise InputError(f"--to {to} is in --convert {source}, where it would be converted again: give another folder")
    files = [path.relative_to(source).as_posix() for path in find_audio(source, SUFFIXES)]
    if not files:
        raise InputError(f"--convert {source} has no audio ({', '.join(sorted(SUFFIXES))})")
    target_of = {file: to / pathlib.Path(file).with_suffix(f".{suffix}") for file in files}
    ((target, count),) = collections.Counter(target_of.values()).most_common(1)
    if count > 1:
        raise InputError(f"--convert {source}: {count} files would become {target}, move all but one away")
    if not shutil.which("ffmpeg"):
        raise InputError(f"--convert needs ffmpeg, which is not installed: {INSTALL}")
    check_writable(to, "--to")
    jobs = {file: target for file, target in target_of.items() if not target.exists()}
    reasons = in_order(lambda file: convert_file(source / file, jobs[file]), jobs, threads)
    reasons = progress_bar(iterable=reasons, total=len(jobs), desc="converting", unit=" files")
    failed = {one_line(file): one_line(reason) for file, reason in zip(jobs, reasons) if reason}
    if failed or (to / "failed.tsv").exists():
        write_text(to / "failed.tsv", "file\treason\n" + "".join(f"{file}\t{failed[file]}\n" for file in failed))
    return len(jobs) - len(failed), len(files) - len(jobs), failed


def convert_file(source, target):
    """Write one audio file as 16 kHz mono to ``target``, a .wav or .flac, or return why not. RunError: a full disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    # -xerror: truncated or damaged files are failures. "file:": a name with a colon is not taken for a protocol.
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-xerror", "-threads", "1", "-protocol_whitelist", "file",
               "-i", f"file:{source}", "-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16",
               "-map_metadata", "-1", "-fflags", "+bitexact", "-f", target.suffix[1:]]  # fmt: skip
    try:
        ended = subprocess.run([*command, "-y", f"file:{part}"], capture_output=True, check=False)
        said = " ".join(ended.stderr.decode("utf-8", "replace").split())[:300]
        if re.search("No space left on device|Disk quota exceeded", said):
            raise RunError(f"{target} cannot be written ({said}): make room, the same command continues")
        if ended.returncode:
            return f"{source} cannot be converted ({said or f'ffmpeg: status {ended.returncode}'})"
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
