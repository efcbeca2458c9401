"""Is it the thoughts, the passes or the curriculum? COCONUT (Hao et al. 2024) on ProsQA's questions, as a factorial.

    python sweeps/coconut.py                                     thoughts × curriculum, 5 seed blocks
    python sweeps/coconut.py plan                                what it costs and could see
    python sweeps/coconut.py --thoughts pause recycled --seeds 8

Thoughts stand between a question and its answer in the place of the reasoning steps. What their input is, is a factor:

    pause        a learned embedding, in one pass (Goyal et al. 2023)
    sequential   the same in the passes of `recycled`: under causal attention the same function, at another cost
    blank        recycled states of a run that has not read the question: the passes without the content
    recycled     the last hidden state before it (COCONUT)

The other factor is the curriculum: all but the last stage are gone through in a share of the steps, each with one step
more replaced by thoughts, or the last stage from the beginning. Validation is the last stage alone: questions like
those of training, of 7 and 8 hops, and with several paths or more facts. Losses and effects are over all of them;
accuracies are told apart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lahr.config import TrialConfig
from lahr.errors import check
from lahr.plain import changed
from lahr.presets import preset
from sweeps.commands import main
from sweeps.engine.factors import Factor
from sweeps.engine.options import StudyOptions

Arm = Literal["pause", "sequential", "blank", "recycled"]


@dataclass(frozen=True)
class Options(StudyOptions):
    """What the input of thoughts is × whether there is a curriculum."""

    NAME: ClassVar[str] = "coconut"
    PRESET: ClassVar[str] = "prosqa"

    thoughts: tuple[Arm, ...] = ("pause", "sequential", "blank", "recycled")
    """What the input of thoughts is; the others are compared with the first."""
    share: float = 0.9
    """The share of the steps in which the curriculum's earlier stages are gone through; `--train.first-stage` says how
    much of it belongs to the first, where all steps are there to be learnt."""

    def __post_init__(self) -> None:
        check(
            self.model.thought_token is not None,
            f"--preset is {self.preset}, whose text has no thoughts (model.thought_token is not given); give prosqa",
        )
        check(0 < self.share < 1, f"--share is {self.share}; it is a share of the steps, above 0 and below 1")
        check(
            len(self.thoughts) != 1 or self.model.thoughts in (preset(self.preset).model.thoughts, *self.thoughts),
            f"--thoughts is {' '.join(self.thoughts)} and --model.thoughts {self.model.thoughts}; leave the second out",
        )
        super().__post_init__()

    def config(self) -> TrialConfig:
        """The configuration that the factors vary, of the one arm where there is no other."""
        config = super().config()
        return changed(config, {"model.thoughts": self.thoughts[0]}) if len(self.thoughts) == 1 else config

    def factors(self) -> tuple[Factor, ...]:
        """Thoughts, where there are several arms, and the curriculum."""
        check(bool(self.thoughts), "--thoughts is empty; give at least one arm")
        curriculum = Factor("curriculum", "train.curriculum", (0.0, self.share), switch=True)
        if len(self.thoughts) == 1:
            return (curriculum,)
        return (Factor("thoughts", "model.thoughts", self.thoughts), curriculum)

    def level_option(self, factor: Factor) -> str:
        """How one gives a factor other levels."""
        return "give its arms with --thoughts" if factor.name == "thoughts" else "give its level with --share"


if __name__ == "__main__":
    main(Options)
