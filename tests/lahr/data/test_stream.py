"""The stream of choices is the published generator, uniform, and the same drawn one by one or together."""

from lahr.data import stream
from lahr.data.stream import Stream


def test_the_stream_is_splitmix64() -> None:
    """Its mixing function on the first state of the published generator with seed 0."""
    assert stream._mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_picks_are_uniform() -> None:
    picks = Stream(1).picks(7, 70_000)
    assert all(abs(picks.count(i) - 10_000) < 500 for i in range(7))  # five standard deviations
    assert len(picks) == 70_000


def test_picks_are_so_many_single_ones() -> None:
    together, single = Stream(3), Stream(3)
    assert together.picks(9, 50) == [single.pick(9) for _ in range(50)]
    assert (together.state, together.ways) == (single.state, single.ways)
    assert together.pick(1 << 40) == single.pick(1 << 40)
