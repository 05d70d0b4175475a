"""What a run needs before it is queued: memory, hours, disk, cores."""
