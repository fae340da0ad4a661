"""For every test: shape annotations are checked, and hypothesis draws the same examples each time."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("assay", "beartype.beartype")
# no deadline: how long an example takes says nothing on a machine that others use too
settings.register_profile("assay", deadline=None, derandomize=True)
settings.load_profile("assay")
