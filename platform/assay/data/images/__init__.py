"""Files to pixels: decoding, pyramids, the store, and reads of regions."""
