"""What on this machine speaks for and against making, checking and serving a checkpoint."""
