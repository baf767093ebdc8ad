"""What runs a checkpoint: the engines, their servers and environment, and the reference model."""
