"""What a driver of the loop may want to know or do between steps: where it can be told to save, or to stop."""

from torch import nn


class Watch:
    """Looks on while a trial trains. This one does nothing; a driver overrides what it needs."""

    def begins(self, model: nn.Module) -> None:
        """Called first, with the model that is trained."""

    def ends(self) -> None:
        """Called last, however it ended."""

    def resumed(self, step: int) -> None:
        """Called once, before the first step, with the step that training goes on from: 0 without a checkpoint."""

    def stepped(self) -> bool:
        """Called after every step; True asks for a checkpoint here and now.

        With several processes every one of them is asked and all have to answer alike.
        """
        return False

    def alive(self) -> None:
        """Called now and then in what is long and no step of the trial: evaluations, and runs branched off."""

    def saving(self) -> None:
        """Called right before files of a checkpoint are written; raises where this process may no longer write."""
