"""Strict parsing, canonical writing, and the typed reading of members."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notary.errors import InvalidMetadata, MalformedJSON
from notary.tuf import canonical
from notary.tuf.canonical import (
    MAX_COMMAS,
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_DOCUMENTS,
    MAX_INTEGER,
    Members,
    StructureBudget,
)

# Canonical JSON has control characters as they are, which no JSON parser takes back: they have a test of their own.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
INTEGERS = st.integers(-MAX_INTEGER, MAX_INTEGER)
DEEPEST = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not JSON", id="nothing"),
        pytest.param(b" \n", "not JSON", id="white-space"),
        pytest.param(b"{", "not JSON", id="truncated-object"),
        pytest.param(b'{"a":1', "not JSON", id="truncated-after-member"),
        pytest.param(b'["a', "not JSON", id="truncated-string"),
        pytest.param(b"[1,]", "not JSON", id="trailing-comma"),
        pytest.param(b"{'a':1}", "not JSON", id="single-quotes"),
        pytest.param(b"{a:1}", "not JSON", id="bare-name"),
        pytest.param(b'{1:"a"}', "not JSON", id="number-as-name"),
        pytest.param(b"[01]", "not JSON", id="leading-zero"),
        pytest.param(b"[+1]", "not JSON", id="plus"),
        pytest.param(b"[.5]", "not JSON", id="no-integer-part"),
        pytest.param(b"[1.]", "not JSON", id="no-fraction"),
        pytest.param("[\u0661]".encode(), "not JSON", id="arabic-digit"),
        pytest.param(b"[True]", "not JSON", id="python"),
        pytest.param(b"// x\n{}", "not JSON", id="comment"),
        pytest.param(b"{}{}", "Extra data", id="second-value"),
        pytest.param(b"{} x", "Extra data", id="trailing-text"),
        pytest.param(b"{}\x00", "Extra data", id="trailing-nul"),
        pytest.param(b"{}\xc2\xa0", "Extra data", id="trailing-no-break-space"),
        pytest.param(b"{}\x0c", "Extra data", id="trailing-form-feed"),
        pytest.param(b"\x00{}", "not JSON", id="leading-nul"),
        pytest.param(b'{"a":1,"a":1}', "'a' is given twice", id="member-twice"),
        pytest.param(b'{"z":1,"b":2,"b":3,"a":4}', "'b' is given twice", id="member-twice-among-others"),
        pytest.param(b'{"a":1,"\\u0061":1}', "'a' is given twice", id="member-twice-in-disguise"),
        pytest.param(b'[{"x":{"b":1,"c":2,"b":3}}]', "'b' is given twice", id="member-twice-inside"),
        pytest.param(b"[NaN]", "NaN", id="nan"),
        pytest.param(b"[Infinity]", "Infinity", id="infinity"),
        pytest.param(b"[-Infinity]", "-Infinity", id="minus-infinity"),
        pytest.param(b"[1e400]", "a number is too large: JSON", id="float-overflow"),
        pytest.param(b"[-1e400]", "a number is too large: JSON", id="float-underflow"),
        pytest.param(b"[1e16]", "a number is too large: JSON", id="whole-float-too-large"),
        pytest.param(b"[9007199254740992]", "an integer is too large: JSON", id="integer-of-54-bits"),
        pytest.param(b"[-9007199254740992]", "an integer is too large: JSON", id="negative-integer-of-54-bits"),
        pytest.param(b"[18446744073709551616]", "an integer is too large: JSON", id="integer-of-65-bits"),
        pytest.param(b"[" + b"9" * 5000 + b"]", "an integer is too large: JSON", id="integer-of-5000-digits"),
        pytest.param(b"[-" + b"9" * 5000 + b"]", "an integer is too large: JSON", id="negative-integer-of-5000-digits"),
        pytest.param(b"\xef\xbb\xbf{}", "starts with a byte order mark: write UTF-8 without one", id="utf-8-bom"),
        pytest.param('"\u00e9"'.encode("latin-1"), "not UTF-8 at byte 1", id="latin-1"),
        pytest.param('{"a":1}'.encode("utf-16"), "not UTF-8 at byte 0", id="utf-16-bom"),
        pytest.param('{"a":1}'.encode("utf-16-le"), "not JSON", id="utf-16-le"),
        pytest.param('{"a":1}'.encode("utf-32-be"), "not JSON", id="utf-32-be"),
        pytest.param(b'"\xed\xa0\x80"', "not UTF-8", id="raw-surrogate"),
        pytest.param(b'"\xc0\xaf"', "not UTF-8", id="overlong"),
        pytest.param(b'"\xf4\x90\x80\x80"', "not UTF-8", id="beyond-unicode"),
        pytest.param(b'"\\ud800"', "a string holds half a surrogate pair", id="high-surrogate"),
        pytest.param(b'["\\uDFFFx"]', "a string holds half a surrogate pair", id="low-surrogate"),
        pytest.param(b'{"\\udc00\\ud800":1}', "a string holds half a surrogate pair", id="surrogates-in-reverse"),
        pytest.param(b'"\x00"', "Invalid control character", id="raw-nul"),
        pytest.param(b'"\n"', "Invalid control character", id="raw-newline"),
        pytest.param(b'"\x1f"', "Invalid control character", id="raw-control"),
        pytest.param(b'"\\x41"', "not JSON", id="unknown-escape"),
        pytest.param(b'"\\u12"', "not JSON", id="short-escape"),
        pytest.param(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep", id="arrays-one-too-deep"),
        pytest.param(b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH, "deep", id="objects-one-too-deep"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "deep", id="arrays-100000-deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deep", id="objects-100000-deep"),
        pytest.param(b"[" * 100_000, "deep", id="arrays-100000-deep-and-open"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(MalformedJSON, match=f"^(not JSON: |nested more than 100 |member )?{message}"):
        canonical.parse(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        pytest.param(b" \t\r\n{} \n", {}, id="white-space-around"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b'[true,false,-0,"\\u00e9"]', [True, False, 0, "é"], id="scalars"),
        pytest.param(
            b'{"a":{"a":1},"A":[{"a":2},{"a":3}]}', {"a": {"a": 1}, "A": [{"a": 2}, {"a": 3}]}, id="same-names"
        ),
        pytest.param(b"[9007199254740991,-9007199254740991]", [MAX_INTEGER, -MAX_INTEGER], id="largest-integers"),
        pytest.param(b"[9007199254740991.0]", [MAX_INTEGER], id="largest-whole-float"),
        pytest.param(b"[1.5,-0.25]", [1.5, -0.25], id="fractions"),
        pytest.param(b"[1e2,2.0,-0.0,1e-400]", [100, 2, 0, 0], id="whole-floats"),
        pytest.param(b'"\\ud83d\\ude00\\u0000\\n\\/"', "😀\0\n/", id="escapes"),
        pytest.param(b'"\\\\ud800"', "\\ud800", id="backslash-then-letters"),
        pytest.param('"\ufeff\U0010ffff"'.encode(), "\ufeff\U0010ffff", id="bom-inside-a-string"),
        pytest.param(DEEPEST, json.loads(DEEPEST), id="deepest"),
        pytest.param(b"[[]," + DEEPEST[1:], [[], *json.loads(DEEPEST)], id="deepest-beside-another"),
    ],
)
def test_what_is_taken(data, value):
    assert canonical.parse(data) == value


def full_of(element, count):
    return b"[" + b",".join([element] * count) + b"]"


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        pytest.param(full_of(b"[]", MAX_CONTAINERS - 1), True, id="arrays-at-the-limit", marks=pytest.mark.large),
        pytest.param(full_of(b"[]", MAX_CONTAINERS), False, id="arrays"),
        pytest.param(full_of(b"{}", MAX_CONTAINERS), False, id="objects"),
        pytest.param(full_of(b"{},[]", MAX_CONTAINERS // 2), False, id="arrays-and-objects"),
        pytest.param(b'"' + b"[{" * (MAX_CONTAINERS // 2) + b'"', True, id="brackets-in-a-string-at-the-limit"),
        pytest.param(b'"' + b"[{" * (MAX_CONTAINERS // 2) + b'["', False, id="brackets-in-a-string"),
        pytest.param(full_of(b"0", MAX_COMMAS + 1), True, id="commas-at-the-limit", marks=pytest.mark.large),
        pytest.param(full_of(b"0", MAX_COMMAS + 2), False, id="commas"),
        pytest.param(b'"' + b"," * MAX_COMMAS + b'"', True, id="commas-in-a-string-at-the-limit"),
        pytest.param(b'"' + b"," * (MAX_COMMAS + 1) + b'"', False, id="commas-in-a-string"),
        pytest.param(b"[" * (MAX_CONTAINERS + 1), False, id="open-arrays"),
        pytest.param(b"," * (MAX_COMMAS + 1), False, id="nothing-but-commas"),
    ],
)
def test_structure_has_a_limit(data, allowed):
    if allowed:
        canonical.parse(data)
        return
    with pytest.raises(MalformedJSON, match=r"^too much structure: at most [35]00000 characters"):
        canonical.parse(data)


# In a string, brackets and commas count as structure too, and are read a hundred times faster.
@pytest.mark.parametrize("structure", [b"[" * MAX_CONTAINERS, b"{" * MAX_CONTAINERS, b"," * MAX_COMMAS])
def test_documents_share_a_budget_and_small_ones_spend_it_too(structure):
    data = b'"' + structure + b'"'
    budget = StructureBudget()
    for _ in range(MAX_DOCUMENTS):
        canonical.parse(data, budget)
    with pytest.raises(
        MalformedJSON,
        match=r"^too much structure: all files together may hold at most 600000 .*, and 1000000 commas; publish",
    ):
        canonical.parse(b"[0,0]", budget)
    canonical.parse(data)


def test_numbers_keep_the_kind_that_they_were_written_as():
    integer, whole, fraction = canonical.parse(b"[100,1e2,0.5]")
    assert type(integer) is int
    assert isinstance(whole, int)
    assert type(whole) is not int
    assert type(fraction) is float


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("x" * 64, f"'{'x' * 64}'", id="short"),
        pytest.param("x" * 65, f"'{'x' * 64}...'", id="long"),
        pytest.param("é\n", r"'\xe9\n'", id="not ASCII"),
    ],
)
def test_a_quoted_name(name, shown):
    assert canonical.quote(name) == shown


def test_messages_are_short_and_ascii():
    name = "é\n" * 100_000
    with pytest.raises(MalformedJSON) as caught:
        canonical.parse(json.dumps([name])[1:-1].join(['{"x":{', ":1,", ":2}}"]).encode())
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# The right-hand sides were printed by the Go client's JSON library.
@pytest.mark.parametrize(
    ("value", "data"),
    [
        pytest.param({}, b"{}", id="empty-object"),
        pytest.param([None, True, False], b"[null,true,false]", id="literals"),
        pytest.param({"b": 1, "a": [1, {"d": 1, "c": 2}]}, b'{"a":[1,{"c":2,"d":1}],"b":1}', id="sorted"),
        pytest.param({"é": 3, "\uffff": 2, "😀": 1}, '{"é":3,"\uffff":2,"😀":1}'.encode(), id="code-point-order"),
        pytest.param({"a": 1, "B": 2, "": 3, "aa": 4}, b'{"":3,"B":2,"a":1,"aa":4}', id="case-and-prefixes"),
        pytest.param('x\n\0\x7f\t"\\/<>&\u2028', 'x\n\0\x7f\t\\"\\\\/<>&\u2028'.encode(), id="only-two-escapes"),
        pytest.param("\b\f\r\x1f\x01", b'"\b\f\r\x1f\x01"'[1:-1], id="control-characters"),
        pytest.param("\\n \\u0041 \\", b"\\\\n \\\\u0041 \\\\", id="backslashes-that-look-like-escapes"),
        pytest.param([100.0, -0.0, 1e15], b"[100,0,1000000000000000]", id="whole-floats"),
        pytest.param({"1.5": "a:1.5", "n": 1.0}, b'{"1.5":"a:1.5","n":1}', id="fractions-in-text"),
    ],
)
def test_canonical_form(value, data):
    assert canonical.dumps(value) == (b'"%b"' % data if isinstance(value, str) else data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(1.5, "canonical JSON holds no fractions", id="fraction"),
        pytest.param([1e-7], "canonical JSON holds no fractions", id="small-fraction"),
        pytest.param({"a": [{"b": -0.1}]}, "canonical JSON holds no fractions", id="fraction-inside"),
        pytest.param([math.nan], "NaN has no canonical form", id="nan"),
        pytest.param({"a": math.inf}, "Infinity has no canonical form", id="infinity"),
        pytest.param({"a": [-math.inf]}, "-Infinity has no canonical form", id="negative-infinity"),
        pytest.param("\ud800", "a string holds half a surrogate pair", id="surrogate"),
        pytest.param({"\udfff": 1}, "a string holds half a surrogate pair", id="surrogate-in-a-name"),
    ],
)
def test_what_has_no_canonical_form(value, message):
    with pytest.raises(InvalidMetadata, match=f"^{message}"):
        canonical.dumps(value)


def test_a_large_whole_float_is_written_as_an_integer():
    assert canonical.dumps([1e22]) == b"[10000000000000000000000]"


def test_a_parsed_whole_float_is_written_as_an_integer():
    assert canonical.dumps(canonical.parse(b'{"b": 1.0, "a": [1E2, -0.0]}')) == b'{"a":[100,0],"b":1}'


@given(VALUES)
@example({"1.0": ["\\", '"', "\u2028", "a:1.5,2e3", "\\u0041"]})
def test_what_is_written_is_read(value):
    data = canonical.dumps(value)
    assert canonical.parse(data) == value
    assert canonical.dumps(canonical.parse(data)) == data


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("".join(map(chr, range(256))) + "\\u0000\\n\\\\")
def test_strings_have_two_escapes_and_no_more(text):
    written = canonical.dumps(text).decode()
    assert written == '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.none()))
def test_members_are_in_the_order_of_their_bytes(value):
    in_order = sorted(value, key=str.encode)
    assert canonical.dumps(value) == b"{" + b",".join(canonical.dumps(name) + b":null" for name in in_order) + b"}"


@given(
    st.binary()
    | st.text('[]{}":,\\u0123456789abcdefD.-+ \n\r\tnulltruefalseNaNInfinity\ud800\0').map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
)
def test_any_bytes_are_read_or_refused(data):
    try:
        value = canonical.parse(data)
    except MalformedJSON:
        return
    assert value == json.loads(data)


@given(VALUES, st.data())
def test_changed_bytes_are_read_or_refused(value, data):
    whole = bytearray(canonical.dumps(value))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        canonical.parse(bytes(whole))
    except MalformedJSON:
        return


KNOWN = frozenset({"version", "keys", "keyids", "sig"})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Version", id="capital"),
        pytest.param("VERSION", id="capitals"),
        pytest.param("ver\u017fion", id="long-s"),
        pytest.param("\u212aeys", id="kelvin"),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"version": 1, "keys": {}}], ids=["alone", "beside"])
def test_names_that_go_takes_for_known_ones_are_refused(name, beside):
    with pytest.raises(InvalidMetadata, match=r"must be written '(version|keys)'"):
        Members({name: 1, **beside}, KNOWN, "x")


def test_unknown_members_are_for_others_unless_the_object_is_closed():
    assert Members({"version": 1, "x-other": 2, "X-Other": 3}, KNOWN, "x").integer("version") == 1
    with pytest.raises(InvalidMetadata, match="x: unknown member 'x-other'"):
        Members({"version": 1, "x-other": 2}, KNOWN, "x", closed=True)


@pytest.mark.parametrize("value", [{}, None, {"version": None}], ids=["absent", "null-object", "null-member"])
def test_absent_and_null_read_as_zero(value):
    members = Members(value, KNOWN, "x")
    assert members.text("version") == ""
    assert members.text("version", "z") == "z"
    assert members.integer("version") == 0
    assert members.flag("version") is False
    assert members.binary("version") == b""
    assert members.mapping("version") == {}
    assert members.sequence("version") == []
    assert members.texts("version") == ()


@pytest.mark.parametrize("value", [[], "", 0, False, 1.5], ids=repr)
def test_only_objects_have_members(value):
    with pytest.raises(InvalidMetadata, match="x: expected an object"):
        Members(value, KNOWN, "x")


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        pytest.param("text", 1, "a string", id="number-as-text"),
        pytest.param("text", ["a"], "a string", id="list-as-text"),
        pytest.param("integer", True, "an integer", id="truth-as-integer"),
        pytest.param("integer", "1", "an integer", id="text-as-integer"),
        pytest.param("integer", 1.5, "an integer", id="fraction-as-integer"),
        pytest.param("integer", canonical.parse(b"1e2"), "an integer", id="whole-float-as-integer"),
        pytest.param("integer", canonical.parse(b"1.0"), "an integer", id="one-point-nought-as-integer"),
        pytest.param("flag", 1, "true or false", id="number-as-flag"),
        pytest.param("flag", "true", "true or false", id="text-as-flag"),
        pytest.param("mapping", [], "an object", id="list-as-mapping"),
        pytest.param("sequence", {}, "a list", id="object-as-sequence"),
        pytest.param("sequence", "ab", "a list", id="text-as-sequence"),
        pytest.param("texts", ["a", 1], "a list of strings", id="number-among-texts"),
        pytest.param("texts", ["a", None], "a list of strings", id="null-among-texts"),
        pytest.param("binary", 1, "a string", id="number-as-binary"),
        pytest.param("binary", "AA=", "standard base64", id="one-pad-missing"),
        pytest.param("binary", "AAA", "standard base64", id="no-padding"),
        pytest.param("binary", "A", "standard base64", id="one-letter"),
        pytest.param("binary", "AA==AA==", "standard base64", id="two-values"),
        pytest.param("binary", "AAAA====", "standard base64", id="too-much-padding"),
        pytest.param("binary", "====", "standard base64", id="padding-alone"),
        pytest.param("binary", "AA-_", "standard base64", id="url-alphabet"),
        pytest.param("binary", "AA AA", "standard base64", id="space"),
        pytest.param("binary", "AA\tAA", "standard base64", id="tab"),
        pytest.param("binary", "AAA\u00e9", "standard base64", id="not-ascii"),
        pytest.param("binary", "\u0661AAA", "standard base64", id="arabic-digit"),
    ],
)
def test_wrong_types(method, value, message):
    with pytest.raises(InvalidMetadata, match=f"x: sig must be {message}"):
        getattr(Members({"sig": value}, KNOWN, "x"), method)("sig")


@pytest.mark.parametrize("name", ["x", "x" * 64])
def test_a_plain_name_is_shown_as_it_is(name):
    with pytest.raises(InvalidMetadata, match=f"^x: {name} must be a string$"):
        Members({name: 1}, frozenset({name}), "x").text(name)


@pytest.mark.parametrize("name", ["x" * 1_000_000, "x" * 65, "é" * 30, "a b"])
def test_a_name_of_the_writers_choice_is_quoted_in_messages(name):
    with pytest.raises(InvalidMetadata, match=r"^x: '[ -~]{1,200}' must be a string$"):
        Members({name: 1}, frozenset({name}), "x").text(name)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        pytest.param("", b"", id="empty"),
        pytest.param("AAE=", b"\0\1", id="padded"),
        pytest.param("+/+/", b"\xfb\xff\xbf", id="plus-and-slash"),
        pytest.param("AA\r\nE=\n", b"\0\1", id="line-breaks-as-go-skips-them"),
        pytest.param("AAF=", b"\0\1", id="spare-bits-as-go-drops-them"),
    ],
)
def test_base64(text, data):
    assert Members({"sig": text}, KNOWN, "x").binary("sig") == data
