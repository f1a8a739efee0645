"""Requests in Kubernetes' protobuf envelope. The bytes are made here by a small writer of the wire format."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmtask.apiserver.builtin_kinds import MESSAGES
from swarmtask.apiserver.protobuf import MAGIC, MAX_BYTES, decode
from swarmtask.errors import BadRequest, UnsupportedMediaType


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(**fields: Any) -> bytes:
    """`f3=...`: bytes and texts are length-delimited, integers are varints, lists repeat."""
    out = b""
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            number = int(name[1:])
            if isinstance(item, int):
                out += varint(number << 3) + varint(item)
            else:
                data = item.encode() if isinstance(item, str) else item
                out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def envelope(api_version: str, kind: str, raw: bytes, **more: Any) -> bytes:
    return MAGIC + message(f1=message(f1=api_version, f2=kind), f2=raw, **more)


META = message(f1="n", f2="", f3="ns", f5="", f8=b"", f11=[message(f1="k", f2="v")])
PLAIN_META = {"name": "n", "namespace": "ns", "labels": {"k": "v"}}


@pytest.mark.parametrize(
    ("api_version", "kind", "raw", "rest"),
    [
        ("v1", "ConfigMap", message(f1=META, f2=[message(f1="a", f2="1"), message(f1="b", f2=""), message(f1="c")],
                                    f3=[message(f1="x", f2=b"\xff")], f4=0),
         {"metadata": PLAIN_META, "data": {"a": "1", "b": "", "c": ""}, "binaryData": {"x": "/w=="}, "immutable": False}),
        ("v1", "Secret", message(f1=META, f2=[message(f1="p", f2=b"pass")], f3="Opaque"),
         {"metadata": PLAIN_META, "data": {"p": "cGFzcw=="}, "type": "Opaque"}),
        ("v1", "Namespace", message(f1=META, f2=message(f1=["kubernetes"]), f3=message(f1="")),
         {"metadata": PLAIN_META, "spec": {"finalizers": ["kubernetes"]}}),
        ("v1", "Event", message(f1=META, f2=message(f1="SwarmTask", f3="t"), f6=message(f1=1767225600, f2=0), f8=3,
                                f10=message(f1=1767225600, f2=5000)),
         {"metadata": PLAIN_META, "involvedObject": {"kind": "SwarmTask", "name": "t"}, "firstTimestamp": "2026-01-01T00:00:00Z",
          "count": 3, "eventTime": "2026-01-01T00:00:00.000005Z"}),
        ("coordination.k8s.io/v1", "Lease", message(f1=META, f2=message(f1="me", f2=0, f5=-1)),
         {"metadata": PLAIN_META, "spec": {"holderIdentity": "me", "leaseDurationSeconds": 0, "leaseTransitions": -1}}),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview",
         message(f1=b"", f2=message(f1=message(f1="ns", f2="get", f3="", f4="", f5="secrets", f6="", f7="")), f3=message(f1=0)),
         {"spec": {"resourceAttributes": {"namespace": "ns", "verb": "get", "resource": "secrets"}}}),
        ("authorization.k8s.io/v1", "SubjectAccessReview",
         message(f2=message(f3="me", f5=[message(f1="k", f2=message(f1=["a", "b"])), message(f1="e")])),
         {"spec": {"user": "me", "extra": {"k": ["a", "b"], "e": []}}}),
        ("authentication.k8s.io/v1", "SelfSubjectReview", b"", {}),
        ("v1", "DeleteOptions", message(f1=0, f2=message(f1="u"), f4="Foreground", f5=["All"]),
         {"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "propagationPolicy": "Foreground", "dryRun": ["All"]}),
    ],
)  # fmt: skip
def test_built_in_kinds(api_version: str, kind: str, raw: bytes, rest: dict[str, Any]) -> None:
    assert decode(envelope(api_version, kind, raw)) == {"apiVersion": api_version, "kind": kind, **rest}


def test_managed_fields_and_unknown_fields() -> None:
    entry = message(f1="m", f2="Apply", f3="v1", f4=message(f1=1767225600), f6="FieldsV1", f7=message(f1=b'{"f:data":{}}'))
    raw = message(f1=message(f1="n", f17=[entry], f99="from the future"), f77=5)
    assert decode(envelope("v1", "ConfigMap", raw))["metadata"] == {"name": "n", "managedFields": [{
        "manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {}}}]}  # fmt: skip


def test_json_inside_an_envelope() -> None:
    body = envelope("a.io/v1", "Thing", b'{"spec":{"a":1}}', f4="application/json")
    assert decode(body) == {"apiVersion": "a.io/v1", "kind": "Thing", "spec": {"a": 1}}
    with pytest.raises(BadRequest):
        decode(envelope("a.io/v1", "Thing", b"[", f4="application/json"))
    with pytest.raises(BadRequest):
        decode(envelope("a.io/v1", "Thing", b"[]", f4="application/json"))


@pytest.mark.parametrize(("api_version", "kind"), [("a.io/v1", "Thing"), ("v1", "Pod"), ("", ""), ("v2", "Secret")])
def test_kinds_without_a_protobuf_form(api_version: str, kind: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json"):
        decode(envelope(api_version, kind, b""))


def test_compressed_content_is_not_supported() -> None:
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        decode(envelope("v1", "Secret", b"", f3="gzip"))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"k8s", b"{}", MAGIC + b"\x0a", MAGIC + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", MAGIC + b"\x00\x00",
        MAGIC + b"\x0b", MAGIC + b"\xff" * 11, MAGIC + b"\x08" + b"\xff" * 9 + b"\x7f",
        envelope("v1", "Secret", b"\x0a\x05abc"), envelope("v1", "Secret", message(f1=3)), envelope("v1", "Secret",
         message(f3=b"\xff")),
        envelope("v1", "Event", message(f8=2**40)), envelope("v1", "Event", message(f8="x")),
        envelope("v1", "Event", message(f6=message(f1=2**62))),
        envelope("v1", "ConfigMap", message(f1=message(f17=[message(f7=message(f1=b"{"))]))),
        MAGIC + b"\x12" + varint(MAX_BYTES) + b"a" * MAX_BYTES,
    ],
)  # fmt: skip
def test_garbage_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(body)


@settings(max_examples=300)
@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=60))
def test_no_bytes_raise_anything_else(key: tuple[str, str], raw: bytes) -> None:
    for body in (envelope(*key, raw), MAGIC + raw, envelope(*key, message(f1=raw, f2=raw))):
        try:
            assert isinstance(decode(body), dict)
        except (BadRequest, UnsupportedMediaType):
            continue


@given(st.integers(0, 200))
def test_a_cut_off_body_is_never_taken_for_whole(cut: int) -> None:
    whole = envelope("v1", "ConfigMap", message(f1=META, f2=[message(f1="a", f2="1")]))
    envelope_only = len(envelope("v1", "ConfigMap", b"")) - 2
    if cut < len(whole) and cut != envelope_only:  # Between two fields nothing shows that one is missing; HTTP's length does.
        with pytest.raises((BadRequest, UnsupportedMediaType)):
            decode(whole[:cut])
