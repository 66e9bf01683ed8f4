"""A store, and an application on many nodes, while everything goes wrong."""

from __future__ import annotations

from collections.abc import Iterable

from .place import MakeStore


def simulate(
    make: MakeStore,
    *,
    seeds: Iterable[int] = range(20),
    steps: int = 150,
    shared: bool = False,
    real_time: bool = False,
) -> None:
    """Let small worlds of nodes, people and readers live on a store, with crashes, lost answers, pauses, clocks that
    are set and much else between any two steps; and check after each that R1 to R7 hold. Not within an event loop.

    Args:
        make: as for ``check_store``. Called for each node; it may give one and the same object to all, if ``shared``.
        seeds: each decides all that is random in a world: the same seed is the same world. Every fifth is calm: there
            nothing goes wrong, and everything must be in time.
        steps: of people and faults in a world.
        shared: several nodes have the store at once. If not, one has it at a time, and its crash closes the store.
        real_time: the store waits for something outside of its event loop, such as a network. Then a world takes some
            ten seconds, and a seed is the same but for what decides the order there.

    Raises:
        AssertionError: something did not hold: the seed, the steps that led there, and what.
    """
    from ..torture.ground import GivenGround
    from ..torture.simulate import WorldPlan, simulated

    for seed in seeds:
        ground = GivenGround(make, f"simulated_{seed}", shared=shared, real=real_time)
        found = simulated(ground, WorldPlan(seed, steps))
        if found.faults:
            raise AssertionError(found.told())


async def check_cluster(
    store: str,
    app: str | None = None,
    *,
    nodes: int = 2,
    sessions: int = 20,
    seconds: float = 30.0,
    lease_ttl: float = 5.0,
    say: str = "Hello",
    seed: int = 0,
) -> None:
    """Serve an application on several nodes, behind a proxy that remembers nobody, while they are killed, stopped and
    cut off from their database; then compare what each reader has with the log. It takes a little longer than
    ``seconds``.

    Args:
        store: the URL of one that several processes can use; ``"postgresql:"`` or ``"redis:"`` start one.
        app: what ``legato serve`` takes; it should answer without asking back. None: agents that count.
        nodes, sessions: how many nodes, and conversations at once.
        seconds: for which messages are sent.
        lease_ttl: see ``Legato``.
        say: what is said to ``app``.
        seed: of what is random.

    Raises:
        AssertionError: something was lost, doubled or out of order, did not end once, or stood still for too long.
        LegatoError: the nodes, or their database, cannot be started.
    """
    from ..torture.cluster import ClusterPlan, torture_cluster

    plan = ClusterPlan(store, nodes, sessions, seconds, lease_ttl, app=app, say=say, seed=seed)
    chart = await torture_cluster(plan)
    if chart.faults:
        raise AssertionError("\n".join(chart.lines()))
