"""Check the downloaded archives of VoxCeleb, MUSAN and RIRS_NOISES against the published MD5s, then unpack them."""

import functools
import io
import itertools
import pathlib
import shutil
import sys
import tarfile
import zipfile
import zlib

from tqdm import tqdm

from corpora.audio import check_folder
from tools import InputError, RunError, check_writable, file_hash, in_order, progress_bar, whole_file

# [[group, file, MD5 (of a list: number of trials), URL]], "-" where there is none. MD5s: voxceleb_trainer's lists
# (fileparts.txt, files.txt, augment.txt); URLs: its lists, and the download_data.sh of wespeaker.
PUBLISHED = [line.split() for line in pathlib.Path(__file__).with_name("published.txt").read_text().splitlines()]
MD5 = {name: md5 for group, name, md5, _ in PUBLISHED if group != "lists"}
# Paths in VoxCeleb's archives begin with wav/ or dev/aac/, those in the others with musan/ or RIRS_NOISES/.
FOLDERS = {"vox1": "voxceleb1", "vox2": "voxceleb2"}


def unpack(source, to, threads=4, any_md5=False):
    """Unpack all known archives in the folder ``source`` into ``to`` -> (number of files, number of new files).

    They land in voxceleb1/wav, voxceleb2/dev/aac, musan and RIRS_NOISES, where the defaults of training are; trial
    lists are copied to voxceleb1. Files that exist with the right size are skipped, so the same call continues after an
    interruption. InputError: missing parts, a wrong MD5 (unless any_md5), a path that leaves ``to``. RunError: a
    damaged archive, a full disk.
    """
    source, to = pathlib.Path(source), pathlib.Path(to)
    check_folder(source, "--unpack")
    known = {name: list(parts) for name, parts in itertools.groupby(MD5, lambda part: part.partition("_part")[0])}
    archives = {name: parts for name, parts in known.items() if any((source / part).is_file() for part in parts)}
    missing = [part for parts in archives.values() for part in parts if not (source / part).is_file()]
    lists = [source / name for group, name, *_ in PUBLISHED if group == "lists" and (source / name).is_file()]
    if missing or not (archives or lists):
        what = ", ".join(missing) or f"all of {', '.join(known)}"
        raise InputError(f"--unpack {source} lacks {what}: download what is missing")
    others = {path.name for path in source.iterdir() if path.is_file()} - MD5.keys() - {path.name for path in lists}
    if others := sorted(name for name in others if not name.startswith(".")):
        names = f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}"
        tqdm.write(f"--unpack {source}: left alone, for it has no published name: {names}", file=sys.stderr)
    if not any_md5:
        parts = progress_bar(iterable=list(itertools.chain(*archives.values())), desc="MD5", unit=" files")
        if wrong := [part for part in parts if file_hash(source / part, "md5") != MD5[part]]:
            raise InputError(f"--unpack {source}: wrong MD5, download again or give --any_md5: {', '.join(wrong)}")
    check_writable(to, "--to")
    copies = [(path.name, path.stat().st_size, functools.partial(open, path, "rb")) for path in lists]
    is_new = [extract_member(source, to / "voxceleb1", each) for each in copies]
    for name, parts in archives.items():
        extract = functools.partial(extract_member, name, to / FOLDERS.get(name[:4], ""))
        try:
            with io.BufferedReader(Parts([source / part for part in parts]), 1 << 20) as file:
                members = progress_bar(iterable=list_members(file, name), desc=f"unpacking {name}", unit=" files")
                # A tar.gz can only be read from beginning to end; a zip by several threads.
                is_new += map(extract, members) if name.endswith(".tar.gz") else in_order(extract, members, threads)
        except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            raise RunError(f"{name} cannot be unpacked ({error}): download it again, or make room") from error
    return len(is_new), sum(is_new)


def list_members(file, name):
    """(path, size, function that opens it) of each file in a zip or tar.gz archive."""
    if name.endswith(".tar.gz"):
        tar = tarfile.open(fileobj=file, mode="r:gz")  # noqa: SIM115
        return ((each.name, each.size, functools.partial(tar.extractfile, each)) for each in tar if each.isfile())
    packed = zipfile.ZipFile(file)
    files = (each for each in packed.infolist() if not each.is_dir())
    return [(each.filename, each.file_size, functools.partial(packed.open, each)) for each in files]


def extract_member(archive, folder, member):
    """Write one file, whole or not at all, unless it exists -> whether it is new."""
    path, size, open_member = member
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"{archive} is refused: the path {path!r} in it leaves the folder")
    is_new = not (folder / path).is_file() or (folder / path).stat().st_size != size
    if is_new:
        with open_member() as content, whole_file(folder / path, sync=False) as out:
            shutil.copyfileobj(content, out)
    return is_new


class Parts(io.RawIOBase):
    """A read-only file object of the parts of an archive as one file."""

    def __init__(self, paths):
        self.paths = paths
        self.ends = list(itertools.accumulate(path.stat().st_size for path in paths))
        self.position = 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.ends[-1]}[whence]
        return self.position

    def readinto(self, buffer):
        part = sum(end <= self.position for end in self.ends[:-1])
        left = self.ends[part] - self.position  # in this part; io reads on in the next
        with open(self.paths[part], "rb", buffering=0) as file:
            file.seek(-left, io.SEEK_END)
            count = file.readinto(memoryview(buffer)[:left])
        self.position += count
        return count
