"""Where the jobs of a plan run: here one after another, spread over GPUs, or on a cluster."""
