"""`agent-runner mail`: send through the daemon, list from the store."""

from __future__ import annotations

from typing import Any

import apsw
import click

from actors.commands.agents import load_roster, unknown_agent
from actors.commands.calls import ask
from actors.commands.environment import open_store, say_never_ran, with_root
from actors.commands.options import (
    checked_text,
    checked_texts,
    example,
    json_option,
    keep_root,
    limit_option,
    root_parameter,
)
from actors.commands.output import clean, moment, one_line, paint, say, say_json, shortened
from protocol.acting import OPERATOR
from protocol.errors import AgentRunnerError
from store.clock import rfc3339, utc_now
from store.mailbox import Mail, Reader, list_mail, matching_mail, reader_of, thread_of
from store.root import Root

_STATES = {True: "read", False: "unread", None: ""}


@click.group(
    "mail", params=[root_parameter()], epilog=example("mail send reed -s disk -m 'is it full?'", "mail list")
)
@click.pass_context
def command(ctx: click.Context, root: str | None) -> None:
    """Send and list mail."""
    keep_root(ctx, root)


@command.command("send", epilog=example("mail send reed -s disk -m 'how full is it?'"))
@click.argument("recipient", metavar="TO", callback=checked_text)
@click.option("-s", "--subject", required=True, callback=checked_text, help="One line.")
@click.option(
    "-m", "--message", "body", required=True, callback=checked_text, metavar="BODY", help="The text."
)
@click.option(
    "--from",
    "sender",
    callback=checked_text,
    metavar="ID",
    help="Send as this identity, with its trust; else as operator.",
)
@click.option("--thread", metavar="ID", callback=checked_text, help="Go on with the thread of this message.")
@with_root
def send_command(
    root: Root, *, recipient: str, subject: str, body: str, sender: str | None, thread: str | None
) -> None:
    """Send mail to TO: an agent's id, a role, tag:NAME or all. A standing agent wakes at once."""
    params: dict[str, Any] = {"to": recipient, "subject": subject, "body": body}
    if sender is not None:
        params["sender"] = sender
    if thread is not None:
        params["thread"] = _one(open_store(root), thread).id
    say(ask(root, "mail.send", params)["id"])


@command.command("list", epilog=example("mail list --for operator", "mail list --unread"))
@click.option("--for", "reader_id", metavar="ID", help="Only what reaches this identity; `operator` is you.")
@click.option("--unread", is_flag=True, help="Only what is still to be read: by --for, else by anybody.")
@limit_option(100)
@json_option
@with_root
def list_command(root: Root, *, reader_id: str | None, unread: bool, limit: int, as_json: bool) -> None:
    """List mail, the newest last, and whether it was read. Looking at it does not mark it; `mail read` does."""
    reader = None if reader_id is None else _reader(root, reader_id)
    database = open_store(root)
    now = rfc3339(utc_now()) if unread else None
    mails = [] if database is None else list_mail(database, reader=reader, limit=limit, unread_at=now)
    if as_json:
        say_json([_record(mail, read) for mail, read in mails])
        return
    if database is None:
        say_never_ran(root, "so there is no mail")
    for mail, read in mails:
        _say_mail(mail, _STATES[read])


@command.command("thread", epilog=example("mail thread 3f9a51"))
@click.argument("mail_id", metavar="ID", callback=checked_text)
@json_option
@with_root
def thread_command(root: Root, *, mail_id: str, as_json: bool) -> None:
    """Show the whole thread of message ID (or how it begins), and who read each message when."""
    database = open_store(root)
    found = _one(database, mail_id)
    mails = [] if database is None else thread_of(database, found.thread)
    if as_json:
        say_json(
            [
                {
                    **_record(mail, read=None),
                    "read": bool(readers),
                    "thread": mail.thread,
                    "hops": mail.hops,
                    "tier": str(mail.tier),
                    "expires_at": mail.expires_at,
                    "read_by": readers,
                }
                for mail, readers in mails
            ]
        )
        return
    for mail, readers in mails:
        read = ", ".join(f"{one_line(reader)} {moment(at)}" for reader, at in readers.items())
        _say_mail(mail, f"read by {read}" if read else "unread")


@command.command("read", epilog=example("mail read", "mail read 3f9a51"))
@click.argument("mail_ids", metavar="[ID]...", nargs=-1, callback=checked_texts)
@json_option
@with_root
def read_command(root: Root, *, mail_ids: tuple[str, ...], as_json: bool) -> None:
    """Show the operator's own unread mail, or the messages ID, and mark it read."""
    database = open_store(root)
    me = Reader(OPERATOR)
    if mail_ids:
        mails = [_one(database, mail_id) for mail_id in mail_ids]
    else:
        now = rfc3339(utc_now())
        found = [] if database is None else list_mail(database, reader=me, limit=100, unread_at=now)
        mails = [mail for mail, _ in found]
    # Marked first: what could not be marked is not shown as if it had been.
    ask(root, "mail.read", {"ids": [mail.id for mail in mails]})
    if as_json:
        say_json([_record(mail, read=True) for mail in mails])
        return
    for mail in mails:
        _say_mail(mail, "")
    if not mails:
        say("No unread mail.")


def _say_mail(mail: Mail, state: str) -> None:
    way = f"{one_line(mail.sender)} -> {one_line(mail.recipient)}"
    subject = paint(one_line(mail.subject), bold=True)
    say(f"{moment(mail.sent_at)}  {mail.id[:12]}  {way}  {subject}  {state}".rstrip())
    for line in clean(mail.body).splitlines():
        say(f"    {line}")


def _one(database: apsw.Connection | None, mail_id: str) -> Mail:
    """Return the message whose id begins so; raises AgentRunnerError where there is not exactly one."""
    found = [] if database is None else matching_mail(database, mail_id.lower())
    if len(found) != 1:
        raise AgentRunnerError(
            f"no message, or more than one, has an id that begins with {shortened(mail_id, 80)!r}; "
            "`agent-runner mail list` shows them"
        )
    return found[0]


def _reader(root: Root, reader_id: str) -> Reader:
    """Return the addresses of an identity; raises AgentRunnerError where the roster has none of that id."""
    if reader_id == OPERATOR:
        return Reader(OPERATOR)
    roster = load_roster(root)
    identity = roster.get(reader_id)
    if identity is None:
        raise unknown_agent(reader_id, [OPERATOR, *(one.id for one in roster.identities)])
    return reader_of(identity)


def _record(mail: Mail, read: bool | None) -> dict[str, Any]:
    return {
        "id": mail.id,
        "sender": mail.sender,
        "recipient": mail.recipient,
        "subject": mail.subject,
        "body": mail.body,
        "sent_at": mail.sent_at,
        "read": read,
    }
