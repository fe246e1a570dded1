"""The roster: trust of an identity, and whom a recipient's name reaches."""

from __future__ import annotations

import pytest

from protocol.roster import Identity, Roster, roster_faults, tier_of
from protocol.tiers import Tier


def identity(name, kind="role", state="live", **fields):
    return Identity(id=name, kind=kind, state=state, **fields)


REED = identity("reed", role="steward", tags=["on-call", "operations"])
CORA = identity("cora", role="triage", tags=["door"])
VIA = identity("via", role="triage", state="frozen", tags=["door", "on-call"])
ANN = identity("ann", kind="user", role="member")
GONE = identity("gone", role="steward", state="dead", tags=["on-call", "door"])
ROSTER = Roster([REED, CORA, VIA, ANN, GONE])


@pytest.mark.parametrize(
    ("who", "tier"),
    [
        (None, Tier.UNKNOWN),
        (identity("a", state="dead"), Tier.UNKNOWN),
        (identity("a", kind="user", state="dead"), Tier.UNKNOWN),
        (identity("a", kind="user"), Tier.REGISTERED),
        (identity("a", kind="user", state="frozen"), Tier.REGISTERED),
        (identity("a", state="frozen"), Tier.REGISTERED),
        (identity("a"), Tier.STANDING),
    ],
)
def test_trust_follows_kind_and_state(who, tier):
    assert tier_of(who) is tier


@pytest.mark.parametrize(
    ("recipient", "reached"),
    [
        ("reed", [REED]),
        ("triage", [CORA, VIA]),
        ("steward", [REED]),
        ("tag:door", [CORA, VIA]),
        ("tag:on-call", [REED, VIA]),
        ("all", [REED, CORA, VIA, ANN]),
        ("gone", []),
        ("nobody", []),
        ("tag:", []),
        ("tag:nothing", []),
        ("", []),
        ("Reed", []),
        ("operator", []),
    ],
)
def test_a_recipient_reaches_the_living_in_the_order_of_the_roster(recipient, reached):
    assert ROSTER.resolve(recipient) == reached


def test_an_id_goes_before_a_role_of_the_same_name():
    triage = identity("triage")
    assert Roster([CORA, triage]).resolve("triage") == [triage]


def test_standing_agents_are_the_live_roles():
    assert ROSTER.standing() == [REED, CORA]


def test_an_identity_is_found_by_its_id_dead_or_not():
    assert ROSTER.get("gone") is GONE
    assert ROSTER.get("nobody") is None


def test_two_identities_of_one_id_make_no_roster():
    with pytest.raises(ValueError, match="one id"):
        Roster([REED, REED])


@pytest.mark.parametrize("name", ["", "a" * 65, "-a", "A", "a.b", "a_b", "guest:1", "a/b", "..", "é", "a\n"])
def test_what_is_no_id_is_a_fault(name):
    assert [fault.where for fault in roster_faults([identity(name)])] == [("identities", 0, "id")]


@pytest.mark.parametrize("name", ["operator", "runner", "all", "guest"])
def test_a_reserved_name_is_neither_id_nor_role(name):
    faults = list(roster_faults([identity(name), identity("b", role=name)]))
    assert [fault.where for fault in faults if "reserved" in fault.problem] == [
        ("identities", 0, "id"),
        ("identities", 1, "role"),
    ]


@pytest.mark.parametrize("name", ["a", "0", "haak-00", "a" * 64])
def test_a_plain_id_is_none(name):
    assert list(roster_faults([identity(name, mandate=f"mandates/{name}.md", tags=["x"], role=name)])) == []


@pytest.mark.parametrize(
    "mandate",
    [
        "reed.md",
        "notes/reed.md",
        "mandates",
        "mandates/",
        "/etc/passwd",
        "../x",
        "mandates/../x",
        "mandates//x",
        ".",
    ],
)
def test_a_mandate_outside_the_protected_folder_is_a_fault(mandate):
    (fault,) = roster_faults([identity("reed", mandate=mandate)])
    assert fault.where == ("identities", 0, "mandate")
    assert "mandates/reed.md" in fault.fix
