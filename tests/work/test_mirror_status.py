"""The file in which a mirror says how far it has come."""

from __future__ import annotations

import pytest

from notary.work.mirror_status import MAX_BYTES, MirrorStatus


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "status.json"
    for status in (MirrorStatus(1_700_000_000.25, 0), MirrorStatus(1_700_000_001.0, 17)):
        status.write(path)
        assert MirrorStatus.read(path) == status
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"complete_at": 1}',
        b'{"complete_at": NaN, "due": 0}',
        b'{"complete_at": 1e999, "due": 0}',
        b'{"complete_at": "now", "due": 0}',
        b'{"complete_at": 1, "due": -1}',
        b'{"complete_at": 1, "due": null}',
        b"[" * 4000,
        b'{"complete_at": 1, "due": 0}' + b" " * MAX_BYTES,
    ],
)
def test_what_is_no_status(tmp_path, content):
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not what notary-admin mirror --status-file writes"):
        MirrorStatus.read(path)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "status.json").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        MirrorStatus(1.0, 0).write(tmp_path / "status.json")
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]
