"""The document and the server agree: schemathesis asks what the document allows, and what it does not."""

import json

import pytest
from hypothesis import given, settings

from assay.serve.http import make_app
from assay.serve.limits import Limits
from assay.serve.tokens import Tokens

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
TOKEN = "a-long-secret"


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_what_is_documented_holds(here, mode):
    app = make_app(here, Limits(), Tokens(TOKEN))
    document = json.loads(json.dumps(app.app.openapi()))
    schema = schemathesis.openapi.from_dict(document)
    schema.app = app
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 5
    if mode == "negative":  # the others take nothing that could be wrong
        operations = [
            operation
            for operation in operations
            if operation.method == "post" and operation.path == "/v1/{task}"
        ]
    for operation in operations:
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @given(case=strategy)
        @settings(max_examples=20)
        def asked(case):
            case.call_and_validate(headers={"authorization": f"Bearer {TOKEN}"})

        asked()
