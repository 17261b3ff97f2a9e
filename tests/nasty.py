"""Files that break readers, or mean harm: the corpus of tests/fuzz.py and tests/test_hostile.py.

Everything is made here, by small functions; no audio and no weights are kept. A case is {file name: bytes}, since a
pack or a published model is several files; ``HARM`` is the folder that hostile content would make if it were run.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import soundfile
import torch

HARM = "harm"


class Harm:
    """Unpickled in the ordinary way, it makes the folder ``HARM``."""

    def __reduce__(self):
        import os

        return os.mkdir, (HARM,)


def laughs(depth=60):
    """A list of few bytes that would be put in 2 ** depth words."""
    value = ["ha"]
    for _ in range(depth):
        value = [value, value]
    return value


def tuples(depth=60):
    """A checkpoint with a tuple as a key that would take 2 ** depth steps to hash."""
    doubled = b"".join(b"h%c\x86q%c" % (number, number + 1) for number in range(1, depth))
    pickled = b"\x80\x02}q\x00K\x01\x85q\x01" + doubled + b"K\x01s."
    return zip_of({part: pickled if "data.pkl" in part else each for part, each in parts_of(torch_file({})).items()})


def torch_file(content, **settings):
    buffer = io.BytesIO()
    torch.save(content, buffer, **settings)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zip_of(parts, compression=zipfile.ZIP_STORED):
    """{name: bytes} as a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()


def parts_of(content):
    """What ``zip_of`` was given."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def npy(header, content=b""):
    """An .npy file with this header, whatever it claims."""
    header = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def claims(descr, *shape):
    """An .npy that claims to be of this type and shape, and holds 64 bytes."""
    return npy({"descr": descr, "fortran_order": False, "shape": shape}, bytes(64))


def sound(samples=4000, rate=16000, channels=1, form="WAV", subtype="PCM_16", level=0.1, value=None):
    """An audio file of noise, or of one value."""
    wave = level * np.random.default_rng(0).standard_normal((samples, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave if value is None else 0 * wave + value, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def overwrite(content, place, form, value):
    """The content with a number in another place's stead."""
    number = struct.pack(form, value)
    return content[:place] + number + content[place + len(number) :]


def flac_claiming(frames):
    """A short FLAC file whose header claims so many samples: 36 bits from bit 172 on."""
    content = bytearray(sound(form="FLAC"))
    content[21] = content[21] & 0xF0 | frames >> 32
    return bytes(content[:22]) + struct.pack(">I", frames & 0xFFFFFFFF) + bytes(content[26:])


def pack_files(names=("a/1.wav", "a/2.wav"), lengths=(300, 200), offsets=None, samples=None, **changed):
    """A pack of noise, with an index and a pack.json that agree unless told otherwise."""
    import hashlib
    import zlib

    data = np.arange(sum(max(0, each) for each in lengths) if samples is None else samples, dtype="<i2")
    offsets = np.cumsum([0, *lengths[:-1]]).tolist() if offsets is None else offsets
    lines = "".join(
        f"s\t{name}\t{first}\t{length}\t{zlib.crc32(data[max(0, first) : max(0, first + length)].tobytes())}\n"
        for name, first, length in zip(names, offsets, lengths)
    )
    index = changed.pop("index", lines.encode())
    about = {
        "format": 1,
        "kind": "speech",
        "source": "/x",
        "list_sha256": None,
        "files_sha256": "",
        "unreadable": 0,
        "sample_rate": 16000,
        "dtype": "int16",
        "samples": len(data),
        "entries": len(names),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        **changed,
    }
    return {"pack.json": json.dumps(about).encode(), "index.tsv": index, "samples.int16": data.tobytes()}


def merge_laughs(depth=40):
    """YAML whose merge keys double with each line."""
    lines = ["n_mels: 80", "a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, depth)]
    return "\n".join(lines).encode()


def alias_laughs(key, depth=40):
    """YAML in which the value of a key is a list of lists that would never be put in words."""
    lines = ["a0: &a0 [1, 2]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, depth))]
    return "\n".join([*lines, f"{key}: *a{depth - 1}"]).encode()


# ---- cases for each kind of file -------------------------------------------------------------------------------------


def lists(line):
    """Lists out of good lines; ``line``: function (path) -> a line of this kind of list."""
    good = "".join(line(f"s{n % 2}/{n}.wav") for n in range(4)).encode()
    return {
        "empty": b"",
        "blank": b" \n\t\n",
        "utf-16": good.decode().encode("utf-16"),
        "zero bytes": good + bytes(9),
        "latin-1": "s1 s1/größe.wav\n".encode("latin-1"),
        "one long line": b"a" * 1_000_000,
        "a long name and many lines": b"a" * 300_000 + b" s0/0.wav\n" + b"a s0/0.wav\n" * 100_000,
        "many fields": b"a " * 100_000,
        "terminal codes": b"\x1b[2J\x1b]0;x\x07 a b c d e\n",
        "line breaks of Unicode": "s s0/0.wav\u2028s s0/2.wav\x85\x0b\x1c".encode(),
        "up": good + line("../secret.wav").encode(),
        "up in the middle": good + line("s0/../../secret.wav").encode(),
        "absolute": good + line("/etc/passwd").encode(),
        "names too long": good + line("x" * 3000).encode(),
        "a folder": good + line("s0").encode(),
        "itself": good + line(".").encode(),
        "a pipe": good + line("pipe.wav").encode(),
    }


def audio():
    wav, float_wav = sound(), sound(subtype="FLOAT")
    return {
        "wav of 2^31 samples": overwrite(overwrite(wav, 40, "<I", 2**32 - 2), 4, "<I", 2**32 - 1),
        "wav of no channels": overwrite(wav, 22, "<H", 0),
        "wav of 65535 channels": overwrite(wav, 22, "<H", 65535),
        "wav at 0 Hz": overwrite(wav, 24, "<I", 0),
        "wav at 4 GHz": overwrite(wav, 24, "<I", 2**32 - 1),
        "wav at a prime rate": overwrite(wav, 24, "<I", 399_989),
        "wav of 0 bits": overwrite(wav, 34, "<H", 0),
        "wav cut in its header": wav[:30],
        "wav of no samples": wav[:44],
        "wav cut": wav[:100],
        "float wav with nan": overwrite(float_wav, len(float_wav) - 400, "<f", float("nan")),
        "float wav with infinity": overwrite(float_wav, len(float_wav) - 400, "<f", float("-inf")),
        "float wav of 1e38": sound(subtype="FLOAT", channels=2, value=3e38),
        "float wav of 1e300": sound(subtype="DOUBLE", value=1e300),
        "flac of 2^36 samples": flac_claiming(2**36 - 1),
        "flac of 2^31 samples": flac_claiming(2**31),
        "flac of 0 samples": flac_claiming(0),
        "flac cut": sound(form="FLAC")[:3000],
        "text": b"no audio",
        "empty": b"",
        "only RIFF": b"RIFF",
        "noise": np.random.default_rng(0).bytes(5000),
        "a pickle": pickle.dumps(Harm()),
    }


def packs():
    deep = b"[" * 100_000
    index = pack_files()["index.tsv"]
    return {
        "nested json": pack_files() | {"pack.json": deep},
        "json of a list": pack_files() | {"pack.json": b"[]"},
        "json that is no text": pack_files() | {"pack.json": b"\xff\xfe"},
        "samples as a dict": pack_files(samples=500) | pack_files(samples=500, **{"entries": {}}),
        "held is a dict": {
            **pack_files(),
            "pack.json": pack_files()["pack.json"].replace(b'"samples": 500', b'"samples": {}'),
        },
        "entries as text": pack_files(entries="2"),
        "entries as a float": pack_files(entries=2.0),
        "no unreadable": pack_files(unreadable=None),
        "kind as a list": pack_files(kind=["speech"]),
        "offsets beyond the end": pack_files(offsets=[0, 10**6]),
        "negative offsets": pack_files(offsets=[-300, 0]),
        "negative lengths": pack_files(
            names=("a", "b", "c"), lengths=(400, -300, 400), offsets=(0, 400, 100), samples=500
        ),
        "offsets of 2^70": pack_files(index=index.replace(b"300", b"1180591620717411303424")),
        "an empty index": pack_files(names=(), lengths=(), index=b"", samples=0) | {"samples.int16": bytes(2)},
        "an index of words": pack_files(index=b"a\tb\tc\td\te\nf\tg\th\ti\tj\n"),
        "an index with a field too many": pack_files(index=index.replace(b"\t0\t", b"\t0\t0\t")),
        "an index of one line": pack_files(index=index.replace(b"\n", b" ")),
        "a name of a megabyte": pack_files(names=("a" * 1_000_000, *"b" * 50_000), lengths=(300, *[0] * 50_000)),
        "pickles": dict.fromkeys(pack_files(), pickle.dumps(Harm())),
        "begun, in nonsense": {"packing.json": b"{"},
        "begun, nested": {"packing.json": deep},
        "begun, a list": {"packing.json": b"[1]"},
    }


def arrays(good):
    """.npz files: ``good``, the arrays of one that would do."""
    parts = parts_of(npz(**good))
    replaced = {
        f"{name} as {what}": zip_of({**parts, f"{name}.npy": content})
        for name in good
        for what, content in {
            "2^40 names without letters": claims("<U0", 2**40),
            "2^31 names without letters": claims("<U0", 2**31),
            "2^40 numbers": claims("<f4", 2**40, 2),
            "2^31 numbers": claims("<f4", 2**31),
            "a void": claims("V0", 2**40),
            "a name of 2^29 letters": claims("<U536870912", 1),
            "no shape": npy({"descr": "<f4"}),
            "objects": npy({"descr": "|O", "fortran_order": False, "shape": (1,)}, pickle.dumps([Harm()])),
            "nested": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
            "a scalar": claims("<f4"),
            "a negative shape": claims("<f4", -1),
            "a structure": claims([("a", "<f4")], 2),
            "dates": claims("<M8[s]", 4),
        }.items()
    }
    nan, large, narrow, none = (
        {name: change(array) if array.dtype.kind == "f" and array.ndim == 2 else array for name, array in good.items()}
        for change in (
            lambda x: x * np.float32("nan"),
            lambda x: x.astype(np.float64) + 1e300,
            lambda x: x[:, :5],
            lambda x: x[:0],
        )
    )
    bomb = zip_of(
        {**parts, "x.npy": npy({"descr": "|u1", "fortran_order": False, "shape": (1 << 27,)}, bytes(1 << 27))},
        zipfile.ZIP_DEFLATED,
    )
    return replaced | {
        "nan": npz(**nan),
        "1e300": npz(**large),
        "too narrow": npz(**narrow),
        "no rows": npz(**none),
        "bomb": bomb,
        "a pickle": pickle.dumps(Harm()),
        "a pickle in it": zip_of({"names.npy": pickle.dumps(Harm())}),
        "an .npy": claims("<f4", 16),
        "empty": b"",
        "an empty zip": zip_of({}),
        "text": b"hello",
    }


def checkpoints(good):
    """Files of torch.save: ``good``, what one of ours has that would do."""
    name, tensor = next((name, each) for name, each in good["weights"].items() if each.dim() == 3)

    def with_tensor(each):
        return {**good, "weights": {**good["weights"], name: each}}

    whole = torch_file(good)
    parts = parts_of(whole)
    record = max((part for part in parts if "/data/" in part), key=lambda part: len(parts[part]))
    odd = {
        "kind": (laughs(), torch.zeros(3), "x"),
        "weights": (laughs(), None),
        "settings": ({"system": laughs()}, {"system": "pyannote"}, {"s": torch.zeros(3)}, {"s": 1 << 4000}, [1]),
        "speakers": (laughs(), torch.zeros(3), "abc", [1], {"a": 1}),
        "valid_speakers": (laughs(), torch.zeros(3), "abc"),
        "scores": (laughs(), torch.zeros(3), {"o": {"thresholds": {"EER": torch.zeros(3)}}}, {("a", "b"): {}}),
        "state_dict": (laughs(), ""),
        "step": (laughs(), None),
        "epoch": (1.5,),
        "optimizer": (torch.zeros(3),),
    }
    shadowed = torch.zeros_like(tensor)
    shadowed.numel = 3
    return {
        "a pickle": pickle.dumps(Harm()),
        "harm": torch_file({**good, "x": Harm()}),
        "harm, old form": torch_file({**good, "x": Harm()}, _use_new_zipfile_serialization=False),
        "old form, cut": torch_file(good, _use_new_zipfile_serialization=False)[:-4000],
        "tar": b"storages" + bytes(504) + bytes(1024),
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "bomb": zip_of({**parts, record: bytes(1 << 27)}, zipfile.ZIP_DEFLATED),
        "a record cut": zip_of({**parts, record: parts[record][:8]}),
        "no data.pkl": zip_of({part: each for part, each in parts.items() if "data.pkl" not in part}),
        "a view of 2^40 numbers": torch_file(with_tensor(torch.zeros(1).expand(2**20, 2**20))),
        "a view beside": torch_file({**good, "weights_of_others": torch.zeros(1).expand(2**40)}),
        "on no device": torch_file(with_tensor(torch.zeros(2**40, device="meta"))),
        "sparse": torch_file(with_tensor(torch.eye(3).to_sparse())),
        "sparse and huge": torch_file(
            with_tensor(torch.sparse_coo_tensor(torch.zeros(2, 0), [], (2**40, 2**20), check_invariants=True))
        ),
        "quantised": torch_file(with_tensor(torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8))),
        "complex": torch_file(with_tensor(tensor.to(torch.complex64))),
        "attributes": torch_file(with_tensor(shadowed)),
        "8 bits": torch_file(with_tensor(tensor.to(torch.float8_e4m3fn))),
        "bool": torch_file(with_tensor(tensor > 0)),
        "no numbers": torch_file(with_tensor(tensor[:0])),
        "0-d": torch_file(with_tensor(torch.tensor(1.0))),
        "a list": torch_file([good]),
        "a tensor": torch_file(tensor),
        "a list of lists": torch_file(laughs()),
        "state_dict as a list": torch_file({"state_dict": [1], "pyannote.audio": {}}),
        "state_dict as a tensor": torch_file({"state_dict": tensor, "pyannote.audio": tensor}),
        "names that are no text": torch_file({**good, 3: tensor, (1, 2): tensor}),
        **{
            f"{key} {number}": torch_file({**good, key: value})
            for key, values in odd.items()
            for number, value in enumerate(values)
        },
    }


def published():
    """Files in the place of other people's weights."""
    tensor = torch.zeros(3)
    odd = [{"class": laughs()}, {"class": tensor}]
    return {
        "tuples of tuples": tuples(),
        "a pickle": pickle.dumps(Harm()),
        "harm": torch_file({"state_dict": {}, "x": Harm()}),
        "text": b"hello",
        "a list": torch_file([1]),
        "a tensor": torch_file(tensor),
        "nothing": torch_file({}),
        "state_dict as a list": torch_file({"state_dict": [1], "pyannote.audio": {}}),
        "state_dict as a tensor": torch_file({"state_dict": tensor, "pyannote.audio": tensor}),
        "names that are no text": torch_file({"speaker_encoder.conv1.weight": tensor, 3: tensor, (1, 2): tensor}),
        **{
            f"architecture {number}": torch_file({"state_dict": {}, "pyannote.audio": {"architecture": each}})
            for number, each in enumerate(odd)
        },
        **{
            f"{key} {number}": torch_file({"state_dict": {}, "pyannote.audio": {}, "hyper_parameters": {key: each}})
            for number, each in enumerate((laughs(), tensor, float("nan")))
            for key in ("sample_rate", "num_channels", "sincnet")
        },
        **{
            f"{key} of one number": torch_file({key: torch.tensor(1.0)})
            for key in ("speaker_encoder.conv1.weight", "sincnet.conv1d.1.weight", "embedding.weight")
        },
        "few channels": torch_file({"speaker_encoder.conv1.weight": torch.zeros(4, 80, 5)}),
        "no channels": torch_file({"speaker_encoder.conv1.weight": torch.zeros(0, 80, 5)}),
    }


def yamls(key):
    return {
        "merge keys": merge_laughs(),
        "aliases": alias_laughs(key),
        "nested": b"[" * 100_000,
        "nested maps": b"{a: " * 20_000,
        "a bad time": f"{key}: !!timestamp x".encode(),
        "no int": f"{key}: !!int ''".encode(),
        "no bool": f"{key}: !!bool x".encode(),
        "no float": f"{key}: !!float ''".encode(),
        "hours": f"{key}: 1:x:3".encode(),
        "a list as a key": b"? [1, 2]\n: 3",
        "a map as a key": b"? {a: 1}\n: 3",
        "tabs": b"\t\t- a",
        "a set": b"!!set {a, b}",
        "python": f"{key}: !!python/object/apply:os.mkdir ['{HARM}']".encode(),
        "loop": f"{key}: &a [*a]".encode(),
        "new": f"{key}: !new:os.mkdir ['{HARM}']".encode(),
        "no text": b"\xff\xfe",
        "zero": b"a: \0",
        "large": b"a: b\n" * 500_000,
        "binary": f"{key}: !!binary x".encode(),
        "date": f"{key}: 2001-99-99".encode(),
        "pairs": b"!!pairs [1]",
        "omap": b"!!omap [1]",
        "many digits": f"{key}: {'9' * 10_000}".encode(),
    }


def jsons():
    return {
        "nested": b"[" * 100_000,
        "nested maps": b'{"model":' * 100_000,
        "a list": b"[]",
        "a number": b"7",
        "nan": b"NaN",
        "many digits": b'{"model": {"yesOrno_thr": ' + b"9" * 10_000 + b"}}",
        "no text": b"\xff",
        "cut": b'{"model": {',
        "infinity": b'{"model": {"pretrained_model": "ecapa_tdnn.bin", "yesOrno_thr": Infinity}}',
        "null": b"null",
        "model as a list": b'{"model": []}',
        "large": b'{"a": "' + b"b" * 3_000_000 + b'"}',
    }


def labels():
    return {
        "nested": b"(" * 500 + b" => 0\n",
        "minus": b"-" * 100_000 + b"1 => 0\n",
        "code": b"__import__('os').mkdir('harm') => 0\n",
        "no number": b"'a' => b\n",
        "twice": b"'a' => 0\n'b' => 0\n",
        "far": b"'a' => 99999999999\n",
        "no text": b"\xff",
        "many digits": b"'a' => " + b"9" * 10_000,
        "a product": b"'a' * 99999999999 => 0\n",
        "long": b"'" + b"a" * 2_000_000,
    }


def histories():
    return {
        "nested": b"[" * 100_000 + b"\n",
        "a list": b"[1]\n",
        "a number": b"3\n",
        "no text": b"\xff\xfe\n",
        "zeros": bytes(99),
        "no lists": b'{"epoch": 1}\n',
        "epoch as text": b'{"epoch": "1", "lists": {}}\n',
        "many digits": b"9" * 10_000,
        "lists as a list": b'{"epoch": 1, "lists": []}\n',
        "cut": b'{"epoch": 1, "lists": {}}\n{"epo',
    }


def scores(good):
    return {
        "nan": good.replace(b"0.5", b"nan", 1),
        "infinity": good.replace(b"0.5", b"1e999", 1),
        "short": good[: len(good) // 2],
        "long": good + good,
        "empty": b"",
        "no text": b"\xff" * 100,
        "zeros": good + bytes(10),
        "huge line": b"0.5 " * 1_000_000,
        "blank lines": b"\n" * 100_000,
    }
