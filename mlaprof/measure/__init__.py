"""How a step is timed and weighed: takes any callable, knows no layer and no capture, prints nothing."""
