"""One module for each format of image file: what its header says chooses how its pixels are read."""
