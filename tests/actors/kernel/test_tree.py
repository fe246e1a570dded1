"""What a snapshot of the tree shows, whom it folds away, and how an actor is found in it."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.kernel import (
    Actor,
    ChildSpec,
    DynamicSupervisor,
    Intensity,
    Supervisor,
    View,
    find,
    find_by_id,
    open_system,
)
from tests.actors.kernel.recorder import Recorder


class Idle(Actor):
    """Does nothing."""


def many_and(*specs: ChildSpec) -> ChildSpec:
    children = [ChildSpec("many", DynamicSupervisor), *specs]
    return ChildSpec("root", lambda: Supervisor(children))


async def fill(system, ids, factory=Idle):
    many = system.supervisor.supervisor("many")
    for child_id in ids:
        await many.start_child(ChildSpec(child_id, factory, intensity=Intensity(1, 60.0), park=True))
    return many


async def test_quiet_children_of_many_are_counted_and_the_others_shown_attention_first(autojump_clock):
    async with open_system(many_and()) as system:
        many = await fill(system, map(str, range(40)))
        for child_id in ("busy", "tasked", "bad", "left"):
            await fill(system, [child_id], lambda: Recorder([]))
        many.child("busy").tell(("sleep", 1000))
        many.child("busy").tell("waits")
        many.child("tasked").tell(("task", trio.sleep_forever))
        for _ in range(2):
            many.child("bad").tell("crash")
            await wait_all_tasks_blocked()

        async def leave(actor):
            actor.passivate()

        many.child("left").tell(("run", leave))
        await wait_all_tasks_blocked()

        node = system.tree(find(system.root, "many"), View(fold_above=30))
        assert [(child.id, child.state) for child in node.children] == [
            ("bad", "parked"),
            ("busy", "busy"),
            ("tasked", "idle"),
        ]
        assert [child.needs_attention for child in node.children] == [True, False, False]
        assert node.folded == {"idle": 40, "passive": 1}


async def test_few_children_are_all_shown_and_a_snapshot_without_a_view_folds_nobody():
    async with open_system(many_and()) as system:
        await fill(system, map(str, range(30)))
        node = system.tree(None, View(fold_above=30)).find("root/many")
        assert (len(node.children), node.folded) == (30, {})
        await fill(system, ["30"])
        node = system.tree(None, View(fold_above=30)).find("root/many")
        assert (len(node.children), node.folded) == (0, {"idle": 31})
        assert len(system.tree().find("root/many").children) == 31


async def test_no_more_are_shown_than_wanted_and_pages_make_up_the_whole(autojump_clock):
    async with open_system(many_and()) as system:
        many = await fill(system, map(str, range(25)), lambda: Recorder([]))
        place = find(system.root, "many")
        seen = []
        for skip, left in ((0, 15), (10, 5), (20, 0)):
            node = system.tree(place, View(shown_max=10, skip=skip))
            seen += [child.id for child in node.children]
            assert sum(node.folded.values()) == left
        assert seen == [str(number) for number in range(25)]
        for number in range(25):
            many.child(str(number)).tell(("sleep", 10))
        await wait_all_tasks_blocked()
        node = system.tree(place, View(fold_above=5, shown_max=10))
        assert (len(node.children), node.folded) == (10, {"busy": 15})


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("root", "root"),
        ("root/many", "root/many"),
        ("many", "root/many"),
        ("root/many/a", "root/many/a"),
        ("many/a", "root/many/a"),
        ("many/a/b", "root/many/a/b"),
        ("one/root", "root/one/root"),
        ("many/c", None),
        ("a", None),
        ("", None),
    ],
)
async def test_an_actor_is_found_by_its_path_also_with_slashes_in_its_id(path, found):
    inner = ChildSpec("one", lambda: Supervisor([ChildSpec("root", Idle)]))
    async with open_system(many_and(inner)) as system:
        await fill(system, ["a", "a/b"])
        place = find(system.root, path)
        assert (None if place is None else place[0].path) == found
        node = system.tree()
        if found is not None:
            assert node.find(found) == system.tree(place)


async def test_an_id_alone_finds_everybody_who_has_it():
    inner = ChildSpec("one", lambda: Supervisor([ChildSpec("a", Idle)]))
    async with open_system(many_and(inner)) as system:
        await fill(system, ["a", "b"])
        assert [ref.path for ref, _ in find_by_id(system.root, "a")] == ["root/many/a", "root/one/a"]
        assert [ref.path for ref, _ in find_by_id(system.root, "b")] == ["root/many/b"]
        assert find_by_id(system.root, "c") == []
