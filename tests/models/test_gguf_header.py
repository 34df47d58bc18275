"""Headers of GGUF files: read as they are, and never past the end of a damaged file."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.common.errors import ArtifactError
from effopd.models.gguf_header import is_gguf, read_gguf_header
from tiny_gguf import TOKENS, gguf_tensors, tiny_llama, write_gguf
from tiny_models import CHAT_TEMPLATE


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "damaged.gguf"


def test_it_says_what_is_in_the_file(file):
    header = read_gguf_header(file)
    assert header.architecture == "llama"
    assert header.values["llama.block_count"] == 2
    assert header.values["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert header.values["tokenizer.ggml.add_bos_token"] is False
    assert header.values["tokenizer.ggml.tokens"] == header.values["tokenizer.ggml.token_type"] == len(TOKENS)
    tensors = gguf_tensors(tiny_llama())
    assert header.shapes == {name: tensor.shape[::-1] for name, tensor in tensors.items()}
    assert header.elements == sum(tensor.size for tensor in tensors.values())


def head(*entries, version=3, tensors=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(entries)) + b"".join(entries)


def entry(kind, value, key=b"key"):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends before its header does"),
        (b"PK\3\4 and more", "is no GGUF file (it does not begin with GGUF)"),
        (head(version=1), "is GGUF of version 1; those that are read are 2 and 3"),
        (head(version=3 << 24), "is GGUF of version 50331648"),  # of a machine with the other order of bytes
        (head(tensors=2**63), "ends before its header does"),
        (head(entry(8, struct.pack("<Q", 2**63))), "ends before its header does"),
        (head(entry(9, struct.pack("<IQ", 4, 2**62))), "ends before its header does"),
        (head(entry(9, struct.pack("<IQ", 8, 2**62))), "ends before its header does"),
        (head(entry(9, struct.pack("<IQ", 9, 1))), "a value in its header is of the unknown type 9"),
        (head(entry(13, b"")), "a value in its header is of the unknown type 13"),
        (head(tensors=1) + struct.pack("<Q1sI", 1, b"w", 5), "is damaged (w has 5 dimensions)"),
        (head(entry(4, b"1234", b"\xff")), "a text in its header is not UTF-8"),
    ],
)
def test_a_damaged_file_is_one_line(scratch, content, words):
    scratch.write_bytes(content)
    with pytest.raises(ArtifactError) as refusal:
        read_gguf_header(scratch)
    assert words in str(refusal.value)
    assert str(scratch) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@settings(deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(file, scratch, data):
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 6000), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_gguf_header(scratch).elements
    except ArtifactError as error:
        found = str(error)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.gguf", True), ("a.GGUF", True), ("gguf", False), ("a.gguf.bin", False)]
)
def test_a_name_says_what_it_is(tmp_path, name, expected):
    assert is_gguf(tmp_path / name) is expected
