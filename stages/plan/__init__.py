"""The cost of a training, counted before it is started: operations, memory, disk, days."""
