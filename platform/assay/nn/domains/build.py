"""The algorithm of a name."""

from collections.abc import Mapping
from types import MappingProxyType

from assay.nn.domains.adversary import AlternatingDann, Cdann, Dann, SourceDann
from assay.nn.domains.base import Algorithm, Sizes
from assay.nn.domains.config import AlgorithmConfig, AlgorithmName
from assay.nn.domains.gradients import Fishr, Irm
from assay.nn.domains.mixing import MixStyle, Mixup
from assay.nn.domains.moments import Coral, Mmd
from assay.nn.domains.risks import GroupDro, Vrex
from assay.nn.domains.sagnet import SagNet

ALGORITHMS: Mapping[AlgorithmName, type[Algorithm]] = MappingProxyType(
    {
        "erm": Algorithm,
        "dann": Dann,
        "dann-source": SourceDann,
        "dann-alternating": AlternatingDann,
        "cdann": Cdann,
        "coral": Coral,
        "mmd": Mmd,
        "irm": Irm,
        "vrex": Vrex,
        "groupdro": GroupDro,
        "mixup": Mixup,
        "mixstyle": MixStyle,
        "sagnet": SagNet,
        "fishr": Fishr,
    }
)


def build_algorithm(config: AlgorithmConfig, sizes: Sizes) -> Algorithm:
    """Build the algorithm that the settings name.

    Raises:
        ConfigError: a setting that it cannot do without is missing.
    """
    return ALGORITHMS[config.name](config, sizes)
