"""Code that runs in decoder processes before anything else, to bring about the trouble of a machine."""

import os
from pathlib import Path

GUARD = """import sys
if "pipeline.data.decoders" in sys.orig_argv:
"""

CANNOT_START = """
import os
os.write(2, b"loading\\nlibjpeg.so.62: cannot open shared object file\\n")
os._exit(1)
"""
"""The libraries of a decoder are not there."""

AT_A_MARK = """
from PIL import Image, ImageFile
def act():
    {act}
def opened(self, file, *args, open=ImageFile.ImageFile.__init__, **kwargs):
    if b"MARK" in file.getvalue():
        act()
    open(self, file, *args, **kwargs)
ImageFile.ImageFile.__init__ = opened
"""
"""Something happens while a picture is decoded whose bytes have ``MARK`` in them."""

MARK = b"MARK"


def in_decoders(code: str, folder: Path) -> dict[str, str]:
    """The variables of an environment in which decoders run this code; without the folder, they do not."""
    folder.mkdir()
    lines = "".join(f"    {line}\n" for line in code.strip().split("\n"))
    (folder / "sitecustomize.py").write_text(GUARD + lines)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}
