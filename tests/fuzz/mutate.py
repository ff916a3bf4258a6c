"""Changes of an input: bytes anywhere, and changes that get past a header or a checksum."""

import hashlib
import io
import json
import struct
import tarfile
import zipfile
from contextlib import suppress
from random import Random

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

NUMBERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def flipped(data: bytes, rng: Random, flips: int) -> bytes:
    """The same with some bits turned."""
    changed = bytearray(data)
    for _ in range(flips if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def some_bytes(data: bytes, rng: Random) -> bytes:
    """Bits turned, stretches cut out, doubled, moved or overwritten, or the end cut off."""
    near = rng.random() < 0.4  # most headers stand at the beginning
    at = rng.randrange(min(len(data), 200 if near else len(data)) + 1)
    long = min(rng.choice((1, 1, 2, 4, 8, 16, 188, 512, 4096)), len(data) - at)
    part, number = data[at : at + long], rng.choice(NUMBERS)
    match rng.randrange(8):
        case 0 | 1:
            return flipped(data, rng, rng.choice((1, 1, 2, 8, 20)))
        case 2:
            return data[:at] + data[at + long :]
        case 3:
            return data[:at] + part * rng.choice((2, 2, 3, 50)) + data[at + long :]
        case 4:
            return data[:at]
        case 5:
            return data[:at] + rng.randbytes(long) + data[at + long :]
        case 6:
            order = rng.choice((">B", ">H", "<H", ">I", "<I", ">Q", "<Q"))
            put = struct.pack(order, number & (1 << 8 * struct.calcsize(order)) - 1)
            return data[:at] + put + data[at + len(put) :]
    there = rng.randrange(len(data) + 1)
    return data[:there] + part + data[there:]


# ---------- JSON by its tree

VALUES = [None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 10**30, 10**400, 1e308, float("inf")]
VALUES += [float("nan"), "", " ", "x", "\0", "\ud800", "..", "../x", "/etc/passwd", "x" * 5000]
VALUES += ["\x1b[31m", "\xe9t\xe9", "a\nb", "-x", "1e999", [], {}, [[]], {"": 0}, "DEEP"]


def places(tree) -> list:
    """Where something stands in lists and objects: pairs (of which, under what)."""
    keys = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ()
    found = [(tree, key) for key in keys]
    return found + [place for key in keys for place in places(tree[key])]


def json_tree(data: bytes, rng: Random) -> bytes:
    """A value replaced, renamed, wrapped, doubled or taken away."""
    try:
        tree = [json.loads(data)]
        all_places = places(tree)
    except (ValueError, RecursionError):
        return some_bytes(data, rng)
    of, key = rng.choice(all_places[rng.random() < 0.95 and len(all_places) > 1 :])
    other, name = rng.choice(all_places)
    match rng.randrange(7):
        case 0 | 1 | 2:
            of[key] = rng.choice(VALUES)
        case 3:
            of[key] = other[name]
        case 4:
            of[key] = rng.choice(([of[key]], {"a": of[key]}, [of[key]] * 2, str(of[key])))
        case 5 if len(all_places) > 1:
            del of[key]
        case _:
            new = rng.choice((key, name, rng.choice(VALUES), "DEEP"))
            of.append(of[key]) if isinstance(of, list) else of.update({str(new): of[key]})
    with suppress(ValueError, RecursionError):  # a circle, or too deep
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)[1:-1]
        deep = rng.choice(("[", '{"a":')) * rng.choice((3, 900, 20_000))
        return text.replace('"DEEP"', deep).encode(errors="surrogatepass")
    return data


def json_lines(data: bytes, rng: Random) -> bytes:
    """One of the lines changed, as JSON or as bytes; or doubled, moved, taken away."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at] = some_bytes(lines[at], rng)
        case _:
            lines[at] = json_tree(lines[at], rng)
    return b"\n".join(lines)


TOKENS = (b'"', b'""', b",", b";", b"\t", b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf")
TOKENS += (b"\xff\xfe", b"-", b"1e999", b"nan", b"x" * 3000, b"/", b"..", b" ", b"\x1b[31m", b"=1")


def table(data: bytes, rng: Random) -> bytes:
    """What means something to a table put somewhere, and lines and bytes as elsewhere."""
    if rng.random() < 0.4:
        return json_lines(data, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) + data[at + rng.choice((0, 0, 1, 5)) :]


# ---------- archives


def tar_parts(data: bytes) -> list:
    """Members of an archive, as far as it can be read: (header, content)."""
    found = []
    with suppress(Exception), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            found.append((member, archive.extractfile(member).read() if member.isfile() else b""))
    return found


def tar_headers(data: bytes, rng: Random) -> bytes:
    """Bytes of a header changed, with a checksum that is right again."""
    starts = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return some_bytes(data, rng)
    at = rng.choice(starts)
    start, size = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (345, 155)))
    put = rng.choice((b"\x80" + bytes(10) + b"\x01", b"\xff" * 12, b"77777777777\0", b"-1", b"L"))
    put = rng.choice(
        (put, rng.choice((b"x", b"g", b"1", b"2", b"5", b"S", b"K", b"\0", b"../x\0")))
    )
    header = bytearray(data[at : at + 512])
    header[start : start + min(size, len(put))] = put[:size]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def tar_members(data: bytes, rng: Random) -> bytes:
    """Members changed, renamed, doubled, moved or taken away, in an archive that is whole."""
    parts = tar_parts(data)
    if not parts:
        return some_bytes(data, rng)
    at = rng.randrange(len(parts))
    member, content = parts[at]
    match rng.randrange(5):
        case 0:
            stem, _, suffix = rng.choice(parts)[0].name.rpartition(".")
            kinds = (suffix, "json", "txt", "mp4", "JSON", "avi")
            member.name = rng.choice((stem, "", "a/b", "..")) + "." + rng.choice(kinds)
        case 1:
            del parts[at]
        case 2:
            parts.insert(rng.randrange(len(parts)), parts[at])
        case _:
            change = json_tree if member.name.endswith("json") else some_bytes
            content = change(content, rng)
            member.size, parts[at] = len(content), (member, content)
    packed = io.BytesIO()
    with suppress(ValueError, UnicodeError), tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in parts:
            archive.addfile(member, io.BytesIO(content))
        archive.close()
        return packed.getvalue().rstrip(b"\0") + bytes(1024)
    return data


def shard(data: bytes, rng: Random) -> bytes:
    """A shard, or an index, changed."""
    if data[:1] in b"{[":
        return json_tree(data, rng)
    return rng.choice((tar_members, tar_members, tar_headers, some_bytes))(data, rng)


# ---------- weights


def weird(tensor, rng: Random):
    """A tensor of another shape, kind or content."""
    values = (float("nan"), float("inf"), 1e38, 0.0)
    match rng.randrange(12):
        case 0:
            return tensor[None]
        case 1:
            return tensor.flatten()
        case 2:
            return tensor.mT.contiguous() if tensor.ndim > 1 else tensor[:0]
        case 3:
            return tensor[: len(tensor) // 2] if tensor.ndim else tensor
        case 4:
            return tensor.flatten()[0] if tensor.numel() else tensor
        case 5:
            kinds = (torch.int32, torch.int64, torch.bool, torch.float16, torch.bfloat16)
            return tensor.to(rng.choice((*kinds, torch.float64, torch.uint8, torch.complex64)))
        case 6 | 7:
            wrong = tensor.clone()
            if wrong.numel():
                wrong.view(-1)[rng.randrange(wrong.numel())] = rng.choice(values)
            return wrong
        case 8:
            return torch.cat([tensor, tensor]) if tensor.ndim else tensor
        case 9:
            return tensor.new_zeros(rng.choice(((), (0,), (1, 0), (0, 3), (1,) * 9)))
        case 10:
            return tensor.new_zeros([0 if size > 1 else 1 for size in tensor.shape])
    return tensor.new_zeros(rng.choice((1, 10, 100)))


def renamed(state: dict, rng: Random) -> dict:
    """One tensor taken away, given another name or another's, or changed."""
    if not state:
        return state
    state, name, other = dict(state), *(rng.choice([*state]) for _ in range(2))
    match rng.randrange(6):
        case 0:
            del state[name]
        case 1:
            digits = name.replace("0", rng.choice(("1", "7", "-1", "99999999")))
            state[rng.choice(("", "x", f"backbone.{name}", f"{name}.0", digits))] = state[
                name
            ].clone()
        case 2:
            state[name] = state[other].clone()
        case _:
            state[name] = weird(state[name], rng)
    return state


def header(data: bytes, rng: Random) -> bytes:
    """The JSON before the tensors changed, and its length with it."""
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8:
        return some_bytes(data, rng)
    new = json_tree(data[8 : 8 + size], rng)
    return len(new).to_bytes(8, "little") + new + data[8 + size :]


def safetensors(data: bytes, rng: Random) -> bytes:
    """Tensors, their header, or any bytes changed."""
    if rng.random() < 0.6:
        with suppress(Exception):
            return save_safetensors(renamed(load_safetensors(data), rng))
    return rng.choice((header, some_bytes))(data, rng)


def zipped(data: bytes, rng: Random) -> bytes:
    """A file in an archive of PyTorch changed, and its checksum with it."""
    packed = io.BytesIO()
    with suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as old:
        names = [name for name in old.namelist() if not name.endswith(".storage_alignment")]
        chosen = rng.choice([n for n in names if n.endswith("data.pkl")] * 3 + names)
        with zipfile.ZipFile(packed, "w") as new:
            for name in names:
                content = old.read(name)
                new.writestr(name, some_bytes(content, rng) if name == chosen else content)
        return packed.getvalue()
    return some_bytes(data, rng)


def checkpoint(data: bytes, rng: Random) -> bytes:
    """Weights of either kind changed."""
    if data[:2] != b"PK":
        return safetensors(data, rng)
    if rng.random() < 0.5:
        return rng.choice((zipped, zipped, some_bytes))(data, rng)
    with suppress(Exception):
        state, packed = torch.load(io.BytesIO(data), weights_only=True), io.BytesIO()
        changed = renamed(state, rng)
        if rng.random() < 0.2:
            strange = [None, 3, "x", [torch.ones(2)], torch.ones(2).to_sparse(), {"a": 1}]
            strange += [torch.ones(1).expand(10**6, 10**6), torch.empty(2, device="meta")]
            changed[rng.choice([*changed])] = rng.choice(strange)
        torch.save(changed, packed)
        return packed.getvalue()
    return zipped(data, rng)


def split_pair(data: bytes) -> tuple[bytes, bytes]:
    """Settings and weights of an input that holds both, with the length of the first before it."""
    size = min(int.from_bytes(data[:4], "big"), len(data))
    return data[4 : 4 + size], data[4 + size :]


def join_pair(first: bytes, second: bytes) -> bytes:
    return len(first).to_bytes(4, "big") + first + second


def adapter(data: bytes, rng: Random) -> bytes:
    """Settings or weights changed."""
    settings, weights = split_pair(data)
    if rng.random() < 0.5:
        return join_pair(json_tree(settings, rng), weights)
    changed = safetensors(weights, rng)
    if rng.random() < 0.9:  # else every change would end at the hash
        settings = rehashed(settings, changed)
    return join_pair(settings, changed)


def rehashed(settings: bytes, weights: bytes) -> bytes:
    """The settings of an adapter with the hash of these weights, if they have one."""
    try:
        found = json.loads(settings)
        found["sha256"] = hashlib.sha256(weights).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return settings
    return json.dumps(found).encode()


# ---------- containers

BOXES = b"moov trak mdia minf stbl edts dinf udta meta moof traf mvex".split()


def boxes(data: bytes, start: int = 0, end: int | None = None) -> list:
    """Where the boxes of an MP4 lie: pairs (start, size), those in others, too."""
    end, found = len(data) if end is None else end, []
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if not 8 <= size <= end - start:
            break
        found.append((start, size))
        if data[start + 4 : start + 8] in BOXES:
            found += boxes(data, start + 8, start + size)
        start += size
    return found


def film(data: bytes, rng: Random) -> bytes:
    """A box changed at its borders, moved or doubled; in other containers any bytes."""
    found = boxes(data) if data[4:8] == b"ftyp" else []
    if not found or rng.random() < 0.3:
        return some_bytes(data, rng)
    at, size = rng.choice(found)
    there, other = rng.choice(found)
    box = data[at : at + size]
    match rng.randrange(6):
        case 0:
            kind = data[there + 4 : there + 8]
            return data[: at + 4] + kind + data[at + 8 :]
        case 1:
            grown = max(0, size + rng.choice((-8, -1, 1, 8, 2**31 - size, -size, 1 - size)))
            return data[:at] + struct.pack(">I", grown & 2**32 - 1) + data[at + 4 :]
        case 2:
            return data[:at] + data[at + size :]
        case 3:
            return data[:there] + box + data[there + other :]
    inside = at + 8 + 4 * rng.randrange(max(1, min(size - 8, 80) // 4))
    return data[:inside] + struct.pack(">I", rng.choice(NUMBERS)) + data[inside + 4 :]
