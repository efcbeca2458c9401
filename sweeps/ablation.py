"""Activation × norm position × tied head of a plain transformer: an ablation of something that is not LAHR.

    python sweeps/ablation.py --preset smoke --seeds 5
    python sweeps/ablation.py plan --until decided --smallest-effect 0.05

A study of one's own looks like this one: its factors, each a field of the configuration with its levels, the first of
which the others are compared with; and, if it is not about LAHR, the function that builds its model.
"""

from sweeps.commands import main
from sweeps.engine.factors import Factor
from sweeps.engine.options import StudyOptions


class Options(StudyOptions):
    """Activation × norm position × tied head of a plain transformer."""

    NAME = "ablation"
    BUILD = "sweeps.models.plain:transformer"
    FACTORS = (
        Factor("activation", "model.options.activation", ("gelu", "silu", "relu2")),
        Factor("norm", "model.options.norm", ("before", "after")),
        Factor("head", "model.options.head", ("tied", "own")),
    )


if __name__ == "__main__":
    main(Options)
