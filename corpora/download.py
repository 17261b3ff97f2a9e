"""Download VoxCeleb, its trial lists, MUSAN and RIRS_NOISES: transfers continue, and the content is checked."""

import getpass
import os
import re
import shutil
import sys
import time
import zlib
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from corpora.lists import TrialList
from corpora.unpack import PUBLISHED
from tools import InputError, RunError, check_writable, file_hash, progress_bar, read_text

FILES = {name: (group, md5, url) for group, name, md5, url in PUBLISHED if url != "-"}
CHOICES = [*dict.fromkeys(group for group, *_ in FILES.values() if group != "-"), *FILES]
APPLY = "https://mm.kaist.ac.kr/datasets/voxceleb"
TIMEOUT = 30  # seconds without a byte
TRIES, PAUSE = 5, 2  # tries in a row that bring nothing new, and seconds between them
SECRETS = r"(?<=//)[^/\s]*@|\?\S*"  # the account and the query of a URL, which may hold a key: not for messages


def download(what, to, user=None, mirror=None, any_md5=False):
    """Download groups of FILES, or single ones, to the folder ``to`` -> (number of files, of new files).

    Whole files are kept and parts continued. user: sent, with the password, for VoxCeleb's archives only. mirror: what
    all URLs begin with, or a file of lines <file name> <URL>. InputError: access refused, no room, a wrong mirror file;
    a file that is not there (404), after the others have been transferred. RunError: no answer, a web page, or, unless
    any_md5, another MD5 or number of trials than published.
    """
    to, moved = Path(to), read_mirror(mirror)
    check_writable(to, "--to")
    chosen = [name for name, (group, *_) in FILES.items() if group in what or name in what]
    wanted = []
    for name in progress_bar(iterable=chosen, desc="MD5", unit=" files"):
        is_here = (to / name).is_file()
        problem = is_here and fault(to / name, name, any_md5)
        if problem:
            tqdm.write(f"{to / name} is not the published file ({problem}): it is downloaded again", file=sys.stderr)
        wanted += [name] if problem or not is_here else []
    password = os.environ.get("VOXCELEB_PASSWORD", "")
    if user and not password and sys.stdin.isatty():
        password = getpass.getpass(f"password of {user}: ")
    auth = (user.encode(), password.encode()) if user else None
    files = [(moved.get(name, FILES[name][2]), to / name, auth if name.startswith("vox") else None) for name in wanted]
    sizes, missing = {}, []
    for file in files:
        try:
            sizes[file] = fetch(*file)[1:]
        except MissingFile as error:
            missing.append(str(error))
    need, free = sum(size - done for size, done in sizes.values()), shutil.disk_usage(to).free
    if need > free:
        raise InputError(f"--to {to} has {free / 1e9:.1f} GB free, the download needs {need / 1e9:.1f} GB")
    with progress_bar(total=sum(size for size, _ in sizes.values()), unit="B", unit_scale=True) as bar:
        for url, path, account in sizes:
            part, *_ = fetch(url, path, account, bar)
            os.replace(part, path)
            if problem := fault(path, path.name, any_md5):
                raise RunError(f"{path} is not the published file ({problem}): repeat the command to download it "
                               "again, give another URL with --from, or accept it by --any_md5")  # fmt: skip
    if missing:
        raise InputError("\n".join(missing))
    return len(chosen), len(wanted)


class MissingFile(InputError):
    """A file is not where it should be; others may be."""


def read_mirror(mirror):
    """{file name: URL} of a mirror, {} of None."""
    if mirror and "://" in mirror:
        return {name: f"{mirror}{'' if mirror[-1] in '/=' else '/'}{name}" for name in FILES}
    lines = [line.split() for line in read_text(mirror, "--from").splitlines() if line.strip()] if mirror else []
    if wrong := [line for line in lines if len(line) != 2 or line[0] not in FILES]:
        got = re.sub(SECRETS, "", " ".join(wrong[0]))
        raise InputError(f"--from {mirror}: expected '<file name> <URL>', got '{got}' (names: --help)")
    return dict(lines)


def fault(path, name, any_md5):
    """What is wrong with a file that should be the published one of that name, in words, or ""."""
    if any_md5 and FILES[name][0] != "lists":
        return ""  # not read for nothing
    try:
        found = str(len(TrialList(path))) if FILES[name][0] == "lists" else file_hash(path, "md5")
    except InputError as error:
        return str(error)
    return "" if any_md5 or found == FILES[name][1] else f"MD5 or number of trials {found}, not {FILES[name][1]}"


def fetch(url, path, auth, bar=None):
    """Download a URL into a .part beside ``path``, continuing one that is there -> (part, size or 0, bytes there).

    Without a bar, only ask for the size. The part's name has a checksum of size and ETag in it, which tells whether the
    file has changed on the server. RunError after some tries that bring nothing new.
    """
    name, done, furthest, failed = re.sub(SECRETS, "", f"{path.name} from {url}"), 0, 0, 0
    while failed < TRIES:
        old = next(path.parent.glob(f"{path.name}.*.part"), None)
        start = max(0, old.stat().st_size - 1) if old else 0  # the last byte again: nothing would be an error (416)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        try:
            answer = requests.get(url, auth=auth, headers=headers, stream=True, timeout=TIMEOUT)
            status = answer.status_code
            if status == 404:
                raise MissingFile(f"{name}: 404 {answer.reason}: give another URL with --from")
            if status in (401, 403):
                account = f"check --user and VOXCELEB_PASSWORD (both come from {APPLY}), or "
                account *= path.name.startswith("vox")
                raise InputError(f"{name}: {status} {answer.reason}: {account}give another URL with --from")
            if status != 416 or not old:
                answer.raise_for_status()
            if "html" in answer.headers.get("Content-Type", ""):
                raise RunError(f"{name}: this is a web page, not the file: read in a browser what it says")
            continues = re.fullmatch(rf"bytes {start}-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            size = int(continues[1]) if continues else answer.raw.length_remaining or 0
            version = f"{size} {answer.headers.get('ETag') or answer.headers.get('Last-Modified')}"
            part = path.with_name(f"{path.name}.{zlib.crc32(version.encode()):08x}.part")
            if old not in (None, part):
                old.unlink()
                raise requests.ConnectionError("it has changed on the server")
            start = start if continues else 0
            if bar is None:  # a bar of unknown length is false
                return part, size, start
            bar.set_description(path.name, refresh=False)
            with open(part, "ab") as file:
                file.truncate(start)
                bar.update(start - done)
                done = start
                # Raw, because some servers declare a .tar.gz as compressed for the transfer: it would be unpacked.
                for block in answer.raw.stream(1 << 16, decode_content=False):
                    done += file.write(block)
                    bar.update(len(block))
            return part, size, done
        except (requests.RequestException, urllib3.exceptions.HTTPError) as caught:
            error = re.sub(SECRETS, "", str(caught))
        failed, furthest = 0 if done > furthest else failed + 1, max(furthest, done)
        time.sleep(PAUSE)
    raise RunError(f"{name}: {error}; {done} bytes are here: repeat the command to continue, or "
                   "give another URL with --from")  # fmt: skip
