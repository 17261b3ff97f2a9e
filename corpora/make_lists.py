"""Lists out of recordings: who speaks in which file, speakers held out, and trials drawn from them.

    found = from_folder(root)                        # or from_csv, from_kaldi: [(speaker, path from root)], sorted
    write_lists(found, root, "lists/own", 20)        # train_list.txt without those 20 speakers, trials.txt of theirs

The same recordings and the same seed give the same lists, whatever the order in which the disk names them.
"""

import csv
import os
import pathlib
import posixpath
import re
import sys

from tqdm import tqdm

from corpora.audio import AUDIO_SUFFIXES, Folder, check_folder
from corpora.convert import SUFFIXES
from corpora.lists import TrainingList, leads_out
from corpora.trials import hold_out, make_trials
from tools import InputError, check_writable, progress_bar, read_text, write_text

# What the columns are called: in lists of ours, Common Voice's, VoxCeleb's vox1_meta.csv and vox2_meta.csv.
SPEAKER_COLUMNS = ("speaker", "speaker_id", "spk", "spk_id", "client_id", "voxceleb1 id", "voxceleb2 id")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "wav", "audio")
SEX_COLUMNS = ("sex", "gender")
SEX = {"f": "f", "female": "f", "m": "m", "male": "m"}
FORMATS_TO_CONVERT = SUFFIXES - AUDIO_SUFFIXES
DEFAULT_SHARE, DEFAULT_MOST = 10, 100  # one speaker in so many is held out, and at most so many


# ---- who speaks where ------------------------------------------------------------------------------------------------


def from_folder(root):
    """[(speaker, path)] of <root>/<speaker>/<file> and <root>/<speaker>/<session>/<file>, sorted.

    Hidden files are left out. So are files that lie in no speaker's folder and folders that are links, which is said.
    InputError if there is nothing, a single speaker, a path with blanks in it, or a folder that cannot be read.
    """

    def complain(error):
        raise InputError(f"--lists {root}: {error.filename} cannot be read ({error.strerror})") from error

    check_folder(root, "--lists")
    found, loose, foreign, linked = [], [], [], []
    walk = progress_bar(iterable=os.walk(root, onerror=complain), desc="looking", unit=" folders", delay=2)
    for folder, folders, names in walk:  # does not follow links, which may go in circles
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = pathlib.Path(folder).relative_to(root).as_posix()
        linked += [f"{inside}/{name}" for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in AUDIO_SUFFIXES | FORMATS_TO_CONVERT:
                continue
            path = name if inside == "." else f"{inside}/{name}"
            kind = foreign if suffix in FORMATS_TO_CONVERT else loose if inside == "." else found
            kind.append(path)
    if not found and foreign:
        raise InputError(f"--lists {root} has {len(foreign)} files such as {min(foreign)}, which cannot be read: "
                         "convert them to wav or flac first")  # fmt: skip
    if not found:
        links = f"; {len(linked)} folders are links, which are not followed" if linked else ""
        raise InputError(f"--lists {root} has no <speaker>/<file> or <speaker>/<session>/<file> with audio "
                         f"({', '.join(sorted(AUDIO_SUFFIXES))}){links}")  # fmt: skip
    found = sorted((path.split("/", 1)[0], path) for path in found)
    if found[0][0] == found[-1][0]:
        raise InputError(f"--lists {root} has a single speaker, {found[0][0]}: give the folder that holds a folder for "
                         "each speaker")  # fmt: skip
    deep = [path for _, path in found if path.count("/") > 2]
    for odd, why in (
        (loose, "files lie in no speaker's folder and are left out"),
        (foreign, "files are of a format that cannot be read and are left out (--convert them)"),
        (linked, "folders are links and are left out: give a folder that has the files themselves"),
        (deep, f"files lie deeper than <speaker>/<session>/<file>: is {root} a folder too high?"),
    ):
        if odd:
            tqdm.write(f"{root}: {len(odd)} {why}; such as {min(odd)}", file=sys.stderr)
    refuse_blanks(found, root)
    return found


def from_csv(path, root, columns=None):
    """[(speaker, path)] of a table with commas, semicolons or tabs, its paths starting from root or lying in it.

    columns: (of the speaker, of the path), as names in the header, or as numbers 1, 2, ... where there is none; None:
    as the header tells or, where it does not, the first and the second. InputError naming the line.
    """
    rows = read_table(path, "--csv")
    speaker, file, first = columns_of(path, rows[0][1], columns)
    found = []
    for number, fields in rows[first:]:
        if len(fields) <= max(speaker, file) or not fields[speaker] or not fields[file]:
            raise InputError(f"--csv {path} line {number} has no field {max(speaker, file) + 1}, or nothing in it")
        found.append((fields[speaker], inside_of(root, fields[file], f"--csv {path} line {number}"), number))
    return once_each(found, root, f"--csv {path}")


def columns_of(path, header, columns):
    """(column of the speaker, that of the path, rows before the first of the content), from 0."""
    if columns and all(re.fullmatch(r"[1-9]\d{0,3}", column) for column in columns):
        return int(columns[0]) - 1, int(columns[1]) - 1, 0
    if columns:
        absent = [column for column in columns if column not in header]
        if absent:
            raise InputError(f"--csv {path} has no column {absent[0]!r}; its first line: {', '.join(header)[:200]}")
        return header.index(columns[0]), header.index(columns[1]), 1
    speaker, file = column_named(header, SPEAKER_COLUMNS), column_named(header, PATH_COLUMNS)
    if speaker is not None and file is not None:
        return speaker, file, 1
    if len(header) == 2 and os.path.splitext(header[1])[1].lower() in SUFFIXES:
        return 0, 1, 0
    raise InputError(f"--csv {path}: which columns are the speaker and the path? Say so with --columns (its first "
                     f"line: {', '.join(header)[:200]})")  # fmt: skip


def from_kaldi(folder, root):
    """[(speaker, path)] of Kaldi's wav.scp and utt2spk; their paths start from root or lie in it.

    A line of wav.scp may be a command, which is refused: nothing in a file is ever run. InputError naming the line.
    """
    folder = pathlib.Path(folder)
    if (folder / "segments").exists():
        raise InputError(f"--kaldi {folder} has segments: only whole files can be listed; cut them into files first")
    speaker_of, found = {}, []
    for number, (utterance, speaker) in two_fields(folder / "utt2spk"):
        if " " in speaker or speaker_of.setdefault(utterance, speaker) != speaker:
            raise InputError(f"{folder / 'utt2spk'} line {number}: expected one speaker for {utterance}")
    for number, (utterance, file) in two_fields(folder / "wav.scp"):
        place = f"{folder / 'wav.scp'} line {number}"
        if "|" in file:
            raise InputError(f"{place} is a command, which is never run: write its result to a file and name that")
        if re.search(r"\.ark:\d+$", file):
            raise InputError(f"{place} points into an archive: write its audio to files (wav-copy) and name those")
        if utterance not in speaker_of:
            raise InputError(f"{place}: {utterance} has no speaker in {folder / 'utt2spk'}")
        found.append((speaker_of[utterance], inside_of(root, file, place), number))
    return once_each(found, root, str(folder / "wav.scp"))


def two_fields(path):
    """Yield (line number, [first field, all the rest]) of a file of Kaldi's."""
    for number, line in enumerate(read_text(path, "--kaldi").splitlines(), 1):
        fields = line.split(maxsplit=1)
        if len(fields) == 1:
            raise InputError(f"{path} line {number}: expected two fields, got {fields[0][:200]!r}")
        if fields:
            yield number, [fields[0], fields[1].strip()]


def read_table(path, flag):
    """[(line number, fields)] of a table with tabs, commas or semicolons: whichever its first line has, in that order.

    Blanks around fields do not count: VoxCeleb's own tables have them.
    """
    lines = read_text(path, flag).splitlines()
    separator = next((each for each in "\t,;" if lines and each in lines[0]), ",")
    try:
        # Tables with tabs have no quotes around fields; in Common Voice's, sentences begin with a quotation mark.
        quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        reader = csv.reader(lines, delimiter=separator, quoting=quoting)
        rows = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise InputError(f"{flag} {path} is not a table ({error})") from error
    rows = [(number, fields) for number, fields in rows if any(fields)]
    if not rows:
        raise InputError(f"{flag} {path} is empty")
    return rows


def column_named(header, names):
    """Where the first of the names stands in a header, or None; capitals do not count."""
    lowered = [name.lower() for name in header]
    return next((lowered.index(name) for name in names if name in lowered), None)


def inside_of(root, file, place):
    """The path of a file from root, where it has to lie. InputError beginning with the place where it was named."""
    path = file.replace("\\", "/") if os.name == "nt" else file
    if os.path.isabs(path):
        path = os.path.relpath(os.path.normpath(path), os.path.abspath(root))
    if leads_out(path):
        raise InputError(f"{place}: {file[:200]} does not lie in {root}: give --lists a folder that holds all files")
    return posixpath.normpath(path)


def once_each(found, root, named):
    """[(speaker, path)], sorted, of (speaker, path, line number); a file named twice is taken once.

    InputError for a file of two speakers, blanks in a path, or files that do not exist.
    """
    check_folder(root, "--lists")
    if not found:
        raise InputError(f"{named} names no file")
    speaker_of, line = {}, {}
    for speaker, file, number in found:
        line.setdefault(file, number)
        if speaker_of.setdefault(file, speaker) != speaker:
            raise InputError(f"{named} line {number}: {file} is of {speaker}, but of {speaker_of[file]} in line "
                             f"{line[file]}")  # fmt: skip
    refuse_blanks([(speaker, file) for file, speaker in speaker_of.items()], named)
    missing = Folder(root).missing(list(speaker_of))
    if missing:
        first = min(missing, key=line.get)
        raise InputError(f"{named} line {line[first]}: {os.path.join(root, first)} does not exist ({len(missing)} of "
                         f"{len(speaker_of)} files are missing); do its paths start from --lists {root}?")  # fmt: skip
    return sorted((speaker, file) for file, speaker in speaker_of.items())


def refuse_blanks(found, named):
    """InputError for the first name that a line "<speaker> <path>" could not hold."""
    odd = [name for pair in found for name in pair if name.split() != [name]]
    if odd:
        raise InputError(f"{named}: {odd[0]!r} has a blank in it, which lists cannot hold ({len(odd)} such names): "
                         "rename it, say with _ for every blank")  # fmt: skip
    for name in (name for pair in found for name in pair):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{named}: the name {name!a} is no text in UTF-8: rename it") from error


def read_sex(path):
    """{speaker: "f" or "m"} of a table with columns for the speaker and the sex, such as VoxCeleb's vox1_meta.csv.

    Speakers of another or unknown sex are left out. InputError if there are no such columns.
    """
    rows = read_table(path, "--metadata")
    header = rows[0][1]
    speaker, sex = column_named(header, SPEAKER_COLUMNS), column_named(header, SEX_COLUMNS)
    if speaker is None or sex is None:
        raise InputError(f"--metadata {path} needs columns for the speaker and the sex (speaker, sex); its first line: "
                         f"{', '.join(header)[:200]}")  # fmt: skip
    rows = [fields for _, fields in rows[1:] if len(fields) > max(speaker, sex)]
    known = {fields[speaker]: SEX[fields[sex].lower()] for fields in rows if fields[sex].lower() in SEX}
    if not known:
        raise InputError(f"--metadata {path} has no sex among {', '.join(sorted(SEX))} in its column {header[sex]!r}")
    return known


# ---- the lists -------------------------------------------------------------------------------------------------------


def write_lists(found, root, folder, count=None, sex=None, seed=0):
    """Write train_list.txt and, of ``count`` speakers held out of it, trials.txt -> (TrainingList, TrialList or None).

    found: [(speaker, path)]; sex: {speaker: "f" or "m"}, for trials between speakers of one sex: then only speakers
    who have one are held out. count None: a tenth of the speakers, 2 to 100; 0, or too few: no trials. Lists that
    are there already and say something else are left alone: InputError.
    """
    folder = pathlib.Path(folder)
    listing = TrainingList.of(root, *zip(*found))
    if count is None:
        # Of three speakers, two are of one sex; and two must be left to train on.
        least = 2 if sex is None else 3
        count = max(least, min(DEFAULT_MOST, len(listing.speakers) // DEFAULT_SHARE))
        count = 0 if least + 2 > len(listing.speakers) else count
    if count < 0:
        raise InputError(f"--valid_speakers must be 0 or more, not {count}")
    kept, trials = listing, None
    if count:
        if sex is not None and sex.keys().isdisjoint(listing.speakers):
            raise InputError(f"--metadata knows none of the speakers, such as {listing.speakers[0]}")
        kept, held = hold_out(listing, count, seed, among=sex)
        trials = make_trials(held, folder / "trials.txt", seed, sex=sex)
    texts = {"train_list.txt": kept.text()} | ({"trials.txt": trials.text()} if trials else {})
    for name, text in texts.items():
        if (folder / name).exists() and read_text(folder / name) != text:
            raise InputError(f"--to {folder} holds another {name}: give another folder, or move it away")
    check_writable(folder, "--to")
    for name, text in texts.items():
        if not (folder / name).exists():
            write_text(folder / name, text)
    return kept, trials
