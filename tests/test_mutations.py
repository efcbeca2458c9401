"""The deliberate faults of `mutations.py` still apply, and every property and option has one."""

import pytest

from tests.mutations import FAULTS, ROOT

OPTIONS = {
    "threshold router", "random router", "router losses", "sampled passes", "exit gate", "ACT", "latent capacity",
    "slots", "knn", "sampling",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_applies_to_the_sources_as_they_are(fault):
    """Run `make mutations` to see each caught; this holds that they can be put in."""
    source = (ROOT / fault.file).read_text()
    assert source.count(fault.old) == 1
    compile(source.replace(fault.old, fault.new), fault.file, "exec")
    assert (ROOT / fault.tests.split()[0]).is_file()


def test_every_property_and_every_option_has_a_fault():
    assert {fault.property for fault in FAULTS} >= {*map(str, range(1, 15)), *OPTIONS}
