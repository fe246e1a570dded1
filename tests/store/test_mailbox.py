"""Who is delivered what, when, and how often."""

import datetime as dt
from pathlib import Path

import apsw
import pytest

from protocol.tiers import Tier
from store.database import open_reader, open_writer
from store.mailbox import (
    ClaimMail,
    Reader,
    SendMail,
    SettleMail,
    carried_by,
    count_unread,
    find_mail,
    list_mail,
    unread,
)
from store.unit_of_work import ConflictError
from tests.support.storage import NOON, a_mail, at, commit, outcomes

REED = Reader("reed", "steward", ("operations", "on-call"))
CALLI = Reader("calli", "correspondence", ("writing",))
DWARA = Reader("dwara", "steward", ("operations",))
HOUR = 3600.0


def send(database: apsw.Connection, *recipients: str, **fields: object) -> list[str]:
    mails = [a_mail(number, recipient, **fields) for number, recipient in enumerate(recipients)]
    commit(database, *(SendMail(mail) for mail in mails))
    return [mail.id for mail in mails]


def for_(database: apsw.Connection, reader: Reader, now: str | None = None) -> list[str]:
    found = [mail.id for mail in unread(database, reader, now or at(60))]
    assert count_unread(database, reader, now or at(60)) == len(found)
    return found


def test_a_message_comes_back_as_it_was_sent(database: apsw.Connection):
    mail = a_mail(
        recipient="calli", sender="guest:0123456789abcdef", tier=Tier.UNKNOWN, hops=3, thread="t" * 32
    )
    commit(database, SendMail(mail), SendMail(mail))
    assert find_mail(database, mail.id) == mail
    assert find_mail(database, "nothing") is None
    assert unread(database, CALLI, at(1)) == [mail]


def test_mail_reaches_an_identity_a_role_a_tag_and_everybody(database: apsw.Connection):
    direct, role, tag, everybody, other = send(database, "reed", "steward", "tag:on-call", "all", "calli")
    assert for_(database, REED) == [direct, role, tag, everybody]
    assert for_(database, DWARA) == [role, everybody]
    assert for_(database, CALLI) == [everybody, other]
    assert for_(database, Reader("stranger")) == [everybody]


def test_nobody_is_delivered_a_broadcast_of_their_own_but_mail_to_oneself_arrives(database: apsw.Connection):
    broadcast, note = send(database, "all", "reed", sender="reed")
    assert for_(database, REED) == [note]
    assert for_(database, CALLI) == [broadcast]


@pytest.mark.parametrize(
    ("recipient", "to_role", "lives_h"),
    [("reed", False, 24), ("tag:on-call", False, 24), ("all", False, 4), ("steward", True, None)],
)
def test_mail_lives_as_long_as_its_kind_and_is_never_deleted(
    database: apsw.Connection, recipient: str, to_role: bool, lives_h: float | None
):
    [mail] = send(database, recipient, to_role=to_role)
    late = 24 * 365 if lives_h is None else lives_h
    assert for_(database, REED, at(late * HOUR - 1)) == [mail]
    assert for_(database, REED, at(late * HOUR)) == ([mail] if lives_h is None else [])
    assert find_mail(database, mail) is not None


def test_one_turn_at_a_time_carries_a_message(database: apsw.Connection):
    [mail] = send(database, "reed")
    commit(database, ClaimMail([mail], "reed", "turn-1"))
    assert for_(database, REED) == []
    assert [one.id for one in carried_by(database, "turn-1")] == [mail]
    with pytest.raises(ConflictError, match="carried by another turn"):
        commit(database, ClaimMail([mail], "reed", "turn-2"))
    commit(database, SettleMail("turn-1", None))
    assert for_(database, REED) == [mail]
    commit(database, ClaimMail([mail], "reed", "turn-2"))
    commit(database, SettleMail("turn-2", at(70)))
    assert for_(database, REED) == []
    assert carried_by(database, "turn-2") == []
    with pytest.raises(ConflictError, match="read meanwhile"):
        commit(database, ClaimMail([mail], "reed", "turn-3"))


def test_a_claim_of_several_holds_whole_or_not_at_all(database: apsw.Connection):
    one, two = send(database, "reed", "reed")
    commit(database, ClaimMail([two], "reed", "turn-1"))
    found = outcomes(database, (ClaimMail([one, two], "reed", "turn-2"),))
    assert isinstance(found[0], ConflictError)
    assert for_(database, REED) == [one]


def test_mail_to_all_is_read_by_each_for_itself_and_mail_to_a_role_by_one_for_all(database: apsw.Connection):
    everybody, role = send(database, "all", "steward")
    commit(database, ClaimMail([everybody, role], "reed", "turn-1"))
    assert for_(database, DWARA) == [everybody]
    commit(database, SettleMail("turn-1", at(61)))
    assert for_(database, REED) == []
    assert for_(database, DWARA) == [everybody]
    assert for_(database, CALLI) == [everybody]


def test_a_role_message_that_is_carried_by_one_holder_cannot_be_claimed_by_another(database: apsw.Connection):
    [role] = send(database, "steward", to_role=True)
    commit(database, ClaimMail([role], "reed", "turn-1"))
    with pytest.raises(ConflictError):
        commit(database, ClaimMail([role], "dwara", "turn-2"))


def test_a_turn_carries_so_many_and_no_more(database: apsw.Connection):
    sent = send(database, *["reed"] * 60)
    assert [mail.id for mail in unread(database, REED, at(90))] == sent[:50]
    assert count_unread(database, REED, at(90)) == 60


def test_a_turn_carries_as_much_as_a_model_can_read_and_at_least_one(database: apsw.Connection):
    long = send(database, *["reed"] * 4, body="x" * 24_000)
    assert [mail.id for mail in unread(database, REED, at(90))] == long[:2]
    commit(database, ClaimMail(long[:2], "reed", "turn-1"))
    assert [mail.id for mail in unread(database, REED, at(90))] == long[2:]
    [longest] = send(database, "calli", body="x" * 64_000, moment=NOON + dt.timedelta(seconds=20))
    assert [mail.id for mail in unread(database, CALLI, at(90))] == [longest]


def test_listing_says_what_was_read_and_by_whom(database: apsw.Connection):
    direct, everybody, other = send(database, "reed", "all", "calli")
    [role] = send(database, "steward", to_role=True, moment=NOON + dt.timedelta(seconds=9))
    commit(database, ClaimMail([direct, everybody], "reed", "turn-1"), SettleMail("turn-1", at(61)))
    assert [(mail.id, read) for mail, read in list_mail(database)] == [
        (direct, True),
        (everybody, None),
        (other, False),
        (role, None),
    ]
    assert [(mail.id, read) for mail, read in list_mail(database, reader=REED)] == [
        (direct, True),
        (everybody, True),
        (role, False),
    ]
    assert [mail.id for mail, _ in list_mail(database, limit=2)] == [other, role]


def test_ids_differ_between_two_messages_of_one_moment_only_by_who_and_whom():
    assert a_mail(0, "reed").id == a_mail(0, "reed").id
    assert (
        len(
            {
                a_mail(0, "reed").id,
                a_mail(0, "calli").id,
                a_mail(1, "reed").id,
                a_mail(0, "reed", sender="veda").id,
            }
        )
        == 4
    )


def test_a_damaged_message_holds_nobody_to_the_past(tmp_path: Path):
    """The connection that met it, which everybody shares, sees what is written afterwards."""
    path = tmp_path / "a.db"
    writer = open_writer(path)
    for mail in [a_mail(number, "reed", body=str(number)) for number in range(3)]:
        commit(writer, SendMail(mail))
    writer.execute("UPDATE mail SET tier = 'nonsense' WHERE body = '0'")
    reader = open_reader(path)
    with pytest.raises(ValueError, match="nonsense") as kept:
        unread(reader, REED, at(60))
    writer.execute("UPDATE mail SET tier = 'standing' WHERE body = '0'")
    assert [mail.body for mail in unread(reader, REED, at(60))] == ["0", "1", "2"]
    assert kept.value is not None  # the exception lived on meanwhile, as it does in a log
    reader.close()
    writer.close()
