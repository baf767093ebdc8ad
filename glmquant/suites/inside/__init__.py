"""Programs that run in a suite's own environment, by their path; nothing here imports them."""
