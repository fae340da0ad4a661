"""Settings of the split."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from assay.config import Seed, Settings
from assay.errors import ConfigError

RULES = {
    "training-domain": "training-domain validation",
    "leave-one-domain-out": "leave-one-domain-out validation",
    "oracle": "oracle",
}
"""How each rule of `SplitConfig.rule` is shown."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Settings, section="split"):
    """How the sets are drawn; sets that the data gives are kept as given."""

    seed: Seed = 0
    """Seed of the draw."""
    val: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the groups that goes to val; under the rule oracle, of those of test_unseen."""
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the groups that goes to test, or to test_seen."""
    unseen_domain: str = ""
    """Domain whose held-out values make test_unseen (design, printer...); empty: none."""
    unseen: tuple[str, ...] = ()
    """Held-out values of that domain; none named: those of a given test_unseen, else drawn."""
    num_unseen: Annotated[int, Interval(ge=1, le=1_000_000)] = 3
    """Number of held-out values to draw by seed where none are named or given."""
    crossing: Literal["refuse", "drop"] = "refuse"
    """Groups with held-out and other values (a part under several lights): refuse, or draw the sets as if none were held out, then leave held-out values out of train and val; those of test groups are test_unseen."""
    duplicates: Literal["refuse", "drop"] = "refuse"
    """Files that a given split has in two sets: refuse, or drop the copy in the earlier set."""
    near_duplicates: Literal["report", "group", "off"] = "report"
    """Images that are copies but for a turn, a crop, light or a codec: report them, or keep them in one set, and drop those in an earlier set than a given later one has; off does not look for them."""
    train_share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of train's groups that is trained on, of each class at least one; a smaller share's groups are among a larger one's."""
    unlabelled: Literal["none", "train", "drop"] = "none"
    """Whether a share of test_unseen's groups, drawn without a look at labels, is not scored: their images enter training without labels, which is transductive and marked so (train), or stay out, as for a run beside such a one (drop)."""
    unlabelled_share: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """That share; of both parts at least one group."""
    rule: Literal["training-domain", "leave-one-domain-out", "oracle"] = "training-domain"
    """What val is, by which the model is selected (Gulrajani & Lopez-Paz 2021, section 3).

    training-domain: groups of the values that are trained on. leave-one-domain-out: one more value
    of the held-out domain, whole, which is then not trained on; one fold, not the mean over all
    values in turn. oracle: groups of test_unseen's values, so that the model is selected by the
    domain it is tested on; its results say nothing of a new domain and are marked as oracle.
    """
    val_domain: str = ""
    """For leave-one-domain-out: the value that is val; empty: drawn by seed."""

    def __post_init__(self) -> None:
        """Refuse sets that leave nothing to train on, and rules without a domain."""
        super().__post_init__()
        if self.val + self.test >= 1:
            raise ConfigError(
                f"split.val is {self.val} and split.test {self.test}; give shares from 0 that sum to less than 1."
            )
        if self.rule != "training-domain" and not self.unseen_domain:
            raise ConfigError(
                f"split.rule is {self.rule!r} and split.unseen-domain is empty; name the domain whose values are held "
                "out, or use the rule training-domain."
            )
        if self.crossing == "drop" and (self.rule != "training-domain" or not self.unseen_domain):
            raise ConfigError(
                f"split.crossing is 'drop', split.unseen-domain {self.unseen_domain!r} and split.rule {self.rule!r}; "
                "crossing groups need a held-out domain and the rule training-domain."
            )
        if self.unlabelled != "none" and (self.crossing == "drop" or not self.unseen_domain):
            raise ConfigError(
                f"split.unlabelled is {self.unlabelled!r}, split.unseen-domain {self.unseen_domain!r} and split.crossing {self.crossing!r}; "
                "images to be seen without labels are of a held-out domain whose groups cross to no other."
            )
        if self.val_domain and self.rule != "leave-one-domain-out":
            raise ConfigError(
                f"split.val-domain is {self.val_domain!r} and split.rule {self.rule!r}; "
                "only leave-one-domain-out takes a value for val: choose that rule, or leave the value out."
            )

    def idle(self) -> dict[str, str]:
        """Name settings without effect."""
        names: dict[str, str] = {}
        if self.unlabelled == "none":
            names["unlabelled_share"] = "split.unlabelled is none"
        if not self.unseen_domain:
            names |= dict.fromkeys(("unseen", "num_unseen"), "split.unseen-domain is empty")
        elif self.unseen:
            names["num_unseen"] = "split.unseen names the values"
        return names
