"""The loops: fit, evaluate, predict."""
