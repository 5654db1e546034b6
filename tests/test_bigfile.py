"""BigFile: exact bytes out, the same back, and no id that its own separator would tear apart."""

import numpy as np
import pytest

from distill.errors import ArtefactError, ExpectedError
from distill.retrieval.export import read_bigfile, write_bigfile

VECTORS = np.array([[0, 1, -2, 0.5], [3, 4, 5, 6], [1e-8, -0.0, 7, 8]], np.float32)
IDS = ["video7", "Höhle#1-2", "-v_0,;"]


def test_the_bytes_are_exactly_those_of_the_format(tmp_path):
    write_bigfile(tmp_path / "out", IDS, VECTORS)
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    first = bytes.fromhex("00000000 0000803f 000000c0 0000003f")
    assert found["shape.txt"] == b"3 4"
    assert found["id.txt"] == "video7 Höhle#1-2 -v_0,;".encode()
    assert found["feature.bin"][:16] == first and len(found["feature.bin"]) == 48
    assert found.keys() == {"shape.txt", "id.txt", "feature.bin"}


def test_what_is_read_is_what_was_written(tmp_path):
    write_bigfile(tmp_path / "out", IDS, np.asfortranarray(VECTORS))
    ids, vectors = read_bigfile(tmp_path / "out")
    assert ids == IDS and vectors.dtype == np.float32
    assert vectors.tobytes() == VECTORS.tobytes()


@pytest.mark.parametrize("bad", ["a b", "", "tab\there", "line\n", "no\u00a0break"])
def test_an_id_with_white_space_is_an_error(bad, tmp_path):
    with pytest.raises(ExpectedError, match="white space"):
        write_bigfile(tmp_path / "out", ["x", bad, "y"], VECTORS)
    assert not (tmp_path / "out").exists()


def test_the_same_content_is_kept_and_other_content_refused(tmp_path):
    write_bigfile(tmp_path, IDS, VECTORS)
    write_bigfile(tmp_path, IDS, VECTORS)
    for ids, vectors in ((["a", "b", "c"], VECTORS), (IDS, VECTORS + 1)):
        with pytest.raises(ArtefactError, match="another BigFile"):
            write_bigfile(tmp_path, ids, vectors)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("shape.txt", "3", 'expected "N D"'),
        ("shape.txt", "2 4", "3 ids, expected 2"),
        ("shape.txt", "3 5", "48 bytes, expected 60"),
        ("id.txt", "a b", "2 ids, expected 3"),
        ("feature.bin", "short", "5 bytes, expected 48"),
    ],
)
def test_a_damaged_folder_is_refused(name, content, words, tmp_path):
    write_bigfile(tmp_path, IDS, VECTORS)
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtefactError, match=words):
        read_bigfile(tmp_path)
