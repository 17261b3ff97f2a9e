"""The way from a download to training, as the README's lines go it, and what a fault on it has to make them say.

    way = Way(folder)                                             # generates the download
    way.stops("download", "a part is missing", "--unpack", ..., words=["lacks vox2_dev_aac_partac"])
    way.readme_line("download", "python prepareData.py --unpack", "--any_md5")

Every one of them prints a row of the table: the stage, what was planted, what found it, and its words, or FAILED.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch._dynamo  # optimizers ask for it: once here, not in every fork  # noqa: F401
from conftest import live
from make_download import make_download

import prepareData
import trainSpeakerNet
from corpora import unpack

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = unpack.ARCHIVES
SCRIPTS = {"prepareData.py": prepareData, "trainSpeakerNet.py": trainSpeakerNet}


class Said(NamedTuple):
    status: int
    printed: str
    complained: str


class Way:
    """A folder with downloads/ and what becomes of them in data/; the rows of the table."""

    def __init__(self, home):
        self.home, self.downloads, self.data = home, home / "downloads", home / "data"
        self.part = home / "part.txt"  # of the trials, for evaluations
        self.planted, self.failures = [], 0
        make_download(self.downloads)
        self.archives = sorted(path.name for path in self.downloads.iterdir() if path.suffix != ".txt")
        # For the forks, what was generated is what was published.
        unpack.ARCHIVES = {
            name: {part: self.md5(part) for part in parts if part in self.archives} or parts
            for name, parts in PUBLISHED.items()
        }
        text = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text())
        self.readme = [line.split("  #")[0] for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
                       for line in block.splitlines()]  # fmt: skip
        self.folders = {
            "/data/voices": self.data / "voxceleb2/wav",  # a folder of speakers like any other
            "/data": self.data, "downloads": self.downloads, "exps": home / "exps", "lists/voices": home / "lists",
            "veri_test2.txt list_test_all2.txt list_test_hard2.txt": self.part,
        }  # fmt: skip

    def md5(self, name):
        return hashlib.md5((self.downloads / name).read_bytes()).hexdigest()

    # ---- commands ----------------------------------------------------------------------------------------------------

    def fork(self, script, *arguments, prepare=None):
        """Run a script of ours in a fork -> Said. prepare: called in it before."""
        sys.stdout.flush()
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            live(script, SCRIPTS[script].main, arguments, prepare)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed, complained = (file.seek(0) or file.read().decode() for file in (out, err))
        return Said(status, printed, complained)

    def line(self, begin):
        """The README's first line that begins so, with our folders."""
        found = [line for line in self.readme if line.startswith(begin)]
        assert found, f"README.md has no line that begins with {begin}"
        variables = next(line for line in self.readme if line.startswith("V=")) + "; "
        line = variables * ("$V" in found[0]) + found[0].replace("model_0080", "model_0001")
        folder = "|".join(sorted(map(re.escape, self.folders), key=len, reverse=True))
        return re.sub(rf"(?<![\w/])({folder})(?![\w.])", lambda match: str(self.folders[match[1]]), line)

    def again(self, begin, *flags):
        """The README's line in a fork: nothing but ``python script flags``."""
        _, script, *arguments = shlex.split(self.line(begin))
        return self.fork(script, *arguments, *flags)

    def readme_line(self, stage, begin, *flags, words=()):
        """The README's line as a newcomer would run it; it has to end well, and to say these words."""
        line = self.line(begin).replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        self.shell(stage, begin, shlex.join(["bash", "-c", f"{line} {shlex.join(map(str, flags))}"]), words)

    def shell(self, stage, name, command, words=()):
        ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=300)
        lines = [line.strip() for line in (ended.stdout or ended.stderr).strip().splitlines()] or [""]
        said = next((line for line in lines if all(word in line for word in words)), lines[-1])
        problem = f"exit status {ended.returncode}: {ended.stderr[-500:]}" * (ended.returncode != 0)
        self.row(stage, "", name, said, problem or lacking(words, ended.stdout))

    # ---- what they have to say ---------------------------------------------------------------------------------------

    def row(self, stage, planted, found_by, said, problem=""):
        said = re.sub(r"^(prepareData|trainSpeakerNet)\.py: ", "", said.replace(f"{self.home}/", ""))
        problem = problem.replace(f"{self.home}/", "")
        self.planted += [(stage, planted)] * bool(planted)
        self.failures += bool(problem)
        cut = said if len(said) < 240 else f"{said[:140]} ... {said[-90:]}"
        words = f"FAILED: {problem} in: {said}" if problem else cut
        print(f"{stage} | {planted or 'nothing'} | {found_by.strip()} | {words}", flush=True)

    def stops(self, stage, planted, *arguments, words, status=2, archive=None, prepare=None, script="prepareData.py"):
        """A command has to stop with this status and one line with these words, which names no other archive."""
        ended = self.fork(script, *arguments, prepare=prepare)
        lines = [line for line in re.split(r"[\r\n]+", ended.complained) if line.strip() and "%|" not in line]
        said = " ".join(lines)
        problem = lacking(words, said)
        if ended.status != status or len(lines) != 1:
            problem = f"status {ended.status}, {len(lines)} lines"
        elif archive and (others := [name for name in self.archives if name in said and name != archive]):
            problem = f"names {others}, too"
        self.row(stage, planted, f"{script} {arguments[0]}" if script == "prepareData.py" else script, said, problem)

    def failed(self, stage, begin, planted):
        """The README's line has to convert all but these: {file: (planted, words of the reason)}."""
        ended = self.again(begin)
        target = Path(shlex.split(self.line(begin))[5])
        reasons = dict(line.split("\t") for line in (target / "failed.tsv").read_text().splitlines()[1:])
        summary = f"{len(planted)} of 32 files failed, see {target}/failed.tsv; mend them or fetch them again"
        problem = lacking([summary], ended.complained) or (f"status {ended.status}" if ended.status != 1 else "")
        for file, (name, words) in planted.items():
            said = reasons.pop(file, "nothing")
            self.row(stage, name, begin, said, problem or lacking([*words, file.rpartition(".")[0]], said))
        if reasons:
            self.row(stage, "", begin, f"false alarm: {reasons}", "not planted")

    def checked(self, stage, expected, *flags, full=False):
        """--check has to find exactly this: [(severity, what, count, {planted: where}, mend)].

        Notes beside those expected are no alarms. A finding that comes of another plant has nothing planted: {}.
        """
        ended = self.fork("prepareData.py", "--check", *["full"] * full, *flags, "--json")
        if not ended.printed:
            self.row(stage, "", "--check", ended.complained, "no findings")
            return
        content = json.loads(ended.printed)
        findings = content["findings"]
        # Disk and memory are the machine's, not the data's; and many faults are shown by lists alone.
        expectable = ("would not fit", "audio was not looked at")
        left = [each for each in findings if each["severity"] != "note"
                and not any(words in each["what"] for words in expectable)]  # fmt: skip
        found_by = "--check full" if full else "--check"
        for severity, what, count, planted, mend in expected:
            those = [each for each in findings if each["severity"] == severity and what in each["what"]]
            problem = "" if len(those) == 1 else f"{len(those)} findings of '{what}' ({severity}) in {ended.printed}"
            finding = those[0] if those else dict.fromkeys(("what", "count", "mend"), "") | {"examples": []}
            left = [each for each in left if each is not finding]
            if not problem and finding["count"] != count:
                problem = f"counted {finding['count']}, not {count}"
            for name, where in planted.items() or [("what comes of it", "")] * bool(problem):
                example = next((each for each in finding["examples"] if where in each), "")
                said = f"{severity}, {finding['count']}: {finding['what']}: {example} > {finding['mend']}"
                problem = problem or lacking([mend], finding["mend"]) or lacking([where], finding["what"] + example)
                self.row(stage, name, found_by, said, problem)
        for each in left:
            self.row(stage, "", found_by, f"false alarm: {each}", "not planted")
        if ended.status != content["status"]:
            self.row(stage, "", found_by, f"status {ended.status}", "another exit status than in its JSON")


def lacking(words, said):
    absent = [word for word in words if word not in said]
    return f"lacks {absent}" if absent else ""
