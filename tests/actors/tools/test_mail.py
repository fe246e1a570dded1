"""read_mailbox gives what a model can read, whole, and says that there is more."""

from __future__ import annotations

from pathlib import Path

from tests.support.office import call, open_office


async def test_more_mail_than_a_model_can_read_is_read_in_parts_of_which_nothing_is_cut(tmp_path: Path):
    read: list[str] = []

    async def act(_session, _request, host):
        for _ in range(4):
            [(is_error, text)] = await call(host, ("read_mailbox", {}))
            assert not is_error
            read.append(text)
        return "end_turn"

    async with open_office(tmp_path, act) as office:
        ref = await office.open()
        office.runtime.act = office.runtime.say_nothing
        await office.turn(ref)
        sizes = (64_000, 30_000, 15_000, 25_000)

        async def mailed(session, request, host):
            for number, size in enumerate(sizes):
                await office.mail(
                    "reed", f"{number} " + "x" * (size - 10) + f" end{number}", subject="s" * 400
                )
            return await act(session, request, host)

        office.runtime.act = mailed
        assert (await office.turn(ref)).status == "complete"
    expected = [([0], 3), ([1, 2], 1), ([3], 0), ([], None)]
    for text, (numbers, more) in zip(read, expected, strict=True):
        assert [number for number in range(4) if f" end{number}" in text] == numbers
        assert (f"[{more} more unread" in text) == bool(more)
    assert read[3] == "No unread messages."
