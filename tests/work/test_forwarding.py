"""Objects that stand for another one behind a port."""

from __future__ import annotations

from typing import Protocol

import pytest

from notary.server.signing import SigningService
from notary.storage import KeyStore, MetadataStore
from notary.work.forwarding import Forwarding, port_methods


class Closable(Protocol):
    def close(self) -> str: ...


class Port(Closable, Protocol):
    def read(self) -> str: ...

    def _inner(self) -> str: ...


def test_the_methods_are_those_of_the_port_and_of_its_bases() -> None:
    assert port_methods(Port) == ["close", "read"]


@pytest.mark.parametrize("port", [MetadataStore, KeyStore, SigningService])
def test_a_port_of_ours_has_methods_and_nothing_else(port: type) -> None:
    assert {"check", "close"} < set(port_methods(port))
    assert not getattr(port, "__annotations__", {}), "an attribute would not be forwarded"


def test_methods_are_made_once_and_may_be_replaced() -> None:
    made = []

    def make(name: str):
        made.append(name)
        return lambda: name

    stand_in = Forwarding(Port, make)
    assert (stand_in.read(), stand_in.read(), stand_in.close()) == ("read", "read", "close")
    assert made == ["close", "read"]
    with pytest.raises(AttributeError):
        stand_in.write()
    stand_in.replace_methods(lambda name: name.upper)
    assert stand_in.read() == "READ"
