"""`agent-runner mail`: send through the daemon, list from the store."""

from __future__ import annotations

from typing import Any

import click

from actors.commands.agents import load_roster, unknown_agent
from actors.commands.calls import ask
from actors.commands.environment import open_store, typed, with_root
from actors.commands.options import checked_text, example, json_option, keep_root, root_parameter
from actors.commands.output import clean, complain, moment, one_line, paint, say, say_json
from protocol.acting import OPERATOR
from store.mailbox import Mail, Reader, list_mail, reader_of
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
@with_root
def send_command(root: Root, *, recipient: str, subject: str, body: str, sender: str | None) -> None:
    """Send mail to TO: an agent's id, a role, tag:NAME or all. A standing agent wakes at once."""
    params: dict[str, Any] = {"to": recipient, "subject": subject, "body": body}
    if sender is not None:
        params["sender"] = sender
    say(ask(root, "mail.send", params)["id"])


@command.command("list", epilog=example("mail list --for operator"))
@click.option("--for", "reader_id", metavar="ID", help="Only what reaches this identity; `operator` is you.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The newest so many."
)
@json_option
@with_root
def list_command(root: Root, *, reader_id: str | None, limit: int, as_json: bool) -> None:
    """List mail, the newest last, and whether it was read. Looking at it does not mark it."""
    reader = None if reader_id is None else _reader(root, reader_id)
    database = open_store(root)
    mails = [] if database is None else list_mail(database, reader=reader, limit=limit)
    if as_json:
        say_json([_record(mail, read) for mail, read in mails])
        return
    if database is None:
        complain(
            f"no daemon has run on {root.path} yet, so there is no mail; start one with `{typed(root, 'run')}`"
        )
    for mail, read in mails:
        way = f"{one_line(mail.sender)} -> {one_line(mail.recipient)}"
        say(
            f"{moment(mail.sent_at)}  {way}  {paint(one_line(mail.subject), bold=True)}  {_STATES[read]}".rstrip()
        )
        for line in clean(mail.body).splitlines():
            say(f"    {line}")


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
