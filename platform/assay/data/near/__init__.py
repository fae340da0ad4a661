"""Near-duplicates: images that are copies of one another but for what an augmentation or a codec changed."""
