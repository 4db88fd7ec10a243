import random
import struct

import gguf
import numpy as np
import pytest

from fm.errors import UserError
from fm.hf.gguf_file import GgufFile
from tests.hf import helpers_gguf as made


def halves(stored, at):
    return np.ascontiguousarray(stored[:, at : at + 2]).view(np.float16).astype(np.float64)


def nibbles(stored, start):
    """32 four-bit numbers of each block: low halves of the bytes first."""
    part = stored[:, start : start + 16].astype(np.int64)
    return np.concatenate([part & 15, part >> 4], axis=1)


# The formats of a block of 32 as ggml defines them, in float64.
REFERENCE = {
    "Q4_0": (18, lambda s: halves(s, 0) * (nibbles(s, 2) - 8)),
    "Q4_1": (20, lambda s: halves(s, 0) * nibbles(s, 4) + halves(s, 2)),
    "Q8_0": (34, lambda s: halves(s, 0) * s[:, 2:34].view(np.int8)),
}


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("rows", [3, 7])
def test_blocks_are_dequantised(tmp_path, kind, rows):
    width, meaning = REFERENCE[kind]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (rows * 4, width), dtype=np.uint8)
    scales = rng.normal(size=(rows * 4, 2)).astype(np.float16).view(np.uint8)
    used = 4 if kind == "Q4_1" else 2
    blocks[:, :used] = scales[:, :used]
    path = made.write(
        tmp_path / "a.gguf",
        "llama",
        {},
        {"x": blocks.reshape(rows, 4 * width)},
        {"x": gguf.GGMLQuantizationType[kind]},
    )
    file = GgufFile(path)
    found = file.read_tensor("x")
    assert found.dtype == np.float32 and found.shape == (rows, 128)
    np.testing.assert_allclose(found, meaning(blocks).reshape(rows, 128), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_numbers_keep_their_values_and_axes(tmp_path, dtype):
    value = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(dtype)
    file = GgufFile(made.write(tmp_path / "a.gguf", "llama", {}, {"x": value}))
    np.testing.assert_array_equal(file.read_tensor("x"), value.astype(np.float32))


def test_bfloat16_keeps_its_values(tmp_path):
    value = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    cut = (value.view(np.uint32) & 0xFFFF0000).view(np.float32)
    stored = (value.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    kinds = {"x": gguf.GGMLQuantizationType.BF16}
    file = GgufFile(made.write(tmp_path / "a.gguf", "llama", {}, {"x": stored}, kinds))
    np.testing.assert_array_equal(file.read_tensor("x"), cut)


def test_metadata_of_every_type(tmp_path):
    keys = {"a": 7, "b": 0.5, "c": True, "d": "naïve", "e": ["x", "", "字"], "f": [1, -2, 3]}
    read = GgufFile(made.write(tmp_path / "a.gguf", "llama", keys, {})).metadata
    assert {key: read[key] for key in "abcde"} == {key: keys[key] for key in "abcde"}
    assert read["f"].tolist() == keys["f"]
    assert type(read["c"]) is bool and type(read["a"]) is int


def test_all_parts_of_a_model_are_read_from_any_one(tmp_path):
    metadata, tensors = made.llama_like()
    whole = GgufFile(made.write(tmp_path / "whole.gguf", "llama", metadata, tensors))
    for path in made.split(tmp_path, metadata, tensors):
        file = GgufFile(path)
        assert {key: file.metadata[key] for key in metadata} == {
            key: whole.metadata[key] for key in metadata
        }
        assert file.tensor_infos.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(file.read_tensor(name), value)


def _away(paths):
    paths[1].unlink()
    paths[2].unlink()


BROKEN_PARTS = {
    "two away": (
        _away,
        r"is part 1 of 3 of a model; missing beside it: m-00002-of-00003.gguf, m-00003-of-00003",
    ),
    "another name": (
        lambda paths: paths[0].rename(paths[0].with_name("n.gguf")),
        r"part 1 of 3 of a model; the others are looked for by name, and its own must end in -0",
    ),
    "one twice": (
        lambda paths: paths[2].write_bytes(paths[1].read_bytes()),
        r"m-00003-of-00003.gguf is not what its name says, part 3 of 3",
    ),
    "one cut short": (
        lambda paths: paths[2].write_bytes(paths[2].read_bytes()[:-9]),
        r"m-00003-of-00003.gguf is not a readable GGUF file",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_PARTS)
def test_parts_that_are_no_model_are_one_line(tmp_path, kind):
    break_it, reason = BROKEN_PARTS[kind]
    paths = made.split(tmp_path, *made.llama_like())
    break_it(paths)
    left = paths[0] if paths[0].exists() else tmp_path / "n.gguf"
    with pytest.raises(UserError, match=reason) as raised:
        GgufFile(left)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"split.no": 3}, "split.no=3 of split.count=3 is no part"),
        ({"split.count": "x"}, "is no part"),
        ({"split.count": 2**32 - 1}, "its own must end in"),
        ({"split.tensors.count": 7}, "tensors together, not 7"),
    ],
)
def test_numbers_of_parts_that_cannot_be(tmp_path, changed, reason):
    paths = made.split(tmp_path, *made.llama_like(), **changed)
    with pytest.raises(UserError, match=reason):
        GgufFile(paths[0])


def test_a_tensor_in_two_parts_is_named(tmp_path):
    metadata, tensors = made.llama_like()
    paths = made.split(tmp_path, metadata, tensors, count=2)
    keys = {"split.no": 1, "split.count": 2, "split.tensors.count": len(tensors)}
    made.write(paths[1], "llama", keys, tensors)
    with pytest.raises(UserError, match="is in another part too"):
        GgufFile(paths[0])


def test_an_integer_tensor_is_refused(tmp_path):
    path = made.write(tmp_path / "a.gguf", "llama", {}, {"x": np.arange(4, dtype=np.int32)})
    with pytest.raises(UserError, match=r"'x' is stored as I32"):
        GgufFile(path).read_tensor("x")


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(UserError, match="no tensor 'y'"):
        GgufFile(made.llama_file(tmp_path / "a.gguf")).read_tensor("y")


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing\.gguf: No such file"):
        GgufFile(tmp_path / "nothing.gguf")


def header(tensors=0, pairs=0, rest=b"", version=3, order="<"):
    return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, pairs) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"x", shape=(4,), kind=0, offset=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


HUGE = 2**62
MALFORMED = {
    "empty": (b"", "4 bytes are wanted at byte 0 of 0"),
    "another file": (b"PK\x03\x04" + bytes(99), "does not begin with GGUF"),
    "version 1": (header(version=1, rest=bytes(99)), "version 1; little-endian versions 2 and 3"),
    "big-endian": (header(order=">", rest=bytes(99)), "big-endian"),
    "many pairs": (header(pairs=HUGE, rest=bytes(99)), f"claims {HUGE} items"),
    "many tensors": (header(tensors=HUGE, rest=bytes(99)), f"claims {HUGE} items"),
    "long text": (header(pairs=1, rest=struct.pack("<Q", HUGE) + bytes(99)), "bytes are wanted"),
    "long array": (
        header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 0, HUGE) + bytes(99)),
        f"claims {HUGE} items",
    ),
    "array of arrays": (
        header(pairs=1, rest=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(99)),
        "unknown type 9",
    ),
    "unknown type": (
        header(pairs=1, rest=text(b"k") + struct.pack("<I", 13) + bytes(99)),
        "unknown type 13",
    ),
    "not UTF-8": (header(pairs=1, rest=text(b"\xff\xfe") + bytes(99)), "not UTF-8"),
    "twice a key": (
        header(pairs=2, rest=2 * (text(b"k") + struct.pack("<IB", 0, 1)) + bytes(99)),
        "'k' occurs twice",
    ),
    "alignment": (
        header(pairs=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(9)),
        "not a power of two",
    ),
    "twice a tensor": (header(tensors=2, rest=2 * tensor() + bytes(99)), "'x' occurs twice"),
    "huge tensor": (header(tensors=1, rest=tensor(shape=(HUGE, 4)) + bytes(99)), "ends before"),
    "huge offset": (header(tensors=1, rest=tensor(offset=2**63) + bytes(99)), "ends before"),
    "no axes": (header(tensors=1, rest=tensor(shape=()) + bytes(99)), "0 axes"),
    "many axes": (header(tensors=1, rest=tensor(shape=(1,) * 9) + bytes(99)), "9 axes"),
    "empty tensor": (header(tensors=1, rest=tensor(shape=(4, 0)) + bytes(99)), "'x' is empty"),
    "unknown kind": (header(tensors=1, rest=tensor(kind=999) + bytes(99)), "unknown type 999"),
    "half a block": (header(tensors=1, rest=tensor(shape=(33,), kind=3) + bytes(99)), "no whole"),
    "overlap": (
        header(tensors=9, rest=b"".join(tensor(b"%d" % n, (64,)) for n in range(9)) + bytes(300)),
        "overlap",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_one_line(tmp_path, name):
    content, reason = MALFORMED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        GgufFile(path)
    message = str(raised.value)
    assert reason in message and str(path) in message and "\n" not in message


def test_every_shorter_file_is_refused(tmp_path):
    whole = made.llama_file(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    rng = random.Random(0)
    for size in [*range(40), *rng.sample(range(40, len(whole)), 150), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is not a readable GGUF file"):
            GgufFile(path)


def test_damaged_bytes_never_crash(tmp_path):
    whole = made.llama_file(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "damaged.gguf"
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(9000)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            file = GgufFile(path)
            for name in file.tensor_infos:
                file.read_tensor(name)
        except UserError:
            refused += 1
    assert 0 < refused < 300
