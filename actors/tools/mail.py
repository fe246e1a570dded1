"""send_message and read_mailbox: mail between agents (section 9 of the specification)."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

from actors.runtime.base import ToolDefinition
from actors.runtime.prompt import mail_text
from actors.tools.base import Tool, ToolContext, ToolOutcome
from protocol.acting import OPERATOR
from protocol.roster import Roster
from store.mailbox import (
    BODY_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    ClaimMail,
    SendMail,
    compose,
    count_unread,
    unread,
)


class RecipientError(Exception):
    """A recipient that nobody answers to; the message names those who are near."""


def check_recipient(roster: Roster, recipient: str) -> bool:
    """Return whether mail to `recipient` is mail to a role; raises RecipientError if it reaches nobody.

    A recipient is an identity's id, a role, `tag:NAME`, `all`, or `operator` (the person who keeps the daemon).
    """
    if recipient == OPERATOR:
        return False
    found = roster.resolve(recipient)
    if found:
        return recipient not in {"all", *(identity.id for identity in found)} and not recipient.startswith(
            "tag:"
        )
    known = [OPERATOR, "all", *(identity.id for identity in roster.identities)]
    near = difflib.get_close_matches(recipient, known, n=3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "use an agent's id, a role, tag:NAME, all or operator."
    )
    raise RecipientError(f"nobody is addressed by {recipient!r}; {hint}")


def check_text(subject: str, body: str) -> str | None:
    """Return what is wrong with the size of a message, or None."""
    if len(subject) > SUBJECT_CHARACTERS_MAX:
        return f"the subject has {len(subject)} characters, the most is {SUBJECT_CHARACTERS_MAX}; shorten it."
    if len(body) > BODY_CHARACTERS_MAX:
        return f"the body has {len(body)} characters, the most is {BODY_CHARACTERS_MAX}; put it into a file."
    return None


class SendMessage(Tool):
    """Mail to an identity, a role, a tag or everybody."""

    definition: ClassVar = ToolDefinition(
        "send_message",
        "Send mail to another agent or to a person. A standing agent wakes when mail for it arrives. `to` is an id "
        "(calli), a role (triage), tag:NAME, all, or operator (the person who keeps this daemon).",
        {
            "type": "object",
            "properties": {
                "to": {"type": "string", "description": "Who is to read it.", "minLength": 1},
                "subject": {"type": "string", "description": "One line."},
                "body": {"type": "string", "description": "The text, with everything that the reader needs."},
            },
            "required": ["to", "subject", "body"],
            "additionalProperties": False,
        },
    )

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Compose the message; it is sent in the same commit as the outcome of the call."""
        services = context.services
        hops_max = services.limits().mail_hops
        if context.hops > hops_max:
            return ToolOutcome(
                f"This thread was continued {hops_max} times, which is the most: the message was not sent. "
                "Leave it, or post to the board so that a person sees it.",
                is_error=True,
            )
        problem = check_text(arguments["subject"], arguments["body"])
        if problem is not None:
            return ToolOutcome(problem, is_error=True)
        try:
            to_role = check_recipient(services.roster(), arguments["to"])
        except RecipientError as error:
            return ToolOutcome(f"Not sent: {error}", is_error=True)
        mail = compose(
            sender=context.acting.actor,
            recipient=arguments["to"],
            subject=" ".join(arguments["subject"].split()),
            body=arguments["body"],
            moment=services.clock.moment(),
            tier=context.tier,
            hops=context.hops,
            thread=context.thread,
            to_role=to_role,
        )
        return ToolOutcome(f"Sent to {mail.recipient} as {mail.id}.", writes=(SendMail(mail),), sent=(mail,))


class ReadMailbox(Tool):
    """The agent's unread mail, carried by this turn from now on."""

    changes_trust: ClassVar[bool] = True
    definition: ClassVar = ToolDefinition(
        "read_mailbox",
        "Read your unread mail. What it returns counts as read when this turn ends.",
        {"type": "object", "properties": {}, "additionalProperties": False},
    )

    async def run(self, arguments: dict[str, Any], context: ToolContext) -> ToolOutcome:
        """Return the messages, claimed for this turn."""
        del arguments
        if context.reader is None:
            return ToolOutcome("There is no mailbox in this session.")
        services = context.services
        found = unread(services.database, context.reader, services.clock.stamp())
        if not found:
            return ToolOutcome("No unread messages.")
        text = "\n\n".join(mail_text(mail) for mail in found)
        more = count_unread(services.database, context.reader, services.clock.stamp()) - len(found)
        if more > 0:
            text += f"\n\n[{more} more unread: read your mailbox again for them]"
        claim = ClaimMail([mail.id for mail in found], context.reader.id, context.turn_id)
        return ToolOutcome(text, writes=(claim,), carried=tuple(found))
