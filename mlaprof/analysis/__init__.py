"""What the samples say: estimates, summaries and comparisons as values."""
