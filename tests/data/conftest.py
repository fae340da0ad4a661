"""What is said where data are refused."""

import pytest


@pytest.fixture(scope="session")
def sentence_of():
    """The one sentence by which a call is refused with an error."""

    def text_of(error, call, *arguments):
        with pytest.raises(error) as caught:
            call(*arguments)
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert text.encode()  # can be printed
        return text

    return text_of
