"""Which names led to an address: of each pod its latest, of all pods together, bounded in pairs and in addresses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from egressd.exchange import LastKnown
from egressd.names import Name

PODS = [bytes((10, 244, 0, number)) for number in range(1, 5)]
ADDRESSES = [bytes((203, 0, 113, number)) for number in range(8)]
NAMES = [Name(f"n{number}.example") for number in range(6)]


@given(st.lists(st.tuples(st.sampled_from(PODS), st.sampled_from(ADDRESSES), st.sampled_from(NAMES)), max_size=80))
def test_each_pod_knows_its_four_latest_names(notes: list[tuple[bytes, bytes, Name]]) -> None:
    """As a table of pairs would say it: a new name first, four at most, and one that is known changes nothing."""
    known, pairs, anyones = LastKnown(), dict[tuple[bytes, bytes], list[Name]](), dict[bytes, list[Name]]()
    for pod, address, name in notes:
        known.note(pod, name, (address,))
        own = pairs.setdefault((pod, address), [])
        if name in own:
            continue
        own[:] = [name, *own[:3]]
        if name not in anyones.setdefault(address, []):
            anyones[address][:] = [name, *anyones[address][:3]]
    assert {key: list(names) for key, names in known.entries()} == pairs
    for pod in PODS:
        for address in ADDRESSES:
            own = pairs.get((pod, address), [])
            assert list(known.names_for(pod, address)) == own
            assert list(known.names(pod, address)) == (own or anyones.get(address, []))


def test_a_pod_that_is_gone_is_forgotten_and_what_it_learned_is_not() -> None:
    """Its address may be another's tomorrow; the names still explain what others do."""
    known = LastKnown()
    for pod in PODS[:3]:
        known.note(pod, NAMES[0], tuple(ADDRESSES[:2]))
    known.forget(PODS[0])
    known.forget(PODS[1])
    assert [key for key, _ in known.entries()] == [(PODS[2], address) for address in ADDRESSES[:2]]
    assert known.names_for(PODS[0], ADDRESSES[0]) == known.names_for(PODS[1], ADDRESSES[0]) == ()
    assert known.names(PODS[0], ADDRESSES[0]) == (NAMES[0],)
    known.note(PODS[0], NAMES[1], (ADDRESSES[0],))
    assert known.names_for(PODS[0], ADDRESSES[0]) == (NAMES[1],)


def test_it_is_bounded_and_the_oldest_is_out_first() -> None:
    """Neither a flood of addresses nor one of pods grows it; what a new pod learns counts as new."""
    known = LastKnown(size=6)
    for address in ADDRESSES[:6]:
        known.note(PODS[0], NAMES[0], (address,))
    known.note(PODS[1], NAMES[1], (ADDRESSES[0],))
    assert [address for (_, address), _ in known.entries()] == [*ADDRESSES[2:6], ADDRESSES[0], ADDRESSES[0]]
    assert known.addresses_for(PODS[:1], NAMES[0]) == [ADDRESSES[0], *reversed(ADDRESSES[2:6])]
    for number in range(100):
        known.note(bytes((10, 244, 1, number)), NAMES[0], (ADDRESSES[0],))
        assert len(list(known.entries())) <= 6
