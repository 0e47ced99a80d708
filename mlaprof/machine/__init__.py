"""Facts of the box: GPU, software, processes. No torch."""
