"""Which of VoxCeleb's trial lists this is, told from what is in it, and the results that belong to it."""

import hashlib
import re
from typing import NamedTuple

# A path of VoxCeleb1, whatever stands before it and however its audio is coded.
VOXCELEB1 = re.compile(r"(?:^|[/\\])(id1\d{4})[/\\]([\w-]{11})[/\\](\d{5})\.\w+$", re.ASCII)
# The 40 of VoxCeleb1 test, whose names begin with E (vox1_meta.csv); Vox1-O is of these alone.
TEST_SPEAKERS = range(10270, 10310)


class KnownList(NamedTuple):
    """A published list: its sizes, and the EERs in % that others publish for it, [(system, alone, with AS-norm)].

    ``target``, ``nontarget``: None where they are not known; an EER None where it is not published.
    """

    name: str
    file: str
    trials: int
    target: int | None
    nontarget: int | None
    published: list

    def results(self):
        """The published EERs in words, or "" where none are known."""
        said = []
        for system, alone, normalised in self.published:
            numbers = [f"{alone}"] * (alone is not None) + [f"{normalised} with AS-norm"] * (normalised is not None)
            said.append(f"{system} {', '.join(numbers)}")
        return "; ".join(said)


LARGE = "wespeaker C=1024"
# Sizes: PaddleSpeech, examples/voxceleb/README.md; the total of Vox1-E cleaned is widely quoted. EERs: as the systems'
# own pages give them, trained on VoxCeleb2 dev but for SpeechBrain (VoxCeleb1 + 2) and pyannote (VoxCeleb).
KNOWN_LISTS = [
    KnownList("Vox1-O original", "veri_test.txt", 37720, 18860, 18860, [("TaoRuijie C=1024", 1.00, None)]),
    KnownList("Vox1-O cleaned", "veri_test2.txt", 37611, 18802, 18809, [
        ("TaoRuijie C=1024", 0.96, 0.86), ("SpeechBrain", 0.90, 0.80), ("ModelScope", 0.862, None),
        ("3D-Speaker", 0.866, None), ("wespeaker C=512", 1.069, None), (LARGE, 0.856, None),
        (f"{LARGE}, large margin", None, 0.728), ("pyannote", 2.8, None)]),
    KnownList("Vox1-E original", "list_test_all.txt", 581480, 290743, 290737, []),
    KnownList("Vox1-E cleaned", "list_test_all2.txt", 579818, None, None, [
        ("TaoRuijie C=1024", None, 1.18), ("wespeaker C=512", 1.209, None), (LARGE, 1.072, None),
        (f"{LARGE}, large margin", None, 0.929)]),
    KnownList("Vox1-H original", "list_test_hard.txt", 552536, 276270, 276266, []),
    KnownList("Vox1-H cleaned", "list_test_hard2.txt", 550894, 275488, 275406, [
        ("TaoRuijie C=1024", None, 2.17), ("wespeaker C=512", 2.310, None), (LARGE, 2.059, None),
        (f"{LARGE}, large margin", None, 1.721)]),
]  # fmt: skip


class Identity(NamedTuple):
    """What a trial list turned out to be: ``known``, a KnownList, or None; then the ``nearest`` in size, if it is of
    VoxCeleb1.

    ``fingerprint``: SHA-256 of its normalised trials, the same for all forms of one list.
    """

    known: KnownList | None
    nearest: KnownList | None
    fingerprint: str


def identify(labels, enrol, test):
    """The Identity of a trial list, from its columns (N each): the order of its lines, folders before the speaker's,
    and the kind of files do not matter; its name does not either.
    """
    whole = {file: VOXCELEB1.search(file) for file in {*enrol, *test}}
    name = {file: "/".join(found.groups()) if found else file for file, found in whole.items()}
    lines = sorted(f"{label} {name[a]} {name[b]}\n" for label, a, b in zip(labels, enrol, test))
    fingerprint = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    if not whole or not all(whole.values()):
        return Identity(None, None, fingerprint)
    target = sum(label == 1 for label in labels)
    speakers = {int(found[1][2:]) for found in whole.values()}
    for known in KNOWN_LISTS:
        sizes_fit = (known.target, known.nontarget) in ((target, len(lines) - target), (None, None))
        speakers_fit = "Vox1-O" not in known.name or speakers <= set(TEST_SPEAKERS)
        if known.trials == len(lines) and sizes_fit and speakers_fit:
            return Identity(known, None, fingerprint)
    return Identity(None, min(KNOWN_LISTS, key=lambda known: abs(known.trials - len(lines))), fingerprint)


def needs_all_of_voxceleb1(known):
    """Whether the audio of VoxCeleb1 dev has to be there beside that of VoxCeleb1 test."""
    return "Vox1-O" not in known.name
