"""What a user names on the command line: audio files, folders and lists of them."""

import os
from pathlib import Path

from corpora.audio import SUFFIXES, find_audio
from corpora.lists import leads_out, read_lines, refuse_to_leave
from tools import InputError


def audio_of(path, root=None, anywhere=False):
    """The audio files that a path stands for: itself, all in a folder, or those of a list (.txt, .lst, .list).

    A list has a path a line, alone or behind a speaker, or two behind a trial's label; they start from root, or from
    the folder of the list, and do not leave it unless they may lead ``anywhere``. InputError when a list cannot be
    understood, or a folder holds no audio.
    """
    given, path = os.fspath(path), Path(path)
    if path.is_dir():
        files = [str(file) for file in find_audio(path, SUFFIXES)]
        if not files:
            raise InputError(f"{path} holds no audio ({', '.join(sorted(SUFFIXES))})")
        return files
    if path.suffix.lower() not in (".txt", ".lst", ".list"):
        return [given]
    flag, root, files = "--root" if root else "the folder of the list", Path(root or path.parent), []
    for number, fields in read_lines(path, "list")[0]:
        line = " ".join(fields)
        if len(fields) == 1 or os.path.isfile(root / line):  # a path with spaces
            fields = ["", line]
        elif len(fields) > 3 or Path(fields[0]).suffix.lower() in SUFFIXES:
            named = f"{root / line[:200]} does not exist"
            raise InputError(f"{path} line {number}: {named}; expected a path, alone or behind a speaker")
        for file in fields[1:]:
            if leads_out(file) and not anywhere:
                raise refuse_to_leave(path, number, file, flag)
            files.append(str(root / file))
    return list(dict.fromkeys(files))
