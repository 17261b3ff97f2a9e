"""The archives of VoxCeleb, MUSAN and RIRS_NOISES as their sites hand them out: checked, and unpacked in one go.

    unpack("downloads", "/data")    # vox1_dev_wav_parta?, vox2_test_aac.zip, musan.tar.gz, ... whichever are there

writes /data/voxceleb1/wav/..., /data/voxceleb2/dev/aac/..., /data/musan/..., /data/RIRS_NOISES/...

The parts of an archive are read as one file; they are never joined on the disk. Before anything is written, the MD5 of
every part is compared with the published one, and every member is looked at: none may leave the folder. What was
unpacked before an interruption is kept.
"""

import bisect
import errno
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import shutil
import stat
import tarfile
import threading
import zipfile
from typing import NamedTuple

from corpora.audio import check_folder
from tools import InputError, RunError, check_writable, in_order, progress_bar, whole_file

# {archive: {part: MD5}}, as voxceleb_trainer's lists publish them: fileparts.txt, files.txt, augment.txt.
VOX1_DEV = {
    "vox1_dev_wav_partaa": "e395d020928bc15670b570a21695ed96",
    "vox1_dev_wav_partab": "bbfaaccefab65d82b21903e81a8a8020",
    "vox1_dev_wav_partac": "017d579a2a96a077f40042ec33e51512",
    "vox1_dev_wav_partad": "7bb1e9f70fddc7a678fa998ea8b3ba19",
}
VOX2_DEV = {
    "vox2_dev_aac_partaa": "da070494c573e5c0564b1d11c3b20577",
    "vox2_dev_aac_partab": "17fe6dab2b32b48abaf1676429cdd06f",
    "vox2_dev_aac_partac": "1de58e086c5edf63625af1cb6d831528",
    "vox2_dev_aac_partad": "5a043eb03e15c5a918ee6a52aad477f9",
    "vox2_dev_aac_partae": "cea401b624983e2d0b2a87fb5d59aa60",
    "vox2_dev_aac_partaf": "fc886d9ba90ab88e7880ee98effd6ae9",
    "vox2_dev_aac_partag": "d160ecc3f6ee3eed54d55349531cb42e",
    "vox2_dev_aac_partah": "6b84a81b9af72a9d9eecbb3b1f602e65",
}
ARCHIVES = {
    "vox1_dev_wav": VOX1_DEV,
    "vox1_dev_wav.zip": {"vox1_dev_wav.zip": "ae63e55b951748cc486645f532ba230b"},
    "vox1_test_wav.zip": {"vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102"},
    "vox2_dev_aac": VOX2_DEV,
    "vox2_dev_aac.zip": {"vox2_dev_aac.zip": "bbc063c46078a602ca71605645c2a402"},
    "vox2_test_aac.zip": {"vox2_test_aac.zip": "0d2b3ea430a821c33263b5ea37ede312"},
    "rirs_noises.zip": {"rirs_noises.zip": "e6f48e257286e05de56413b4779d8ffb"},
    "musan.tar.gz": {"musan.tar.gz": "0c472d4fc0c5141eca47ad1ffeb2a7df"},
}
# Where an archive's paths begin: VoxCeleb's are only wav/ or dev/aac/; those of MUSAN and RIRS_NOISES have a name.
FOLDERS = {"vox1": "voxceleb1/", "vox2": "voxceleb2/"}
BLOCK = 1 << 20  # bytes read at a time
LARGEST_READ = 1 << 24  # bytes that a header of a tar file may have: it is read into the memory
DISK_BLOCK = 4096  # what a file takes on a disk is a multiple of this, on most


class Unpacked(NamedTuple):
    """How many files are there now, how many of them already were, the bytes written, and the folders at the top."""

    archives: list
    files: int
    already: int
    written: int
    folders: list


def unpack(source, to, threads=4, any_md5=False):
    """Unpack all known archives in the folder ``source`` under ``to`` -> Unpacked.

    any_md5: also those that are not the published ones. InputError before anything is written: no archive, a missing
    part, another MD5, a password, a member that would leave ``to``, too little room. RunError for an archive that turns
    out to be damaged, or a full disk, after which the same call continues.
    """
    source, to = pathlib.Path(source), pathlib.Path(to)
    check_folder(source, "--unpack")
    archives = find_archives(source)
    if not any_md5:
        check_md5(source, archives, threads)
    check_writable(to, "--to")
    opened = {name: open_archive(source, name, parts) for name, parts in archives.items()}
    planned = check_members(opened, to)
    already = sum(done for _, _, done in planned.values())
    total = sum(size for _, size, _ in planned.values())
    bytes_left = sum(size for _, size, done in planned.values() if not done)
    settings = {"total": total, "initial": total - bytes_left, "desc": "unpacking", "unit": "B", "unit_scale": True}
    with progress_bar(**settings) as bar:
        for archive in opened.values():
            for written in archive.extract(to / folder_of(archive.name), threads):
                bar.update(written)
    folders = sorted({path.split("/")[0] for path in planned if "/" in path})
    return Unpacked(list(archives), len(planned), already, bytes_left, folders)


def find_archives(source):
    """{archive: its parts} of those of ARCHIVES in a folder. InputError if there are none, or parts are missing."""
    found, incomplete = {}, []
    for name, parts in ARCHIVES.items():
        if f"{name}.zip" in ARCHIVES and (source / f"{name}.zip").is_file():
            continue  # parts beside what they make when they are joined
        missing = [part for part in parts if not (source / part).is_file()]
        if not missing:
            found[name] = list(parts)
        elif len(missing) < len(parts):
            incomplete += missing
    if incomplete:
        raise InputError(f"--unpack {source} lacks {', '.join(incomplete)}: download what is missing")
    if not found:
        known = ", ".join(f"{name}_part*" if len(parts) > 1 else name for name, parts in ARCHIVES.items())
        raise InputError(f"--unpack {source} holds none of the archives {known}")
    return found


def folder_of(archive):
    """Of FOLDERS, the one that an archive is unpacked to, or ""."""
    return FOLDERS.get(archive[:4], "")


def check_md5(source, archives, threads):
    """InputError naming the parts whose MD5 is not the published one."""
    parts = [(part, ARCHIVES[name][part]) for name, parts in archives.items() for part in parts]
    total = sum(os.path.getsize(source / part) for part, _ in parts)
    with progress_bar(total=total, desc="MD5", unit="B", unit_scale=True) as bar:
        lock = threading.Lock()

        def md5(part):
            digest = hashlib.md5(usedforsecurity=False)
            with open(source / part, "rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    with lock:
                        bar.update(len(block))
            return digest.hexdigest()

        computed = in_order(md5, [part for part, _ in parts], threads)
        wrong = [(part, is_) for (part, published), is_ in zip(parts, computed) if is_ != published]
    if wrong:
        named = ", ".join(f"{part} (MD5 {is_}, published {dict(parts)[part]})" for part, is_ in wrong)
        raise InputError(
            f"--unpack {source}: download again, incomplete or damaged: {named}; --any_md5 takes other editions"
        )


def check_members(opened, to):
    """{path: (archive, bytes, whether it is there)} of all files in the archives.

    InputError if one may not be written, or when they claim more than there is room for.
    """
    planned, needed, room = {}, 0, shutil.disk_usage(to).free
    for name, archive in opened.items():
        for path, size in archive.members():
            _check_path(path, name)
            path = folder_of(name) + path
            if path in planned:
                raise InputError(f"{name} is refused: {path} is in it twice, or in {planned[path][0]}, too")
            done = _is_done(to / path, size)
            planned[path] = name, size, done
            needed += 0 if done else -(-size // DISK_BLOCK) * DISK_BLOCK
            if needed > room:  # seen at once: a member may claim any size
                need = f"{', '.join(opened)} need {needed / 1e9:.1f} GB or more"
                raise InputError(f"--to {to} has {room / 1e9:.1f} GB free, but {need}: make room, or give another disk")
    if not planned:
        raise InputError(f"{', '.join(opened)}: there are no files in it")
    return planned


def _check_path(path, archive):
    """InputError unless this is a path that stays in its folder, on any system."""
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\\" in path or ":" in parts[0] or not path.isprintable():
        raise InputError(f"{archive} is refused: the path {path!r} in it may lead out of the folder")


def _is_done(path, size):
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _write(file, path, size, archive):
    """Write ``size`` bytes out of an open member to a path, whole -> size. RunError if there are fewer."""
    with whole_file(path, sync=False) as out:
        remaining = size
        while remaining:
            try:
                block = file.read(min(BLOCK, remaining))
            except Exception as error:  # what a damaged file raises depends on the damage
                raise _damaged(archive, path, error) from error
            if not block:
                raise _damaged(archive, path, "it ends too early")
            out.write(block)
            remaining -= len(block)
    return size


def _damaged(archive, path, why):
    return RunError(f"{archive} is damaged at {path} ({why}): download it again; the same command then continues")


# ---- the two kinds ---------------------------------------------------------------------------------------------------


def open_archive(source, name, parts):
    kind = Tar if name.endswith(".tar.gz") else Zip
    return kind(name, [source / part for part in parts])


class Zip:
    """A zip file in one part or several. InputError if it is none, or asks for a password."""

    def __init__(self, name, parts):
        self.name = name
        try:
            self.file = zipfile.ZipFile(io.BufferedReader(Parts(parts), BLOCK))
        except Exception as error:  # what a damaged file raises depends on the damage
            raise InputError(f"{name} is not a zip file, or a damaged one ({error}): download it again") from error

    def members(self):
        """Yield (path, bytes) of all files. InputError for links and encrypted ones."""
        for info in self.file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{self.name} is refused: {info.filename!r} in it is a link or a device")
            if info.flag_bits & 1:
                mend = "unpack it with `7z x` and the password that you were given, then --convert that folder"
                raise InputError(f"{self.name} asks for a password ({info.filename!r} is encrypted): {mend}")
            if not info.is_dir():
                yield info.filename, info.file_size

    def extract(self, to, threads):
        """Write what is not there yet; yield the bytes of each file. RunError if the archive is damaged."""

        def is_left(info):
            return not info.is_dir() and not _is_done(to / info.filename, info.file_size)

        def write(info):
            path = to / info.filename
            try:
                member = self.file.open(info)
            except Exception as error:  # what a damaged file raises depends on the damage
                raise _damaged(self.name, info.filename, error) from error
            with member:  # zipfile has a lock of its own; unpacking goes on side by side
                return _write(member, path, info.file_size, self.name)

        yield from in_order(write, filter(is_left, self.file.infolist()), threads)


class Tar:
    """A tar.gz file, which has to be unpacked once to know what is in it."""

    def __init__(self, name, parts):
        self.name, (self.path,) = name, parts

    def members(self):
        """Yield (path, bytes) of all files. InputError for links, devices, and when it is damaged anywhere."""
        try:
            with Gzip(self.path) as file, progress_bar(desc=f"reading {self.name}", unit=" files", delay=2) as bar:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in archive:
                        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                            raise InputError(f"{self.name} is refused: {member.name!r} in it is a link or a device")
                        if not member.isdir():
                            yield _tar_path(member), member.size
                        bar.update()
                while file.read(BLOCK):  # to the end, where the checksum is
                    pass
        except InputError:
            raise
        except Exception as error:  # what a damaged file raises depends on the damage
            what = f"is not a tar.gz file, or a damaged one ({error})"
            raise InputError(f"{self.name} {what}: download it again") from error

    def extract(self, to, threads):
        """Write what is not there yet; yield the bytes of each file. A stream cannot be shared among threads."""
        with Gzip(self.path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                path = to / _tar_path(member)
                if not member.isdir() and not _is_done(path, member.size):
                    yield _write(archive.extractfile(member), path, member.size, self.name)


def _tar_path(member):
    return member.name.removeprefix("./")


class Gzip(gzip.GzipFile):
    """A gzip file of which no more than LARGEST_READ bytes are read at a time: so much, tarfile reads as it is told."""

    def read(self, size=-1):
        if not 0 <= size <= LARGEST_READ:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


class Parts(io.RawIOBase):
    """Files, one after the other, to be read like one."""

    def __init__(self, paths):
        self.files = [open(path, "rb", buffering=0) for path in paths]  # noqa: SIM115
        sizes = [os.path.getsize(path) for path in paths]
        self.starts = [0, *itertools.accumulate(sizes)]
        self.position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.starts[-1]}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self.position = base + offset
        return self.position

    def readinto(self, buffer):
        """Bytes of one part: who wants more asks again."""
        if self.position >= self.starts[-1]:
            return 0
        part = bisect.bisect_right(self.starts, self.position) - 1
        self.files[part].seek(self.position - self.starts[part])
        count = self.files[part].readinto(memoryview(buffer)[: self.starts[part + 1] - self.position])
        self.position += count
        return count

    def close(self):
        for file in self.files:
            file.close()
        super().close()
