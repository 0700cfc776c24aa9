"""The earlier system's wrong ways by name, for its recipes and for the tests that must see them fail."""

from shared.processes import Gaussian
from shared.processes.schedules import Schedule


class Adjacent(Gaussian):
    """Moves by the posterior of one step of `steps`, from t to t - 1/steps, and says that it has arrived at s.

    Right on a grid of all `steps` times; on a shorter one the signal stays behind what is claimed.
    """

    def __init__(self, schedule: Schedule, eta: float = 1.0, steps: int = 2000):
        super().__init__(schedule, eta)
        self.steps = steps

    def moments(self, x_t, belief, t, s, eta=1.0):
        return super().moments(x_t, belief, t, (t - 1 / self.steps).clamp(min=0), eta)
