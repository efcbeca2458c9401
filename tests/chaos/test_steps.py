"""The instrument of the chaos tests: what was done again and how long a trial stood still, from lines of steps."""

from tests.chaos.steps import Again, figures, taken_again


def test_what_another_process_did_again_and_when_it_came_further(tmp_path):
    """A process that was cut off and goes on beside the new one adds nothing to what had been done before it."""
    (tmp_path / "one").write_text(
        "s t 0 100.0\ns t 1 101.0\ns t 2 102.0\ns t 3 140.0\ns u 0 103.0\nother t 9 1.0\n"
    )
    (tmp_path / "two").write_text("s t 1 120.0\ns t 2 121.0\ns t 3 122.0\ns t 4 123.0\ns t 5")
    again = taken_again(tmp_path, "s")
    assert again == [Again(steps=2, standstill=20.0, went_on_from=1)]
    assert figures(again, 4)["steps_done_again"] == "2 at most (an interval is 4)"
    assert taken_again(tmp_path / "nowhere", "s") == []


def test_going_on_right_after_the_last_step_is_nothing_done_again(tmp_path):
    (tmp_path / "one").write_text("s t 0 100.0\n")
    (tmp_path / "two").write_text("s t 1 107.5\n")
    assert taken_again(tmp_path, "s") == [Again(0, 7.5, 1)]
