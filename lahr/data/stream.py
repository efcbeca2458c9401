"""Random choices for generated text: a stream of whole numbers that is the same on every machine and Python.

It is SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
"""

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


class Stream:
    """Uniform choices from a seed, and how many ways they could have gone."""

    __slots__ = ("state", "ways")

    def __init__(self, seed: int) -> None:
        self.state = _mix((seed * _STEP + 0x632BE59BD9B4E019) & _MASK)
        self.ways = 1
        """Product of all n so far: the choices made have probability 1/ways."""

    def pick(self, n: int) -> int:
        """A number from 0 to n - 1, each equally likely to within n/2⁶⁴."""
        self.ways *= n
        self.state = state = (self.state + _STEP) & _MASK
        return _mix(state) * n >> 64

    def picks(self, n: int, count: int) -> list[int]:
        """What `count` calls of `pick(n)` give, in half the time."""
        self.ways *= n**count
        picked, state = [], self.state
        for _ in range(count):
            state = z = (state + _STEP) & _MASK
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
            picked.append((z ^ (z >> 31)) * n >> 64)
        self.state = state
        return picked


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
