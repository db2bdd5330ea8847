"""What an up keeps of the guard that runs; sources and live entries it always keeps."""

from contextlib import suppress
from enum import Enum
from pathlib import Path

from ntpguard import abi, running, tries
from ntpguard.document import new_document, with_live
from ntpguard.kernel import maps
from ntpguard.policy.model import Policy
from ntpguard.temporary import Document


class Keep(Enum):
    """What of the running policy goes before the one that is to be applied."""

    NOTHING = "nothing"
    LIVE = "the live changes, if the policy is the same"
    POLICY = "the policy, live changes included"


def kept(at: Path, policy: Policy, file: str | None, keep: Keep) -> tuple[Policy, Document]:
    """The policy to apply instead of `policy`, read from `file`, and its document. `at` is where
    the maps are pinned, if there are any; their writer is the caller.
    """
    new = new_document(policy, file)
    before = None
    if keep != Keep.NOTHING and at.exists():
        # what cannot be used is told, or made anew, by the up that follows
        with suppress(maps.Unusable), maps.opened(at) as descriptors:
            if running.read_table(descriptors["table"]).abi == abi.ABI:
                before = running.find_document(descriptors)
            if before and keep == Keep.POLICY:
                return tries.whole_policy(descriptors, before), before
    if before and all(before.get(key) == new.get(key) for key in ("text", "kept")):
        stays = {**before, "file": file, "files": new["files"]}
        stays.pop("refused", None)
        return with_live(policy, stays), stays
    return policy, new
