"""Changes to a file: damage as disks and killed writers do it, and what somebody with bad intentions would.

Every function gets the content of a file and a source of random numbers, and gives the changed content.
"""

import io
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Change = Callable[[bytes, Random], bytes]
MARKER = "MARKER"  # in the working folder of a reader; it is there if something in a file was run
GIANTS = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 30,
    "-1",
    "9" * 5000,
    "1e308",
    "18446744073709551615",
]
STRINGS = ["../../../etc/passwd", "/etc/passwd", "", "\x00", "\ud800", "a" * 100_000, "frames", "..", "COM1\\x"]


class Planted:
    """Unpickling it leaves the marker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def flip_bit(data: bytes, draw: Random) -> bytes:
    return _at(data, draw, lambda old: bytes([old[0] ^ 1 << draw.randrange(8)]), 1)


def flip_bytes(data: bytes, draw: Random) -> bytes:
    for _ in range(draw.randint(2, 16)):
        data = _at(data, draw, lambda _: draw.randbytes(1), 1)
    return data


def flip_early(data: bytes, draw: Random) -> bytes:
    """Headers stand at the beginning."""
    return flip_bytes(data[:600], draw) + data[600:]


def zeros(data: bytes, draw: Random) -> bytes:
    return _at(data, draw, lambda old: bytes(len(old)), draw.choice([4, 64, 512, 4096]))


def ones(data: bytes, draw: Random) -> bytes:
    """Where a length or an offset stands it becomes the largest there is."""
    return _at(data, draw, lambda old: b"\xff" * len(old), draw.choice([2, 4, 8]))


def truncate(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data))]


def cut_out(data: bytes, draw: Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start + draw.randint(1, 600) :]


def repeat(data: bytes, draw: Random) -> bytes:
    start = draw.randrange(len(data))
    return data[:start] + data[start : start + 512] + data[start:]


def more(data: bytes, draw: Random) -> bytes:
    return data + draw.randbytes(draw.choice([1, 8, 512, 5000]))


def empty(data: bytes, draw: Random) -> bytes:
    return b""


def noise(data: bytes, draw: Random) -> bytes:
    return draw.randbytes(len(data))


def plant(data: bytes, draw: Random) -> bytes:
    """A pickle in place of the file."""
    return pickle.dumps(Planted(), protocol=draw.choice([0, 2, 4]))


def _at(data: bytes, draw: Random, change: Callable[[bytes], bytes], length: int) -> bytes:
    start = draw.randrange(max(1, len(data) - length))
    return data[:start] + change(data[start : start + length]) + data[start + length :] if data else data


BYTES: list[Change] = [
    flip_bit,
    flip_bytes,
    flip_early,
    zeros,
    ones,
    truncate,
    cut_out,
    repeat,
    more,
    empty,
    noise,
    plant,
]


def json_value(data: bytes, draw: Random) -> bytes:
    """Another value of another type somewhere, a key renamed, dropped or added."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return flip_bytes(data, draw)
    places = list(_places(tree))
    if not places:
        return b"[]"
    holder, key = draw.choice(places)
    kind = draw.choice(["type", "type", "type", "string", "rename", "drop", "swap"])
    if kind == "type":
        holder[key] = draw.choice([None, True, -1, 0, 2**63, 10**30, 1.5, "", "text", [], {}, [[]], {"a": None}, ["a"]])
    elif kind == "string":
        holder[key] = draw.choice(STRINGS)
    elif kind == "swap":
        other, name = draw.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif isinstance(holder, dict):
        value = holder.pop(key)
        if kind == "rename":
            holder[draw.choice([f"{key}x", "", "../x", "__proto__", "/etc/passwd"])] = value
    else:
        holder.pop(key)
    return json.dumps(tree).encode()


def _places(tree: Any):
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield tree, key
        yield from _places(value)


def json_text(data: bytes, draw: Random) -> bytes:
    """JSON that can be spelled and no writer of ours does: giant numbers, NaN, a key twice, deep nesting."""
    text = data.decode(errors="replace")
    kind = draw.choice(["number", "number", "twice", "deep", "deep value", "bom", "utf-16"])
    values = list(re.finditer(r"(?<=[:\[,])\s*-?\d+(\.\d+)?|\"[^\"]*\"(?=\s*[,}\]])", text))
    if kind in ("number", "deep value") and values:
        found = draw.choice(values)
        nest = draw.choice([200, 5_000, 200_000])
        value = draw.choice(GIANTS) if kind == "number" else "[" * nest + "]" * nest
        return (text[: found.start()] + value + text[found.end() :]).encode()
    if kind == "twice":
        keys = list(re.finditer(r"\"[^\"]*\"\s*:", text))
        if keys:
            found = draw.choice(keys)
            return (text[: found.start()] + found[0] + "null," + text[found.start() :]).encode()
    if kind == "bom":
        return b"\xef\xbb\xbf" + data
    if kind == "utf-16":
        return text.encode("utf-16")
    nest = draw.choice([500, 100_000])
    return draw.choice([b"[", b'{"a":']) * nest


def safetensors_header(data: bytes, draw: Random) -> bytes:
    """The header changed as JSON, or its length."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = draw.choice(["length", "value", "value", "text", "shape", "rename", "swap"])
    if kind == "length":
        told = draw.choice([0, 1, 7, 100_000_000, 2**31, 2**40, 2**63, 2**64 - 1, length + 8, length - 1])
        return told.to_bytes(8, "little") + data[8:]
    try:
        tree = json.loads(header)
        names = [name for name in tree if name != "__metadata__"]
        one, two = draw.choice(names), draw.choice(names)
        if kind == "shape":
            key = draw.choice(["shape", "dtype", "data_offsets"])
            odd = {
                "shape": [[2**40], [0], [], [-1], [2**62, 4], [1, *tree[one]["shape"]], tree[one]["shape"][::-1]],
                "dtype": ["F64", "F16", "I8", "U8", "BOOL", "I64", "F8_E4M3", "X"],
                "data_offsets": [[0, 2**62], [0, 0], [8, 0], [-8, 0], tree[two]["data_offsets"]],
            }
            tree[one][key] = draw.choice(odd[key])
        elif kind == "rename":
            tree[f"{one}_"] = tree.pop(one)
        elif kind == "swap":
            tree[one], tree[two] = tree[two], tree[one]
        header = json.dumps(tree).encode()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        kind = "text"
    if kind in ("value", "text"):
        header = (json_value if kind == "value" else json_text)(header, draw)
    return len(header).to_bytes(8, "little") + header + rest


def safetensors_numbers(data: bytes, draw: Random) -> bytes:
    """NaN, infinity and giants among the numbers."""
    begin = 8 + int.from_bytes(data[:8], "little")
    number = draw.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\xff" * 4])
    for _ in range(draw.choice([1, 20])):
        place = begin + draw.randrange(max(1, (len(data) - begin) // 4)) * 4
        data = data[:place] + number + data[place + 4 :]
    return data


def tar_header(data: bytes, draw: Random) -> bytes:
    """One header changed, its checksum made right again."""
    starts = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    if not starts:
        return flip_early(data, draw)
    start = draw.choice(starts)
    block = bytearray(data[start : start + 512])
    what = draw.choice(["size", "size", "name", "name", "kind", "kind", "swap"])
    if what == "size":
        block[124:136] = draw.choice(
            [
                b"77777777777\0",
                b"\x80" + b"\0" * 3 + b"\xff" * 8,
                b"\xff" * 12,
                b"00000000000\0",
                b"-0000000001\0",
                b"x" * 12,
            ]
        )
    elif what == "name":
        name = draw.choice([b"../../MARKER", b"/tmp/MARKER", b"a/../../x", b"\xff\xfe", b"", b"..", b"a\\..\\b", b"x"])
        block[:100] = name.ljust(100, b"\0")
    elif what == "kind":
        block[156] = draw.choice(b"123456LKxgXSDMN\xff")
        block[157:257] = draw.choice([b"/etc/passwd", b"../../MARKER", b""]).ljust(100, b"\0")
    else:
        block[:100] = data[draw.choice(starts) :][:100]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:start] + bytes(block) + data[start + 512 :]


def tar_members(data: bytes, draw: Random) -> bytes:
    """Members dropped, doubled, changed inside, or planted: written anew as a whole tar."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = [(info, archive.extractfile(info).read()) for info in archive if info.isreg()]  # type: ignore
    except (tarfile.TarError, AttributeError):
        return flip_early(data, draw)
    kind = draw.choice(["drop", "double", "inside", "inside", "inside", "inside", "plant", "plant", "link", "order"])
    place = draw.randrange(len(files))
    info, content = files[place]
    if kind == "drop":
        files.pop(place)
    elif kind == "double":
        files.append(files[place])
    elif kind == "order":
        draw.shuffle(files)
    elif kind == "inside":
        files[place] = (info, change(Path(info.name), content, draw)[0])
    elif kind == "plant":
        evil = pickle.dumps(Planted())
        if draw.random() < 0.5:
            files[place] = (info, evil)
        else:
            name = info.name.partition(".")[0] + draw.choice([".pyd", ".pkl", ".pickle", ".extra.json", ".pth"])
            files.insert(place, (tarfile.TarInfo(name), evil))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=draw.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])) as out:
        for info, content in files:
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
        if kind == "link":
            for name, to in (("sly.json", "/etc/passwd"), ("sly.jpg", "../../x")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]), to
                out.addfile(info)
    return packed.getvalue()


def yaml_text(data: bytes, draw: Random) -> bytes:
    """Bombs, tags that ask for Python, and what YAML spells in strange ways."""
    lines = data.decode(errors="replace").splitlines()
    keys = [number for number, line in enumerate(lines) if ":" in line]
    levels = draw.choice([9, 30])
    bomb = ["bomb0: &b0 [x,x,x,x,x,x,x,x,x]"]
    bomb += [f"bomb{n}: &b{n} [{','.join([f'*b{n - 1}'] * 9)}]" for n in range(1, levels)]
    kind = draw.choice(["value", "value", "value", "value", "key", "bomb", "bomb inside", "bomb keys", "deep", "drop"])
    number = draw.choice(keys)
    key = lines[number].partition(":")[0]
    odd = [
        "!!python/object/apply:os.mkdir [MARKER]",
        "!!python/object/new:os.mkdir [MARKER]",
        "!!python/name:os.system",
        "!!python/module:os",
        *("2001-99-99", "!!int ''", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}"),
        *(
            "!!null x",
            "!!omap [a]",
            "!!pairs [a]",
            "&a [*a]",
            "*nothing",
            "1e-4",
            ".nan",
            ".inf",
            "-.inf",
            "0o7",
            "1_0",
        ),
        *("9" * 5000, "9" * 30, "[" * 3000, "{a: 1, a: 2}", "{? [a]: b}", "'", "\x00", "\x07", "~", "", "yes", "-1"),
        *("../../../etc/passwd", "/dev/zero", "student.yaml", "base.yaml", ".", "[]", "{}", "[a]", "x" * 100_000),
        *("-0.0006", "1.0e+30", "1.0e+400", "010", "1:30", "0", "1", "2", "0x10", "1e9", "999999999999", "-0.0"),
        *("1:30:00:00", "<<: 3", "{<<: {a: 1}}", "{<<: [1]}", "{kind: clip4clip}", "{kind: [x]}", "{1: 2}"),
    ]
    if kind == "value":
        lines[number] = f"{key}: {draw.choice(odd)}"
    elif kind == "key":
        lines[number] = f"{key}x:{lines[number].partition(':')[2]}"
    elif kind == "drop":
        lines.pop(number)
    elif kind == "bomb":
        lines += bomb
    elif kind == "bomb inside":
        lines = [*bomb, *lines[:number], f"{key}: *b{levels - 1}", *lines[number + 1 :]]
    elif kind == "bomb keys":
        merged = ["m0: &m0 {a: 1, b: 2}"] + [
            f"m{n}: &m{n} {{<<: [{','.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 9)
        ]
        lines += merged
    else:
        nest = draw.choice([300, 3_000, 50_000])
        lines[number] = f"{key}: " + draw.choice(["[" * nest + "]" * nest, "{a: " * nest + "}" * nest])
    return "\n".join(lines).encode() + b"\n"


def torch_archive(data: bytes, draw: Random) -> bytes:
    """A torch file (a zip) with another pickle, a member more or less, or a number far too large in its pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError):
        return flip_early(data, draw)
    name = draw.choice(list(files))
    pickled = next(name for name in files if name.endswith("data.pkl"))
    kind = draw.choice(["evil", "evil", "drop", "inside", "inside", "pickle", "pickle", "program", "bomb"])
    if kind == "evil":
        files[pickled] = pickle.dumps(
            draw.choice([Planted(), {"a": Planted()}, [Planted()], {"state_dict": {"w": 1}}]), 2
        )
    elif kind == "drop":
        files.pop(name)
    elif kind == "inside":
        files[name] = draw.choice(BYTES)(files[name], draw)
    elif kind == "pickle":
        files[pickled] = draw.choice(BYTES[:9])(files[pickled], draw)
    elif kind == "program":
        files[name.partition("/")[0] + "/constants.pkl"] = pickle.dumps(Planted())
    else:
        files[name] = bytes(1 << 28)
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if kind == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", method, compresslevel=1) as out:
        for name, content in files.items():
            out.writestr(name, content)
    return packed.getvalue()


def table_text(data: bytes, draw: Random) -> bytes:
    """Cells and lines of a text table."""
    lines = data.decode(errors="replace").splitlines()
    number = draw.randrange(len(lines))
    cell = draw.choice(
        ['"', "\0", ",", "a" * 200_000, "../../etc/passwd", "/etc/passwd", "\ufeff", "\ud83d", " ", "\r", '""x']
    )
    lines[number] = draw.choice([cell, f"{lines[number]}{cell}", f"{cell}{lines[number]}", f"{cell},{cell}"])
    return "\n".join(lines).encode(errors="surrogatepass")


BY_FORMAT: dict[str, list[Change]] = {
    ".json": [json_value, json_value, json_text],
    ".jsonl": [json_text],
    ".safetensors": [safetensors_header, safetensors_header, safetensors_numbers],
    ".tar": [tar_header, tar_members, tar_members],
    ".yaml": [yaml_text],
    ".pt": [torch_archive],
    ".bin": [torch_archive],
    ".csv": [table_text],
    ".txt": [table_text],
}


def change(name: Path, data: bytes, draw: Random) -> tuple[bytes, str]:
    """The content of a file changed in one way, and what the way is called."""
    known = BY_FORMAT.get(name.suffix, [])
    how = draw.choice(known if known and draw.random() < 0.6 else BYTES)
    return (how(data, draw) if data or how is plant else data), how.__name__


def deleted(path: Path, others: list[Path], draw: Random) -> None:
    path.unlink()


def swapped(path: Path, others: list[Path], draw: Random) -> None:
    """With another file of the folder, by preference of its own kind."""
    like = [other for other in others if other.suffix == path.suffix] or others
    if like:
        other = draw.choice(like)
        content = other.read_bytes()
        other.write_bytes(path.read_bytes())
        path.write_bytes(content)


def became_folder(path: Path, others: list[Path], draw: Random) -> None:
    path.unlink()
    path.mkdir()


def became_fifo(path: Path, others: list[Path], draw: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def became_link(path: Path, others: list[Path], draw: Random) -> None:
    """To nothing, to itself, to what never ends, to a file of the system."""
    path.unlink()
    path.symlink_to(
        draw.choice(["nothing", path.name, "/dev/zero", "/dev/full", "/etc/passwd", "/proc/self/mem", ".."])
    )


def folder_gone(path: Path, others: list[Path], draw: Random) -> None:
    shutil.rmtree(path.parent)


PLACES = [deleted, swapped, swapped, became_folder, became_fifo, became_link, folder_gone]
