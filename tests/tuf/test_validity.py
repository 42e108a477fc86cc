"""The end of a file's validity is found in its text, and never too late."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from notary.tuf.validity import EXPIRED, WINDOW_BYTES, valid_until

TIME = "2030-01-31T12:00:00Z"
THEN = datetime(2030, 1, 31, 12, tzinfo=UTC)
EARLIER = datetime(2029, 1, 1, tzinfo=UTC)


def file(expires: str = f'"expires":"{TIME}"', rest: str = "") -> bytes:
    whole = f'{{"signed":{{"_type":"Targets",{expires},"targets":{{{rest}}},"version":1}},"signatures":[]}}'
    return whole.encode(errors="surrogateescape")


@pytest.mark.parametrize(
    ("data", "until"),
    [
        pytest.param(file(), THEN, id="plain"),
        pytest.param(file(f'"expires" :\n\t "{TIME}"'), THEN, id="blanks"),
        pytest.param(file('"expires":"2030-01-31T13:30:00.5+01:30"'), THEN.replace(microsecond=500000), id="offset"),
        pytest.param(file(rest='"a\\"expires\\":\\"2029-01-01T00:00:00Z\\"":{}'), THEN, id="in-a-name"),
        pytest.param(file(rest='"a":{"custom":["expires","2029-01-01T00:00:00Z"]}'), THEN, id="a-text"),
        pytest.param(file(rest='"a":{"custom":{"expires":"2031-01-01T00:00:00Z"}}'), THEN, id="custom-later"),
        pytest.param(file(rest='"a":{"custom":{"expires":"2029-01-01T00:00:00Z"}}'), EARLIER, id="custom-earlier"),
        pytest.param(file(rest='"a":{"custom":{"expires":null}}'), EXPIRED, id="custom-no-time"),
        pytest.param(file(f'"\\u0065xpires":"{TIME}"'), EXPIRED, id="escaped-name"),
        pytest.param(file(f'"exp\\u0069res":"{TIME}"', '"a":{"custom":{"expires":"2031-01-01T00:00:00Z"}}'), EXPIRED,
                     id="escaped-name-and-custom"),
        pytest.param(file('"expires":"2030-01-31T12:00:00\\u005a"'), EXPIRED, id="escaped-value"),
        pytest.param(file('"a":1'), EXPIRED, id="none"),
        pytest.param(file('"expires":"soon"'), EXPIRED, id="no-time"),
        pytest.param(file('"expires":"\udcff"'), EXPIRED, id="no-text"),
        pytest.param(file(rest='"a":{"custom":["expires",{"expires":"2029-01-01T00:00:00Z"}]}'), EARLIER,
                     id="a-text-and-custom-earlier"),
        pytest.param(file('"expires":"2030-02-30T12:00:00Z"'), EXPIRED, id="no-day"),
        pytest.param(f'"expires":"{TIME}"'.encode(), THEN, id="at-the-begin"),
        pytest.param(b"", EXPIRED, id="empty"),
    ],
)  # fmt: skip
def test_until_when_a_file_is_valid(data: bytes, until: datetime) -> None:
    assert valid_until(data) == until


@pytest.mark.parametrize("shift", range(-45, 5))
def test_it_is_found_wherever_the_windows_end(shift: int) -> None:
    start = WINDOW_BYTES + shift
    data = file(f'"a":"{"x" * (start - 31)}","expires":"{TIME}"')
    assert json.loads(data)["signed"]["expires"] == TIME
    assert valid_until(data) == THEN
    escaped = data.replace(b"expires", b"\\u0065xpires").replace(
        b'"targets":{', b'"targets":{"expires":"2031-01-31T12:00:00Z"'
    )
    assert valid_until(escaped) == EXPIRED
