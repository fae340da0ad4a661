"""Texts of a PNG that may say how it is turned: XMP, and EXIF from before PNG had a chunk for it.

Source: PNG (W3C, third edition), section 11.3.3; XMP specification, part 3; raw profiles as ImageMagick
writes them, in hexadecimal digits behind a name and a length.
"""

import zlib

from assay.data.images.formats.directory import read_orientation, refuse_other, refuse_xmp

MOST_BYTES = 1 << 20
"""Of a chunk that is read beside the pixels, and of a text that is inflated."""


XMP = b"XML:com.adobe.xmp"
"""The keyword of its text."""


PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords of texts that hold EXIF."""


def read_text(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """Read the text of a chunk (iTXt, zTXt or tEXt) by its keyword; none where it is another, or does not inflate."""
    name, _, text = content.partition(b"\0")
    if name not in (XMP, *PROFILES):
        return {}
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text[is_packed:]
    if is_packed:
        try:
            text = zlib.decompressobj().decompress(text, MOST_BYTES)
        except zlib.error:
            return {}
    return {name: text}


def refuse_texts(orientation: int | None, texts: dict[bytes, bytes]) -> None:
    """Refuse an orientation that a text alone says, by which Pillow and ImageMagick turn the image.

    Raises:
        FormatError: there is one, other than upright.
    """
    refuse_xmp(orientation, texts.get(XMP, b""))
    for name in PROFILES:
        digits = b"".join(texts.get(name, b"").split(b"\n")[3:])
        try:
            exif = bytes.fromhex(digits.decode("ascii"))
        except ValueError:  # unreadable, as EXIF may be
            continue
        refuse_other(orientation, read_orientation(exif), f"text {name.decode()!r}")
