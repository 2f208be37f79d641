"""Keys for signatures, and the settings that name them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.storage import signatures


@dataclass(frozen=True)
class Keys:
    """A pair of keys, which the settings name as ``use`` says.

    Attributes:
        private: the file of the private key.
        public: that of the public one.
        patch: sets the settings.
    """

    private: Path
    public: Path
    patch: pytest.MonkeyPatch

    @classmethod
    def make(cls, folder: Path, patch: pytest.MonkeyPatch) -> "Keys":
        """Make a pair in a folder, in which is also remembered what was seen; the settings name neither key yet."""
        return cls(*signatures.make_keys(folder), patch)

    def use(self, *, sign: bool = False, verify: bool = False, machine: str = "verified") -> None:
        """Sign, verify, do both or neither; each ``machine`` remembers for itself what it has seen."""
        self.patch.setenv("CAPTION_SIGNING_KEY", str(self.private) if sign else "")
        self.patch.setenv("CAPTION_VERIFY_KEY", str(self.public) if verify else "")
        self.patch.setenv("CAPTION_VERIFY_STATE", self.public.with_name(f"{machine}.json").as_uri())
