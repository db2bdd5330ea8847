"""What is kept of the running policy beside its compiled form."""

import re

from ntpguard.document import new_document
from ntpguard.policy.check import DEFAULT


def test_a_document_says_when_it_was_applied_as_all_json_has_times() -> None:
    applied = new_document(DEFAULT, None)["applied"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", applied)
