"""From a checkpoint to a service: commands, scripts, containers, by machine and version."""
