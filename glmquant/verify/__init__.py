"""Is a quantized checkpoint right? Reads what is on disk, and nothing of what wrote it."""
