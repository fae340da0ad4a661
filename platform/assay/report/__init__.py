"""What a run says to a reader: pages, figures, printed tables."""
