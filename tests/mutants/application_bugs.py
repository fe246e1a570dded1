"""Seeded bugs of what is built on the kernel: turns, mail, the ledger writer."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

APPLICATION: Final = (
    Mutant(
        "effect before its verdict is durable",
        "actors/runtime/judgement.py",
        "        await self.turn.journal.commit()\n        for judged in group:",
        "        await trio.lowlevel.checkpoint()\n        for judged in group:",
        ("tests/actors/test_turn.py",),
        machine=False,
    ),
    Mutant(
        "mail read before its turn ends",
        "store/mailbox.py",
        'database.execute("INSERT INTO mail_claims VALUES (?,?,?)", (mail_id, self.reader, self.turn_id))\n',
        'database.execute("INSERT INTO mail_claims VALUES (?,?,?)", (mail_id, self.reader, self.turn_id))\n'
        "            database.execute(\"INSERT INTO mail_receipts VALUES (?,?,'')\", (mail_id, self.reader))\n",
        ("tests/actors/test_turn.py", "tests/actors/test_standing.py", "tests/actors/test_recovery.py"),
        machine=False,
    ),
    Mutant(
        "mail of a failed turn counts as read",
        "actors/turn.py",
        "            SettleMail(self.id, completed if settled else None),",
        "            SettleMail(self.id, completed),",
        ("tests/actors/test_standing.py", "tests/actors/test_turn.py", "tests/actors/test_recovery.py"),
        machine=False,
    ),
    Mutant(
        "turn's end not recorded at a cancel",
        "actors/journal.py",
        "            with trio.CancelScope(shield=True):\n                await commit",
        "            with trio.CancelScope():\n                await commit",
        ("tests/actors/test_turn.py", "tests/actors/test_recovery.py"),
        machine=False,
    ),
    Mutant(
        "open calls forgotten at a cancel",
        "actors/turn.py",
        '        self._answer_orphans("cancelled" if status == "cancelled" else "error")\n',
        "        self.close_message()\n",
        ("tests/actors/test_turn.py",),
        machine=False,
    ),
    Mutant(
        "failed commit reported as done",
        "store/unit_of_work.py",
        "        return _failed(database, error, len(outcomes))\n    return outcomes",
        "        _failed(database, error, len(outcomes))\n    return outcomes",
        ("tests/actors/test_ledger_writer.py", "tests/store/test_unit_of_work.py"),
        machine=False,
    ),
    Mutant(
        "ledger writer leaves what waits at its end",
        "actors/ledger_writer.py",
        "        await self.handle_waiting()\n",
        "        return\n",
        ("tests/actors/test_ledger_writer.py",),
        machine=False,
    ),
)
