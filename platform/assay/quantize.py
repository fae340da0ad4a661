from dataclasses import dataclass
from typing import Literal

from assay.config import Settings


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(Settings):
    variant: Literal["none", "int8"] = "none"
    num_calibration: int = 64
