"""What training takes, from closed forms of the configs: operations, memory, disk, days."""
