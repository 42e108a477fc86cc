"""Names of collections and of roles: what is one, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notary.errors import InvalidGun, InvalidRole
from notary.tuf.model import BASE_ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Gun, RoleName


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "docker.io/library/alpine",
        "localhost:5000/A/b_c-d",
        "Ünïcödé/名前",
        "inner space",
        "x" * 255,
        "é" * 255,
        "a/_trust/b",
        "\uffff",
    ],
)
def test_guns(name):
    gun = Gun(name)
    assert gun == name
    assert isinstance(gun, Gun)
    assert hash(gun) == hash(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 256, id="256-characters"),
        pytest.param("a/*", id="star"),
        pytest.param("a\n", id="trailing-newline"),
        pytest.param(" a", id="leading-space"),
        pytest.param("a ", id="trailing-space"),
        pytest.param("a\u3000", id="trailing-wide-space"),
        pytest.param("\u00a0a", id="leading-no-break-space"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a\tb", id="tab"),
        pytest.param("a\x7fb", id="delete"),
        pytest.param("a\x85b", id="c1-control"),
        pytest.param("a/😀", id="beyond-the-basic-plane"),
        pytest.param("a\ud800b", id="high-surrogate"),
        pytest.param("a\udfff", id="low-surrogate"),
    ],
)
def test_names_that_are_no_guns(name):
    with pytest.raises(InvalidGun) as caught:
        Gun(name)
    assert str(caught.value).isascii()


def test_base_roles():
    assert BASE_ROLES == ("root", "targets", "snapshot", "timestamp") == (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
    for role in BASE_ROLES:
        assert isinstance(role, RoleName)
        assert (role.is_delegation, role.parent, role.depth) == (False, None, 1)


@pytest.mark.parametrize(
    ("name", "parent", "depth"),
    [
        ("targets/a", "targets", 2),
        ("targets/a/b", "targets/a", 3),
        ("targets/-_09/z", "targets/-_09", 3),
        ("targets/" + "a" * 247, "targets", 2),
        ("targets/root", "targets", 2),
    ],
)
def test_delegations(name, parent, depth):
    role = RoleName(name)
    assert (role.is_delegation, role.parent, role.depth) == (True, parent, depth)
    assert isinstance(role.parent, RoleName)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("Root", id="capital"),
        pytest.param("root\n", id="base-and-newline"),
        pytest.param(" root", id="base-and-space"),
        pytest.param("mirrors", id="unknown-base"),
        pytest.param("root/a", id="below-root"),
        pytest.param("targetsx/a", id="below-something-like-targets"),
        pytest.param("targets/", id="trailing-slash-of-base"),
        pytest.param("targets/a/", id="trailing-slash"),
        pytest.param("targets//a", id="double-slash"),
        pytest.param("/targets/a", id="leading-slash"),
        pytest.param("targets/a\n", id="trailing-newline"),
        pytest.param("targets/A", id="capital-in-delegation"),
        pytest.param("targets/a b", id="space-inside"),
        pytest.param("targets/.", id="dot"),
        pytest.param("targets/..", id="dot-dot"),
        pytest.param("targets/a.b", id="dot-inside"),
        pytest.param("targets/*", id="star"),
        pytest.param("targets/é", id="not-ascii"),
        pytest.param("targets/\u0661", id="arabic-digit"),
        pytest.param("targets/\0", id="nul"),
        pytest.param("targets/\ud800", id="surrogate"),
        pytest.param("targets/" + "a" * 248, id="256-characters"),
    ],
)
def test_names_that_are_no_roles(name):
    with pytest.raises(InvalidRole) as caught:
        RoleName(name)
    assert str(caught.value).isascii()


@given(st.from_regex(r"(targets/)?[-a-z0-9_/]{0,12}", fullmatch=True))
def test_a_delegation_is_a_clean_path_below_targets(name):
    clean = all(name.split("/"))
    try:
        role = RoleName(name)
    except InvalidRole:
        assert not (clean and name.startswith("targets/"))
        assert name not in BASE_ROLES
    else:
        assert clean
        assert role in BASE_ROLES or (role.startswith("targets/") and role == f"{role.parent}/{role.split('/')[-1]}")
