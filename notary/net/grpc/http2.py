"""The HTTP/2 state machine of h2, with bounds on the memory and the work that a peer can cause.

Rules of this module: pure. By itself, h2 would

- keep the value of every setting that a peer names, known or not, and walk over all of them at each SETTINGS frame;
- let a peer choose how large the table is in which our own header fields are kept and searched;
- collect every change of that table's size until the next header block leaves;
- remember how 65,536 streams of a connection ended;
- walk over all streams of a connection whenever one begins.
"""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hpack import Encoder

LARGEST_TABLE_BYTES: Final = 4096
"""The largest HPACK table of our header fields: the size that every peer starts with (RFC 9113, 6.5.2)."""

_KNOWN: Final = frozenset(SettingCodes)
_KEPT_CHANGES: Final = 2  # a peer must hear the smallest size of the table and the last one (RFC 7541, section 4.2)
_FEW_STREAMS: Final = 16


class _RemoteSettings(Settings):
    """The settings of a peer; a setting that HTTP/2 does not know is ignored (RFC 9113, section 6.5.2)."""

    def __setitem__(self, key: SettingCodes | int, value: int) -> None:
        if key in _KNOWN:
            super().__setitem__(key, value)


class _Encoder(Encoder):
    """An encoder whose table has at most ``LARGEST_TABLE_BYTES`` bytes, however many the peer would allow."""

    @property
    def header_table_size(self) -> int:
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        size = min(value, LARGEST_TABLE_BYTES)
        if size == self.header_table.maxsize:
            return
        self.header_table.maxsize = size
        changes = [*self.table_size_changes, size]
        self.table_size_changes = changes if len(changes) <= _KEPT_CHANGES else [min(changes), size]


class Http2(H2Connection):
    """One side of a connection.

    The caller bounds how many streams may be open: ``open_inbound_streams`` and ``open_outbound_streams``,
    which h2 asks before each new stream, are always 0 here.
    """

    MAX_CLOSED_STREAMS = 1_000

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.encoder = _Encoder()
        self.remote_settings = _RemoteSettings(client=not config.client_side)
        self._count_at = _FEW_STREAMS

    @property
    def open_inbound_streams(self) -> int:
        """See the class."""
        # h2 forgets closed streams when it counts the open ones. Counting only when many can be closed visits each
        # stream once or twice on average.
        if len(self.streams) >= self._count_at:
            super().open_inbound_streams  # noqa: B018 - for its effect
            self._count_at = 2 * len(self.streams) + _FEW_STREAMS
        return 0

    @property
    def open_outbound_streams(self) -> int:
        """See the class."""
        return self.open_inbound_streams
