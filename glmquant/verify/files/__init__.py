"""Headers and JSON: what they show of a checkpoint, in seconds."""
