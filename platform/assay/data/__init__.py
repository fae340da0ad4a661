"""From files to pixels: manifest, split, store, augmentation; numpy and no torch."""
