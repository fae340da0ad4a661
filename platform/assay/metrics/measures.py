"""Measures: the names that people read, and what each says; they travel with the numbers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """How a measure is shown."""

    label: str
    """A name of one to three words."""
    meaning: str = ""
    """What it counts, in half a sentence."""

    @classmethod
    def named(cls, key: str) -> "Measure":
        """Name a measure that nobody described, by its key."""
        words = key.replace("_", " ")
        return cls(words[:1].upper() + words[1:])


STANDARD: Mapping[str, Measure] = {
    "accuracy": Measure("Accuracy", "images whose likeliest class is the true one"),
    "group_accuracy": Measure("Group accuracy", "groups answered rightly by their mean logits"),
    "vote_accuracy": Measure("Vote accuracy", "groups answered rightly by most of their images"),
    "macro_precision": Measure("Macro precision", "precision averaged over classes"),
    "macro_recall": Measure("Macro recall", "recall averaged over classes"),
    "macro_f1": Measure("Macro F1", "harmonic mean of precision and recall, averaged over classes"),
    "nll": Measure("NLL", "negative log-likelihood in nats; lower is better"),
    "ece": Measure("ECE", "gap between confidence and accuracy; lower is better"),
    "on_copies": Measure("On near-copies", "main score where train has a near-copy of the image"),
    "on_others": Measure("On all others", "main score where it has none"),
    "set_coverage": Measure("Set coverage", "conformal sets that hold the truth"),
    "set_size": Measure("Set size", "classes in a conformal set"),
    "rejected": Measure("Rejected", "images left to a person: their set is several classes"),
    "accepted_accuracy": Measure(
        "Accepted accuracy", "of the images not rejected, answered rightly"
    ),
    "calibrated_nll": Measure("Calibrated NLL", "after the temperature fitted on val"),
    "calibrated_ece": Measure("Calibrated ECE", "after the temperature fitted on val"),
    "decided_accuracy": Measure("Decided accuracy", "answers by costs or threshold that are right"),
    "recall": Measure("Recall", "of the class that must not be missed"),
    "precision": Measure("Precision", "of the class that must not be missed"),
    "escapes": Measure("Escapes", "missed: images of that class given another"),
    "overkill": Measure("Overkill", "falsely rejected: other images given that class"),
    "cost": Measure("Cost", "mean cost of the answers"),
    "cost_of_argmax": Measure("Cost without it", "mean cost if the likeliest class were answered"),
}
"""What `evaluate` and `decide` compute for every task that answers by a class."""
