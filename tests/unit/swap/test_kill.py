"""A swap is killed after each single change that it makes. The same command then goes on to the wanted pods, and --undo goes back to
the former ones. The machine lives on meanwhile: whether the next run comes at once, or after a while, must not matter."""

from __future__ import annotations

import pytest

from kubeup.phases import static_pods_swap
from kubeup.swap import store
from tests.fake_control_plane import (
    COMPONENTS,
    FORMER,
    WANTED,
    ControlPlane,
    Gone,
    expect_settled,
    make_control_plane,
    manifests_of,
)
from tests.unit.swap.swap_case import PATHS, Stage, make_swap_run, undo_run

CHANGES = {COMPONENTS: 31, ("etcd",): 21, ("kube-apiserver",): 15, COMPONENTS[2:]: 20}
"""How many changes a swap of these makes: 1, the first, up to this one are killed."""
KILLS = [(names, number, 0.0) for names, count in CHANGES.items() for number in range(1, count + 1)]
KILLS += [(COMPONENTS, number, 5.0) for number in range(1, CHANGES[COMPONENTS] + 1)]


def swap(host: ControlPlane, names: tuple[str, ...]) -> None:
    static_pods_swap.swap_pods(make_swap_run(host, {name: WANTED[name] for name in names}))


def killed(names: tuple[str, ...], number: int, *, after_s: float) -> ControlPlane:
    host = make_control_plane()
    host.dies_after = number
    with pytest.raises(Gone):
        swap(host, names)
    host.revive(after_s)
    return host


def after(names: tuple[str, ...]) -> dict[str, str]:
    return {**FORMER, **{name: WANTED[name] for name in names}}


@pytest.mark.parametrize("names", CHANGES)
def test_every_change_is_killed(stage: Stage, names: tuple[str, ...]) -> None:
    host = make_control_plane()
    swap(host, names)
    assert len(host.changes) == CHANGES[names]


@pytest.mark.parametrize(("names", "number", "after_s"), KILLS)
def test_the_same_command_goes_on(stage: Stage, names: tuple[str, ...], number: int, after_s: float) -> None:
    host = killed(names, number, after_s=after_s)
    swap(host, names)
    expect_settled(host, after(names), status="done")


@pytest.mark.parametrize(("names", "number", "after_s"), KILLS)
def test_undo_goes_back(stage: Stage, names: tuple[str, ...], number: int, after_s: float) -> None:
    host = killed(names, number, after_s=after_s)
    last = store.load(host, PATHS)
    if last is None:  # it was killed before it had begun: there is nothing to take back
        host.sleep(30)
        assert not host.violations
        assert {name: text for name, text in manifests_of(host).items() if not name.startswith(".")} == {
            f"{name}.yaml": text for name, text in FORMER.items()
        }
        return
    static_pods_swap.swap_pods(undo_run(host))
    # a swap that was done when it was killed is taken back by another one
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize("number", range(1, 26))
def test_undo_may_be_killed_too(stage: Stage, number: int) -> None:
    """Both are killed: the swap in its middle, the way back after each of its changes, and again with the command itself."""
    names = COMPONENTS
    host = killed(names, 16, after_s=2.0)
    host.changes.clear()
    host.dies_after = number
    try:
        static_pods_swap.swap_pods(undo_run(host))
    except Gone:
        pass
    else:
        assert number > 8, "the way back makes more changes than that"
    host.revive(2.0)
    last = store.load(host, PATHS)
    assert last is not None
    if last.status == store.RUNNING:
        static_pods_swap.swap_pods(undo_run(host))
    else:  # it was killed before it gave up its turn, which a run with nothing to do does then
        static_pods_swap.swap_pods(make_swap_run(host, FORMER))
    expect_settled(host, FORMER, status="taken back")


@pytest.mark.parametrize(
    ("names", "number"),
    [(COMPONENTS, number) for number in range(1, 9)] + [(("etcd",), number) for number in range(1, 11)],
)
def test_a_way_back_that_was_killed_may_be_turned_forward_again(
    stage: Stage, names: tuple[str, ...], number: int
) -> None:
    host = killed(names, 16, after_s=2.0)
    host.changes.clear()
    host.dies_after = number
    with pytest.raises(Gone):
        static_pods_swap.swap_pods(undo_run(host))
    host.revive(2.0)
    swap(host, names)
    expect_settled(host, after(names), status="done")
