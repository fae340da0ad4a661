"""What answers, tells and asks starts where the packages of training, or of serving, are missing."""

import subprocess
import sys

import pytest

REFUSE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(name + " is not installed", name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without(missing: set[str], code: str, *arguments: str) -> str:
    """Run Python code in a process that lacks packages; return what it printed."""
    script = REFUSE.format(missing=missing) + code
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("missing", "modules"),
    [
        ({"torch", "timm"}, "assay.cli.serve, assay.serve.offline"),
        ({"torch", "timm"}, "assay.serve.cluster, assay.serve.http"),
        ({"torch", "timm", "ray"}, "assay.report.page, assay.cli.console"),
    ],
    ids=["predict", "serve", "report"],
)
def test_it_starts_without(missing: set[str], modules: str) -> None:
    run_without(missing, f"import {modules}")


def test_the_hook_refuses() -> None:
    with pytest.raises(AssertionError, match="timm is not installed"):
        run_without({"timm"}, "import timm")


def test_the_client_asks_where_nothing_of_the_server_is_installed(server) -> None:
    handler, address = server
    missing = {"onnxruntime", "cv2", "torch", "timm", "ray", "pyarrow", "numpy", "fastapi"}
    code = """
from assay.serve.client import Client
client = Client(sys.argv[1], "secret")
print(client.judge("parts", b"one", b"two").answer.label)
"""
    assert run_without(missing, code, address) == "a\n"
    assert [path for _, path, _, _ in handler.asked] == ["/v1/parts?model=champion&mask=png"]
