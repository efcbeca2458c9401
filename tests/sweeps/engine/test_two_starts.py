"""Two starts of one sweep at the same moment, at the moments between looking for the lease and taking it."""

import json
import os
import time

import pytest

from lahr.errors import ConfigError
from lahr.files import Folder
from sweeps.engine import lease


@pytest.mark.parametrize("step", ["exists", "read"])
def test_what_another_start_writes_while_one_looks_is_not_removed(step, tmp_path, monkeypatch):
    """Seen to fail with the lease read before it is looked for: theirs was removed as a dead one's, and both ran."""
    folder = Folder.at(tmp_path)
    machine = lease.this_machine()
    theirs = {"host": "here", "machine": machine, "pid": os.getppid(), "owner": "them", "time": time.time()}
    real, written = getattr(Folder, step), []

    def then_they_write(self, name=""):
        try:
            return real(self, name)
        finally:
            if not written:
                written.append(True)
                (tmp_path / "lease.json").write_text(json.dumps(theirs))

    monkeypatch.setattr(Folder, step, then_they_write)
    with pytest.raises(ConfigError, match="another sweep"), lease.held(folder):
        pytest.fail("two sweeps hold one folder")
    assert folder.read_json("lease.json") == theirs
