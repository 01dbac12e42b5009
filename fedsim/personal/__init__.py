"""One model for one user, without a federation."""

from fedsim.personal.method import personalize
from fedsim.personal.model import PersonalizedModel, load_personalized

__all__ = ["PersonalizedModel", "load_personalized", "personalize"]
