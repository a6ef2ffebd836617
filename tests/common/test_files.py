"""Files appear whole or not at all."""

import pytest

from lit_sparse.common.files import replacing, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "new" / "file"
    write_atomically(target, b"one")
    with replacing(target) as temporary:
        temporary.write_bytes(b"two")
        assert target.read_bytes() == b"one"
    assert target.read_bytes() == b"two"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"one")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_bytes(b"tw")
        raise RuntimeError
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]
