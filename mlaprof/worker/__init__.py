"""The child process: a Job in, one Measurement a line on its own pipe. The only room that sees layer, capture and
measure together."""
